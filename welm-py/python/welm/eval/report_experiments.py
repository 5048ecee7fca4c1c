"""Experiments in a report: whatever ``experiments/NAME.json`` of a run has.

Such a file has a ``title``, paragraphs of ``text``, ``tables`` (``caption``, ``columns``, ``rows``), ``plots``
(``caption``, ``kind``, labels, ``series``), ``samples`` (``title``, ``text``), and tells its ``model`` and
``arguments``. All but the title may be missing.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from welm.eval import report_plots as plots
from welm.eval.journal import NAME as JOURNAL
from welm.eval.journal import EvalError
from welm.eval.report_page import Block, Figure, Heading, Sample, Table, Text
from welm.eval.report_runs import EXPERIMENTS, Run, read_json

if TYPE_CHECKING:
    from collections.abc import Iterator

_KINDS = ("line", "bar", "scatter")


def of_experiments(run: Run) -> Iterator[Block]:
    """All experiments of a run, by name."""
    folder = run.path / EXPERIMENTS
    for path in sorted(folder.glob("*.json")):
        yield from _Reader(path).blocks(run)
    for journal in sorted(folder.glob(f"*/{JOURNAL}")):
        name = journal.parent.name
        if not (folder / f"{name}.json").is_file():
            yield Text(
                f"The experiment {name} of {run.label} is unfinished: the same command goes on with it."
            )


class _Reader:
    """Reads an experiment, and says what is wrong with it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.entry = read_json(path)

    def blocks(self, run: Run) -> Iterator[Block]:
        yield Heading(self.get(self.entry, "title", str, "the experiment"))
        model = self.get(self.entry, "model", str, "the experiment", run.model)
        given = self.get(self.entry, "arguments", dict, "the experiment", {})
        arguments = ", ".join(f"{name} {self.cell(value)}" for name, value in given.items())
        yield Text(f"Run {run.label}, model {Path(model).name}" + (f"; {arguments}." if arguments else "."))
        for number, paragraph in enumerate(self.list(self.entry, "text", "the experiment"), 1):
            yield Text(self.check(paragraph, str, f"paragraph {number}"))
        for number, table in enumerate(self.list(self.entry, "tables", "the experiment"), 1):
            yield self.table(table, f"table {number}")
        for number, plot in enumerate(self.list(self.entry, "plots", "the experiment"), 1):
            yield from self.plot(plot, f"plot {number}")
        for number, sample in enumerate(self.list(self.entry, "samples", "the experiment"), 1):
            where = f"sample {number}"
            yield Sample(self.get(sample, "title", str, where, ""), self.get(sample, "text", str, where))

    def table(self, table: Any, where: str) -> Table:
        columns = [str(column) for column in self.list(table, "columns", where)]
        rows: list[list[str]] = []
        for number, row in enumerate(self.list(table, "rows", where), 1):
            cells = self.check(row, list, f"row {number} of {where}")
            if len(cells) != len(columns):
                raise self.wrong(f"row {number} of {where}", f"{len(columns)} cells", str(len(cells)))
            rows.append([self.cell(cell) for cell in cells])
        return Table(self.get(table, "caption", str, where, ""), columns, rows)

    def plot(self, plot: Any, where: str) -> Iterator[Block]:
        kind = self.get(plot, "kind", str, where)
        if kind not in _KINDS:
            raise self.wrong(f"kind of {where}", f"one of {', '.join(_KINDS)}", json.dumps(kind))
        series = [self.series(each, kind, where) for each in self.list(plot, "series", where)]
        names = [self.get(plot, name, str, where, "") for name in ("x_label", "y_label", "caption")]
        diagonal = self.get(plot, "diagonal", bool, where, False)
        if not plots.available():
            return
        svg, notes = plots.chart(plots.Chart(kind, names[0], names[1], series, diagonal))
        yield Figure(" ".join(part for part in (names[2], *notes) if part), svg)

    def series(self, series: Any, kind: str, where: str) -> plots.Series:
        """A series, without its points that have no place."""
        x, y = (self.list(series, name, f"a series of {where}") for name in ("x", "y"))
        if len(x) != len(y):
            raise self.wrong(f"a series of {where}", "x and y of the same length", f"{len(x)} and {len(y)}")
        for value in (*x, *y):
            if not (
                value is None or isinstance(value, (int, float)) or (kind == "bar" and isinstance(value, str))
            ):
                raise self.wrong(f"a series of {where}", "numbers", json.dumps(value))
        points = [
            (a, b)
            for a, b in zip(x, y, strict=True)
            if plots.finite(b) and (isinstance(a, str) or plots.finite(a))
        ]
        label = self.get(series, "label", str, where, "")
        return plots.Series(label, [a for a, _ in points], [b for _, b in points])

    def cell(self, value: Any) -> str:
        """A value of a table."""
        if value is None:
            return ""
        if isinstance(value, str):
            return value
        return f"{value:.4f}" if isinstance(value, float) else json.dumps(value, ensure_ascii=False)

    def list(self, entry: Any, key: str, where: str) -> list[Any]:
        found: list[Any] = self.get(entry, key, list, where, [])
        return found

    def get(self, entry: Any, key: str, kind: type, where: str, default: Any = ...) -> Any:
        """A field; the default if it is missing."""
        fields = self.check(entry, dict, where)
        if key not in fields and default is not ...:
            return default
        if key not in fields:
            raise self.wrong(where, f"a field {key}", "none")
        return self.check(fields[key], kind, f"{key} of {where}")

    def check(self, value: Any, kind: type, where: str) -> Any:
        if not isinstance(value, kind):
            names = {str: "a text", list: "a list", dict: "an object", bool: "true or false"}
            raise self.wrong(where, names[kind], json.dumps(value, ensure_ascii=False)[:60])
        return value

    def wrong(self, where: str, expected: str, got: str) -> EvalError:
        return EvalError(f"{self.path}, {where}: expected {expected}, got {got}")
