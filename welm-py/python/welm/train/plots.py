"""Plots as PNG files, all in one look."""

# pyright: basic, reportMissingImports=false, reportMissingModuleSource=false

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

BLUE = "#2b6cb0"


def figure(width: float, height: float) -> Any:
    """A new figure, in inches."""
    from matplotlib.figure import Figure  # only a step that draws needs it

    return Figure(figsize=(width, height), layout="constrained")


def save(drawn: Any, path: Path) -> None:
    """Writes a figure. The same figure gives the same bytes."""
    for axes in drawn.axes:
        axes.spines[["top", "right"]].set_visible(False)
    drawn.savefig(path, dpi=120, metadata={"Software": None})
