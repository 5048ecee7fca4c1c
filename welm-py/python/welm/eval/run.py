"""Runs tasks with a model, and writes the results into a folder.

The folder has `results.json`, which is what `lm_eval.simple_evaluate` gives, with a key `welm` for what is welm's own;
`samples_TASK.jsonl`, lm-eval's file of samples; and `requests.jsonl`, by which a run that was ended goes on.
"""

# lm-eval has no types that a type checker knows, and need not be there when it runs.
# pyright: basic, reportMissingImports=false

from __future__ import annotations

import json
import os
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager
from lm_eval.utils import handle_non_serializable, hash_string, sanitize_list

import welm
from welm.eval.journal import EvalError, Journal, settings_of, write_whole
from welm.eval.lm import WelmLM, longest
from welm.eval.tasks import FOLDER, manager
from welm.eval.tasks.data import DataError

if TYPE_CHECKING:
    from collections.abc import Sequence

RESULTS = "results.json"


def evaluate(
    path: str | os.PathLike[str] | None = None,
    tasks: Sequence[str] = (),
    *,
    out: str | os.PathLike[str],
    shots: int | None = None,
    limit: int | None = None,
    data: str | os.PathLike[str] | None = None,
    chat: bool = False,
    ray: str | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Runs tasks with a model, and gives the results, which are in the folder ``out`` then.

    ``path`` and ``options`` are those of :class:`welm.Model`. ``tasks`` are names, which may have `*`, or YAML files;
    ``data`` is the folder of their data. ``shots`` is the number of examples in front of each question, by default the
    task's own; ``limit`` the number of questions of each task; ``chat`` puts prompts into the model's chat template.
    ``ray`` is the address of a Ray cluster that computes the requests.

    Finished requests are kept in the folder: the same call goes on where one was ended. A folder that was begun with
    another model or other settings is refused.
    """
    names = [os.fspath(task) for task in tasks]
    loaded = task_manager(data, names)
    names = found(loaded, names)
    place = os.fspath(path or welm.NANO)
    settings: dict[str, Any] = {
        "lm_eval": version("lm_eval"),
        **settings_of(place, options),
        "tasks": names,
        "shots": shots,
        "limit": limit,
        "chat": chat,
        "data": data if data is None or data == "samples" else os.path.abspath(data),
    }
    elsewhere: dict[str, Any] = {}
    if ray is None:
        model = welm.Model(path, **options)
        settings["device"] = model.backend.split(",")[0]
    else:
        from welm.eval import cluster

        elsewhere = {"runner": cluster.runner(ray, place, options), "window": cluster.WINDOW}
        model = cluster.tokenizer_of(place, options)
        settings["device"] = f"ray, {options.get('device', 'auto')}"
    settings["max_length"] = longest(model)
    if chat and not model.has_chat_template:
        raise EvalError(f"{place}: expected a chat template, got a model without one")
    with Journal(out, settings) as journal:
        questions = ("tasks", "shots", "limit", "data", "max_length")
        identity = json.dumps({name: settings[name] for name in sorted(settings) if name not in questions})
        lm = WelmLM(model, journal=journal, identity=identity, **elsewhere)
        # Otherwise it runs git for the commit of the user's folder, which writes to stderr if there is none.
        with patch("lm_eval.evaluator.get_git_commit_hash", return_value=None):
            try:
                results: dict[str, Any] = simple_evaluate(
                    lm,
                    tasks=names,
                    num_fewshot=shots,
                    limit=limit,
                    task_manager=loaded,
                    apply_chat_template=chat,
                )
            except DataError as error:
                raise EvalError(str(error)) from error
        results["config"] |= {"model": "welm", "model_args": {"pretrained": place, **options}}
        results["model_name"] = place
        stats = model.stats()
        anew = stats.prompt_tokens - stats.prefix_hit_tokens + stats.completion_tokens
        results["welm"] = {
            "version": welm.__version__,
            "backend": model.backend if ray is None else f"ray {ray}",
            "settings": settings,
            "requests_computed": lm.counts["computed"],
            "requests_found": lm.counts["found"],
            "requests_shortened": lm.counts["shortened"],
            "requests_joined": lm.counts["joined"],
            "tokens": lm.counts["tokens"],
            "tokens_computed": anew if ray is None else None,  # a shared beginning once
            "seconds": lm.asker.seconds,
            "tokens_per_second": lm.counts["tokens"] / lm.asker.seconds if lm.counts["tokens"] else None,
        }
        write(Path(out), results)
    return results


def task_manager(data: str | os.PathLike[str] | None, names: Sequence[str]) -> TaskManager:
    """The tasks of this package and, if any other is named, those of lm-eval, which take seconds to find."""
    if data is not None and os.fspath(data) != "samples" and not Path(data).is_dir():
        raise EvalError(f"{os.fspath(data)}: expected a folder of data, or samples")
    metadata = {} if data is None else {"data": os.fspath(data)}
    own = TaskManager(include_path=os.fspath(FOLDER), include_defaults=False, metadata=metadata)
    is_own = all(Path(name).is_file() or own.match_tasks([name]) for name in names)
    return own if is_own else manager(None if data is None else os.fspath(data))


def found(manager: TaskManager, names: Sequence[str]) -> list[str]:
    """The tasks of these names, with those that a pattern stands for."""
    from difflib import get_close_matches

    tasks: list[str] = []
    for name in names:
        matches = [name] if Path(name).is_file() else sorted(manager.match_tasks([name]))
        if not matches:
            near = get_close_matches(name, manager.all_tasks, n=1)
            raise EvalError(f"unknown task {name}" + (f", did you mean {near[0]}?" if near else ""))
        tasks += [match for match in matches if match not in tasks]
    if not tasks:
        raise EvalError("expected one task or more, got none")
    return tasks


def write(folder: Path, results: dict[str, Any]) -> None:
    """Writes results and samples, as lm-eval does, each file in one step. Takes the samples out of the results."""
    samples: dict[str, list[dict[str, Any]]] = results.pop("samples", {})
    hashes = {}
    for task, rows in samples.items():
        hashes[task] = hash_string(
            "".join(row["doc_hash"] + row["prompt_hash"] + row["target_hash"] for row in rows)
        )
        lines = "".join(f"{_json(_sample(row))}\n" for row in rows)
        write_whole(folder / f"samples_{task}.jsonl", lines)
    results["task_hashes"] = hashes
    write_whole(folder / RESULTS, _json(results, indent=2) + "\n")


def _sample(row: dict[str, Any]) -> dict[str, Any]:
    """A sample as in lm-eval's files."""
    arguments = {
        f"gen_args_{i}": {f"arg_{j}": value for j, value in enumerate(each)}
        for i, each in enumerate(row["arguments"])
    }
    texts = {name: sanitize_list(row[name]) for name in ("resps", "filtered_resps")}
    return {**row, **texts, "arguments": arguments, "target": str(row["target"])}


def _json(value: object, indent: int | None = None) -> str:
    return json.dumps(value, indent=indent, default=handle_non_serializable, ensure_ascii=False)
