"""Plots of a report, as SVG, by matplotlib.

The same figures give the same bytes with the same matplotlib. Colours are those of Okabe and Ito, which the
colour-blind can tell apart; markers and line styles differ as well. The font is matplotlib's own, which is everywhere
the same: labels with characters that it lacks, such as Chinese ones, and long ones are shown as [1], [2], and explained
in the caption.
"""

# matplotlib need not be there.
# pyright: basic, reportMissingImports=false

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from functools import cache
from itertools import cycle
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from welm.eval.statistics import Interval

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
LINES = ("-", "--", "-.", ":")
WIDTH, HEIGHT = 8.0, 5.5
"""In inches; the height without title and legend."""
LONGEST = 48
"""Characters of a label; longer ones would leave no room for the plot."""
_SETTINGS = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "text.parse_math": False,  # a dollar sign is one
    "svg.fonttype": "path",
    "svg.hashsalt": "welm",
    "axes.spines.top": False,
    "axes.spines.right": False,
}


@dataclass(frozen=True)
class Dot:
    """A score with its interval, and the same with other prompts."""

    value: float
    interval: Interval | None = None
    others: Sequence[float] = ()


@dataclass(frozen=True)
class Series:
    """Values of a chart; x may be names, if they are bars."""

    label: str
    x: Sequence[float | str]
    y: Sequence[float]


@dataclass(frozen=True)
class Chart:
    """A line, bar or scatter chart."""

    kind: str
    x_label: str
    y_label: str
    series: Sequence[Series]
    diagonal: bool = False


class Labels:
    """Texts as a plot can show them."""

    def __init__(self) -> None:
        """None so far."""
        self._numbers: dict[str, int] = {}

    def __call__(self, text: str) -> str:
        """The text, or a number in its place."""
        if len(text) <= LONGEST and all(ord(character) in _characters() for character in text):
            return f" {text}" if text.startswith("_") else text  # matplotlib hides labels that begin so
        return f"[{self._numbers.setdefault(text, len(self._numbers) + 1)}]"

    @property
    def notes(self) -> list[str]:
        """What the numbers stand for."""
        return [f"[{number}] {text}" for text, number in self._numbers.items()]


def available() -> bool:
    """Whether matplotlib is there."""
    try:
        import matplotlib.figure
    except ModuleNotFoundError:
        return False
    return bool(matplotlib.figure)


def dot_plots(
    rows: Sequence[str],
    series: Sequence[tuple[str, Sequence[Dot | None]]],
    x_label: str,
    chance: Sequence[float | None] = (),
    zero: bool = False,
) -> Iterator[tuple[bytes, list[str]]]:
    """As :func:`dots`, in as many plots as have room on printed pages."""
    parts = math.ceil(len(rows) / max(1, int(HEIGHT / _row_height(len(series)))))
    most = math.ceil(len(rows) / parts) if parts else 1
    for start in range(0, len(rows), most):
        part = slice(start, start + most)
        shown = [(name, found[part]) for name, found in series]
        yield dots(rows[part], shown, x_label, chance[part], zero)


def _row_height(series: int) -> float:
    return max(0.28, 0.14 * series)


def dots(
    rows: Sequence[str],
    series: Sequence[tuple[str, Sequence[Dot | None]]],
    x_label: str,
    chance: Sequence[float | None] = (),
    zero: bool = False,
) -> tuple[bytes, list[str]]:
    """Scores with their intervals, a row for each name, and the notes of the caption.

    ``zero`` draws a line there.
    """
    labels = Labels()
    step = 0.8 / max(1, len(series))
    blind = [(row, value) for row, value in enumerate(chance) if value is not None]
    explained = len(series) > 1 or bool(blind)
    with _style():
        figure, axes = _axes(0.9 + len(rows) * _row_height(len(series)))
        for at, (name, found) in enumerate(series):
            colour, marker = COLOURS[at % len(COLOURS)], MARKERS[at % len(MARKERS)]
            places = [row + (at + 0.5) * step - 0.4 for row in range(len(rows))]
            there = [(place, dot) for place, dot in zip(places, found, strict=True) if dot]
            for place, dot in there:
                if dot.interval:
                    axes.plot(dot.interval, [place, place], color=colour, linewidth=1.5)
                axes.plot(
                    dot.others, [place] * len(dot.others), marker, color=colour, markersize=3, alpha=0.6
                )
            values = [dot.value for _, dot in there]
            axes.plot(
                values,
                [p for p, _ in there],
                marker,
                color=colour,
                markersize=6,
                label=labels(name) if explained else "",
            )
        for row, value in blind:
            axes.plot([value, value], [row - 0.45, row + 0.45], color="#555555", linestyle=":", linewidth=1.5)
        if blind:
            axes.plot([], [], color="#555555", linestyle=":", label="chance")
        if zero:
            axes.axvline(0, color="#555555", linewidth=1)
        axes.set_yticks(range(len(rows)), [labels(row) for row in rows])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xlabel(labels(x_label))
        axes.grid(axis="x", color="#dddddd", linewidth=0.6)
        _legend(axes, explained)
        return _svg(figure), labels.notes


