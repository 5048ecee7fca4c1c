"""What an experiment found: text, tables, plots and samples, as a file that a report can show."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Sequence

Cell: TypeAlias = "str | float | int | None"


@dataclass
class Table:
    """A table. A float is shown with four digits after the point; ``None`` is an empty cell."""

    caption: str
    columns: list[str]
    rows: list[list[Cell]] = field(default_factory=list[list[Cell]])


@dataclass
class Series:
    """The points of one line, or the bars of one colour."""

    label: str
    x: list[float] | list[str]
    y: list[float]


@dataclass
class Plot:
    """A plot. With ``diagonal`` it has the line on which y is x."""

    caption: str
    kind: Literal["line", "bar", "scatter"]
    x_label: str
    y_label: str
    series: list[Series]
    diagonal: bool = False


@dataclass
class Sample:
    """One case, as it was."""

    title: str
    text: str


@dataclass
class Record:
    """All that an experiment found."""

    title: str
    text: list[str]
    """Paragraphs: what was asked, how, and what the figures mean."""
    tables: list[Table] = field(default_factory=list[Table])
    plots: list[Plot] = field(default_factory=list[Plot])
    samples: list[Sample] = field(default_factory=list[Sample])

    def as_json(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)


def mean(values: Sequence[float]) -> float | None:
    """The mean as a cell: empty for no values."""
    return sum(values) / len(values) if values else None
