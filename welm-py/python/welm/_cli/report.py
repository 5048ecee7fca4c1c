"""``report``: makes a page of the results of ``eval``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from welm._cli.streams import say
from welm._cli.terminal import put

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

SUMMARY = """Makes a page of the results of `eval`: report.html, with plots, and report.md, with the same tables.

A run is the folder that `eval` wrote to. The page shows each score with its confidence interval, whether it is above
chance, the spread over prompts, and published figures beside. With --compare it tests the difference of two runs of the
same questions, for instance of two models. Needs pip install "welm[eval]"."""
EXAMPLES = (
    "report run --out page",
    "report run-0 run-3 --out page",
    "report --compare run-f32 run-int8 --out page",
)


def add_arguments(parser: ArgumentParser) -> None:
    """Adds flags and positional arguments."""
    parser.add_argument("runs", nargs="*", default=[], metavar="RUN", help="folder of a run")
    parser.add_argument("--out", required=True, metavar="FOLDER", help="where the page goes")
    parser.add_argument(
        "--compare",
        nargs=2,
        default=None,
        metavar=("RUN", "RUN"),
        help="two runs of the same questions, to test their difference",
    )
    parser.set_defaults(fail=parser.error)


def run(args: Namespace) -> int:
    """Runs the command; gives the exit code."""
    if not (args.runs or args.compare):
        args.fail("expected one run or more, or --compare RUN RUN")
    import welm.eval

    write_report = welm.eval.write_report
    from welm.eval import report_plots
    from welm.eval.report import NO_PLOTS

    page, tables = write_report(args.runs, args.out, compare=args.compare and tuple(args.compare))
    if not report_plots.available():
        say(NO_PLOTS)
    put(f"the report is in {page}, its tables are in {tables}")
    return 0
