"""``eval``: runs evaluation tasks with a model."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, Any

from welm._cli.arguments import Whole, add_loading, loading, only_path, text
from welm._cli.streams import say
from welm._cli.terminal import put

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

SUMMARY = """Runs evaluation tasks with a model, and prints a table of the results.

Tasks are those of lm-eval and the Chinese ones of this package; --list shows the latter. The folder OUT gets
results.json and the samples, in lm-eval's format, and every finished request: after Ctrl-C, or if the process is
killed, the same command goes on where it was. Needs pip install "welm[eval]"."""
EXAMPLES = (
    "eval smollm2.gguf --tasks c3,tnews --shots 0 --limit 200 --data DIR --out run",
    "eval smollm2.gguf --tasks hellaswag --shots 5 --limit 100 --out run-5",
    "eval --list",
)


def add_arguments(parser: ArgumentParser) -> None:
    """Adds flags and positional arguments."""
    add = parser.add_argument
    add(
        "--tasks",
        type=text,
        default="",
        metavar="NAMES",
        help="names with commas between, which may have *, or all",
    )
    add(
        "--list", action="store_true", default=False, help="print the names of this package's tasks and leave"
    )
    add("--out", default=None, metavar="FOLDER", help="where results go, and what a run needs to go on")
    add(
        "--shots",
        type=Whole(0),
        metavar="N",
        default=None,
        help="examples in a prompt (default: the task's own)",
    )
    add("--limit", type=Whole(1), metavar="N", default=None, help="questions of each task (default: all)")
    add(
        "--data",
        default=None,
        metavar="DIR",
        help="folder of the data of this package's tasks; samples: made-up questions (default: the Hugging Face hub)",
    )
    add("--chat", action="store_true", default=False, help="put prompts into the model's chat template")
    add(
        "--ray",
        default=None,
        metavar="ADDRESS",
        help='compute on a Ray cluster; needs pip install "welm[ray]"',
    )
    add_loading(parser, path=False)


def run(args: Namespace) -> int:
    """Runs the command; gives the exit code."""
    path = only_path(args)
    if not args.list and not (args.tasks and args.out):
        args.fail("the following arguments are required: --tasks, --out")
    quiet()
    import welm.eval
    from welm.eval.journal import NAME

    evaluate = welm.eval.evaluate
    from welm.eval.tasks import LANGUAGES, TASKS

    if args.list:
        for name, about in {**TASKS, **LANGUAGES}.items():
            put(f"{name:16} {about}")
        return 0
    try:
        results = evaluate(
            path,
            list(TASKS) if args.tasks == "all" else [name for name in args.tasks.split(",") if name],
            out=args.out,
            shots=args.shots,
            limit=args.limit,
            data=args.data,
            chat=args.chat,
            ray=args.ray,
            **loading(args),
        )
    except welm.eval.EvalError:
        raise
    except BaseException:
        if os.path.exists(os.path.join(args.out, NAME)):
            say(f"what was finished is in {args.out}; the same command goes on with it")
        raise
    print_table(results, args.out)
    return 0


def quiet() -> None:
    """Keeps lm-eval and its libraries from writing progress bars and remarks between ours."""
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    logging.getLogger("lm_eval").setLevel(logging.ERROR)


def print_table(results: dict[str, Any], out: str) -> None:
    """The metrics of all tasks, and how fast they were computed."""
    put(f"{'task':24} {'metric':18} {'value':>9} {'±':>8} {'n':>6} {'shots':>5}", bold=True)
    for task, metrics in results["results"].items():
        for name, value in metrics.items():
            metric, _, kept = name.partition(",")
            if not kept or metric.endswith("_stderr"):
                continue
            error = metrics.get(f"{metric}_stderr,{kept}")
            spread = f"{error:8.4f}" if isinstance(error, float) else " " * 8
            shown = f"{value:9.4f}" if isinstance(value, float) else f"{value!s:>9}"
            count = results["n-samples"].get(task, {}).get("effective", "")
            shots = results["n-shot"].get(task, "")
            put(
                f"{task:24} {metric if kept == 'none' else name:18} {shown} {spread} {count!s:>6} {shots!s:>5}"
            )
    about = results["welm"]
    speed = f", {about['tokens_per_second']:,.0f} tokens/s" if about["tokens_per_second"] else ""
    found = f", {about['requests_found']:,} found" if about["requests_found"] else ""
    put(f"{about['requests_computed']:,} requests computed{found}{speed}; results are in {out}")
