"""What the YAML files name after ``!function``.

lm-eval loads this file by its path, so that the folder also works by ``--include_path`` where welm is not installed.
The modules beside it are loaded as one package, under a name of their own if welm is not imported.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent
ALONE = "welm_eval_tasks"


def _package() -> str:
    for name in ("welm.eval.tasks", ALONE):
        paths = getattr(sys.modules.get(name), "__path__", [])
        if FOLDER in [Path(path).resolve() for path in paths]:
            return name
    spec = importlib.util.spec_from_file_location(
        ALONE, FOLDER / "__init__.py", submodule_search_locations=[str(FOLDER)]
    )
    if spec is None or spec.loader is None:
        raise ImportError(f"{FOLDER}: expected a package")
    module = importlib.util.module_from_spec(spec)
    sys.modules[ALONE] = module
    spec.loader.exec_module(module)
    return ALONE


def __getattr__(name: str) -> Any:
    """The classes of ``task``, when lm-eval asks for them."""
    if name in ("Ranking", "Generation"):
        return getattr(importlib.import_module(f"{_package()}.task"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


metrics: Any = importlib.import_module(f"{_package()}.metrics")
macro_f1, bleu = metrics.macro_f1, metrics.bleu


def reading(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """EM and F1 of the first line."""
    text = metrics.first_line(results[0])
    return {"em": metrics.exact(doc["answers"], text), "f1": metrics.f1(doc["answers"], text)}


def squad(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """EM and F1 of the first line, in English."""
    text = metrics.first_line(results[0])
    return {"em": metrics.squad_exact(doc["answers"], text), "f1": metrics.squad_f1(doc["answers"], text)}


def cloze(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """Accuracy of a missing word."""
    found: dict[str, float] = metrics.cloze(doc["answers"][0], results[0])
    return found


def rouge(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """ROUGE of the first line."""
    found: dict[str, float] = metrics.rouge(doc["answers"], metrics.first_line(results[0]))
    return found


def rouge_bleu(doc: dict[str, Any], results: list[str]) -> dict[str, Any]:
    """ROUGE of the first line, and what BLEU is computed from."""
    text = metrics.first_line(results[0])
    return {**metrics.rouge(doc["answers"], text), "bleu": (doc["answers"], text)}
