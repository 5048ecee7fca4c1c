"""Reports of runs: an HTML page that needs nothing else, and the same tables as Markdown.

The same runs give the same bytes. Plots need matplotlib; without it the page has all but them.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from welm.eval import report_page as page
from welm.eval import report_plots as plots
from welm.eval.journal import write_whole
from welm.eval.report_compare import compared
from welm.eval.report_experiments import of_experiments
from welm.eval.report_runs import read_runs
from welm.eval.report_tables import of_published, of_runs, of_scores

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from welm.eval.report_runs import Run

HTML, MARKDOWN = "report.html", "report.md"
NO_PLOTS = 'there are no plots, because matplotlib is not installed: pip install "welm[eval]"'


def write_report(
    runs: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    compare: tuple[str | os.PathLike[str], str | os.PathLike[str]] | None = None,
) -> tuple[Path, Path]:
    """Writes `report.html` and `report.md` of runs into the folder ``out``, and gives their paths.

    ``runs`` are folders that :func:`welm.eval.evaluate` wrote. ``compare`` names two runs of the same questions, whose
    difference is tested; they need not be in ``runs``.
    """
    read = read_runs([*runs, *(compare or ())])
    by_path = {run.path: run for run in read}
    pair = tuple(by_path[Path(path)] for path in compare) if compare else ()
    models = list(dict.fromkeys(run.model for run in read if run.model))
    title = f"Evaluation of {', '.join(models)}"
    blocks = list(_blocks(read, pair))
    written = Path(out) / HTML, Path(out) / MARKDOWN
    written[0].parent.mkdir(parents=True, exist_ok=True)
    for path, text in zip(written, (page.html(title, blocks), page.markdown(title, blocks)), strict=True):
        write_whole(path, text)
    return written


def _blocks(runs: list[Run], pair: tuple[Run, ...]) -> Iterator[page.Block]:
    if not plots.available():
        yield page.Text(f"{NO_PLOTS[0].upper()}{NO_PLOTS[1:]}.")
    measured = [run for run in runs if run.tasks]
    if measured:
        yield from of_runs(measured)
        yield from of_scores(measured)
    if len(pair) == 2:
        yield from compared(*pair)
    yield from of_published(measured)
    for run in runs:
        yield from of_experiments(run)
