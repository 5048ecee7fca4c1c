"""Experiments: questions about a model that are more than one task.

======================  ===========================================================================
``explanation``         do examples with explanations help, and what are the model's own worth
``calibration``         does the model know when it is right
``memory``              how far it continues texts that it was trained on
======================  ===========================================================================

``python -m welm experiment`` is the same as :func:`experiment`. It needs numpy, and no lm-eval. Finished requests are
kept, as those of ``welm eval`` are.
"""

from __future__ import annotations

import json
import os
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import welm
from welm.eval.asking import Asker
from welm.eval.experiments.texts import Texts
from welm.eval.journal import EvalError, Journal, settings_of, write_whole

if TYPE_CHECKING:
    from collections.abc import Sequence

    from welm.eval.experiments.record import Record
    from welm.eval.experiments.texts import Progress

NAMES = ("explanation", "calibration", "memory")
FOLDER = "experiments"
"""The folder in that of a run."""


def experiment(
    name: str,
    path: str | os.PathLike[str] | None = None,
    *,
    out: str | os.PathLike[str],
    data: str | os.PathLike[str] | None = None,
    limit: int | None = None,
    tasks: Sequence[str] = (),
    corpus: Sequence[str | os.PathLike[str]] = (),
    control: Sequence[str | os.PathLike[str]] = (),
    progress: Progress | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Runs an experiment with a model, and gives what was found, which is in ``OUT/experiments/NAME.json`` then.

    ``path`` and ``options`` are those of :class:`welm.Model`. ``data`` is the folder of the tasks' data, as for
    :func:`welm.eval.evaluate`; ``limit`` the number of questions of each task, or of the beginnings of a kind;
    ``tasks`` are some of explanation's and calibration's. ``corpus`` and ``control`` are files of memory: text that the
    model was trained on, and text that it was not.

    Finished requests are kept in ``OUT/experiments/NAME/requests.jsonl``: the same call goes on where one was ended,
    also with another limit. With another model it is refused.
    """
    if name not in NAMES:
        raise EvalError(f"expected an experiment of {', '.join(NAMES)}, got {name}")
    given = {
        "data": None if data is None else os.fspath(data),
        "limit": limit,
        "tasks": list(tasks),
        "corpus": [os.fspath(file) for file in corpus],
        "control": [os.fspath(file) for file in control],
    }
    try:
        module = import_module(f"welm.eval.experiments.{name}")
    except ModuleNotFoundError as error:
        raise EvalError(f'{name} needs more ({error}): pip install "welm[eval]"') from None
    read = module.read(**given)
    place = os.fspath(path or welm.NANO)
    model = welm.Model(path, **options)
    settings = {**settings_of(place, options), "device": model.backend.split(",")[0]}
    folder = Path(out) / FOLDER
    with Journal(folder / name, settings) as journal:
        asker = Asker(model, journal=journal, identity=json.dumps(settings, sort_keys=True))
        texts = Texts(model, asker, progress)
        record: Record = module.run(texts, read)
        record.text += texts.remarks()
        found = {
            "name": name,
            "title": record.title,
            "model": place,
            "arguments": {**{key: value for key, value in given.items() if value}, **options},
            **record.as_json(),
            "welm": {
                "version": welm.__version__,
                "backend": model.backend,
                "requests_computed": asker.counts["computed"],
                "requests_found": asker.counts["found"],
                "tokens": asker.counts["tokens"],
                "seconds": asker.seconds,
            },
        }
        write_whole(folder / f"{name}.json", json.dumps(found, ensure_ascii=False, indent=1) + "\n")
    return found
