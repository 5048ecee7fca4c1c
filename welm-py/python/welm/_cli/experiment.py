"""``experiment``: runs an experiment with a model."""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING, Any

from welm._cli.arguments import Named, Whole, add_loading, loading, only_path, text
from welm._cli.streams import say
from welm._cli.terminal import CLEAR_LINE, columns, obeys, put
from welm.eval.experiments import FOLDER, NAMES, experiment
from welm.eval.journal import NAME, EvalError

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

SUMMARY = """Runs an experiment with a model, and prints tables of what was found.

explanation: do examples with explanations help, and are the model's own worth something? calibration: does the model
know when it is right? memory: how far does it continue texts that it was trained on? The first two ask questions of
four Chinese tasks, whose data are in DIR; memory reads texts. What was found is in OUT/experiments/NAME.json. Every
finished request is kept there, too: after Ctrl-C, or if the process is killed, the same command goes on where it was.
Needs pip install "welm[eval]"."""
EXAMPLES = (
    "experiment calibration smollm2.gguf --data DIR --out run --limit 100",
    "experiment explanation smollm2.gguf --data DIR --out run --tasks ocnli,c3",
    "experiment memory --corpus train.txt --control heldout.txt --out run",
)


def add_arguments(parser: ArgumentParser) -> None:
    """Adds flags and positional arguments."""
    add = parser.add_argument
    named = Named(NAMES)
    add("name", type=named, metavar="NAME", help=named.domain)
    add("--out", required=True, metavar="FOLDER", help="where results go, and what a run needs to go on")
    add("--data", default=None, metavar="DIR", help="folder of the tasks' data, or samples")
    add(
        "--limit",
        type=Whole(1),
        metavar="N",
        default=None,
        help="questions of each task (default: all), or beginnings of each kind (default: 100)",
    )
    add(
        "--tasks",
        type=text,
        default="",
        metavar="NAMES",
        help="names with commas between, of ocnli, chnsenticorp, c3 and cmrc2018 (default: all)",
    )
    for name, about in (("corpus", "was trained on"), ("control", "was not trained on")):
        add(
            f"--{name}",
            action="append",
            default=None,
            metavar="FILE",
            help=f"for memory: text that the model {about}, with empty lines between documents; also .txt.xz, and "
            '.jsonl with "text"; may be given several times (default: in DIR/memory)',
        )
    add_loading(parser, path=False)


def run(args: Namespace) -> int:
    """Runs the command; gives the exit code."""
    path = only_path(args)
    bar = Bar()
    try:
        found = experiment(
            args.name,
            path,
            out=args.out,
            data=args.data,
            limit=args.limit,
            tasks=[name for name in args.tasks.split(",") if name],
            corpus=args.corpus or [],
            control=args.control or [],
            progress=bar,
            **loading(args),
        )
    except EvalError:
        raise
    except BaseException:
        bar.clear()
        if os.path.exists(os.path.join(args.out, FOLDER, args.name, NAME)):
            say(f"what was finished is in {args.out}; the same command goes on with it")
        raise
    bar.clear()
    show(found, args.out)
    return 0


class Bar:
    """Shows on a terminal how much of a step is finished."""

    def __init__(self) -> None:
        self._on = obeys(sys.stderr)
        self._next_draw = 0.0

    def __call__(self, what: str, done: int, total: int) -> None:
        """Takes a report."""
        now = time.monotonic()
        if self._on and now >= self._next_draw:
            self._next_draw = now + 0.05
            line = f"{what}: {done:,} of {total:,}"
            say(f"\r{line[: (columns(sys.stderr) or 80) - 1]}\x1b[K", end="")

    def clear(self) -> None:
        """Clears the line."""
        if self._next_draw:
            say(CLEAR_LINE, end="")


def show(found: dict[str, Any], out: str) -> None:
    """Prints the tables, and where everything is."""
    for table in found["tables"]:
        put(table["caption"], bold=True)
        rows = [table["columns"], *([shown(cell) for cell in row] for row in table["rows"])]
        widths = [max(len(row[at]) for row in rows) for at in range(len(table["columns"]))]
        for row in rows:
            cells = [
                row[0].ljust(widths[0]),
                *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True)),
            ]
            put("  ".join(cells).rstrip())
        put("")
    about = found["welm"]
    kept = f", {about['requests_found']:,} found" if about["requests_found"] else ""
    put(
        f"{about['requests_computed']:,} requests computed{kept}; results are in {out}/{FOLDER}/{found['name']}.json"
    )


def shown(cell: object) -> str:
    """A cell of a table."""
    return "" if cell is None else f"{cell:.4f}" if isinstance(cell, float) else str(cell)
