"""Evaluations: tasks of lm-eval, run by the engine.

>>> import welm.eval
>>> results = welm.eval.evaluate("model.gguf", ["hellaswag"], limit=200, out="run")  # doctest: +SKIP
>>> results["results"]["hellaswag"]["acc,none"]  # doctest: +SKIP

``python -m welm eval`` is the same on the command line, and ``python -m welm report``, or :func:`write_report`, makes a
page of the results. A program that calls lm-eval itself takes :class:`WelmLM` as its model; once that is imported,
lm-eval knows it by the name `welm`. All of it needs ``pip install "welm[eval]"``.
"""

from typing import TYPE_CHECKING as _TYPE_CHECKING

from welm.eval.journal import EvalError, Journal

if _TYPE_CHECKING:
    from welm.eval.lm import WelmLM
    from welm.eval.report import write_report
    from welm.eval.run import evaluate

__all__ = ["EvalError", "Journal", "WelmLM", "evaluate", "write_report"]


def __getattr__(name: str) -> object:
    # lm-eval takes seconds to import, and need not be there for the rest.
    needed = "numpy" if name == "write_report" else "lm-eval"
    try:
        if name == "write_report":
            from welm.eval.report import write_report

            return write_report
        if name == "WelmLM":
            from welm.eval.lm import WelmLM

            return WelmLM
        if name == "evaluate":
            from welm.eval.run import evaluate

            return evaluate
    except ModuleNotFoundError as error:
        raise EvalError(f'welm.eval needs {needed} ({error}): pip install "welm[eval]"') from None
    raise AttributeError(f"module 'welm.eval' has no attribute {name!r}")