def chart(plot: Chart) -> tuple[bytes, list[str]]:
    """A chart, and the notes of its caption."""
    labels = Labels()
    several = len(plot.series) > 1
    with _style():
        figure, axes = _axes(4.0)
        if plot.diagonal:
            axes.axline((0, 0), slope=1, color="#777777", linestyle=":", linewidth=1)
            if all(isinstance(v, (int, float)) and 0 <= v <= 1 for s in plot.series for v in (*s.x, *s.y)):
                axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
        if plot.kind == "bar":
            _bars(axes, plot, labels)
        else:
            styles = zip(cycle(COLOURS), cycle(MARKERS), cycle(LINES), strict=False)
            for series, (colour, marker, line) in zip(plot.series, styles, strict=False):
                style = line if plot.kind == "line" else ""
                axes.plot(
                    series.x,
                    series.y,
                    color=colour,
                    marker=marker,
                    markersize=4,
                    linestyle=style,
                    markevery=max(1, len(series.x) // 25) if style else 1,
                    label=labels(series.label) if several else "",
                )
        axes.set_xlabel(labels(plot.x_label))
        axes.set_ylabel(labels(plot.y_label))
        axes.grid(axis="both" if plot.kind != "bar" else "y", color="#dddddd", linewidth=0.6)
        axes.set_axisbelow(True)
        _legend(axes, several)
        return _svg(figure), labels.notes


def _bars(axes: Any, plot: Chart, labels: Labels) -> None:
    """Bars of the series beside each other, in groups by x."""
    groups = list(dict.fromkeys(x for series in plot.series for x in series.x))
    if all(isinstance(x, (int, float)) for x in groups):
        groups.sort()
    place = {x: at for at, x in enumerate(groups)}
    width = 0.8 / max(1, len(plot.series))
    hatches = ("", "///", "...", "xx", "\\\\\\", "++", "oo")
    for at, series in enumerate(plot.series):
        places = [place[x] + (at + 0.5) * width - 0.4 for x in series.x]
        style = {
            "color": COLOURS[at % len(COLOURS)],
            "hatch": hatches[at % len(hatches)],
            "edgecolor": "white",
        }
        axes.bar(places, series.y, width, label=labels(series.label) if len(plot.series) > 1 else "", **style)
    names = [labels(x if isinstance(x, str) else f"{x:g}") for x in groups]
    long = sum(map(len, names)) > 80
    axes.set_xticks(range(len(groups)), names, rotation=45 if long else 0, ha="right" if long else "center")


@cache
def _characters() -> frozenset[int]:
    """Those that the font has."""
    from matplotlib.font_manager import findfont, get_font

    font: Any = get_font(findfont("DejaVu Sans", fallback_to_default=True))
    return frozenset(font.get_charmap())


def _style() -> Any:
    from matplotlib import style

    # Not the user's own settings.
    return style.context(["default", _SETTINGS])


def _axes(height: float) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, min(height, 200.0)), layout="constrained")
    return figure, figure.subplots()


def _legend(axes: Any, wanted: bool) -> None:
    handles, names = axes.get_legend_handles_labels()
    if wanted and names:
        columns = max(1, min(len(names), 96 // (max(map(len, names)) + 8)))
        axes.figure.legend(handles, names, loc="outside upper left", ncols=columns, frameon=False)


def _svg(figure: Any) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    return file.getvalue()


def finite(value: object) -> bool:
    """Whether it is a number that can be drawn."""
    return isinstance(value, (int, float)) and math.isfinite(value)
