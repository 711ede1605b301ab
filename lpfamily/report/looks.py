"""How figures look, on a page and as files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from lpfamily.report.contents import COLOURS, INK

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LOOKS = {
    # matplotlib brings the first, so that the layout is the same everywhere
    "font.sans-serif": ["DejaVu Sans", "Verdana", "Helvetica", "Arial", "sans-serif"],
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "grid.color"), INK),
    **dict.fromkeys(("xtick.color", "ytick.color"), INK),
    **dict.fromkeys(("axes.facecolor", "savefig.facecolor"), "none"),
    **dict.fromkeys(("axes.spines.top", "axes.spines.right", "legend.frameon"), False),
    "axes.prop_cycle": f"cycler(color={list(COLOURS)})",
    "axes.titlesize": "medium",
    "grid.alpha": 0.15,
    "savefig.dpi": 150,
    "svg.fonttype": "none",
    "svg.hashsalt": "lpfamily",
}


@contextmanager
def drawn(draw: Callable[[Figure], None], size: tuple[float, float]) -> Iterator[Figure]:
    """Give a figure of `size` inches that `draw` has drawn on, to be saved before the context ends.

    Whatever the user's settings are, it has no background, and `INK` for text and axes.
    """
    from matplotlib import style
    from matplotlib.figure import Figure

    with style.context(["default", _LOOKS]):
        figure = Figure(figsize=size, layout="constrained")
        draw(figure)
        yield figure


def save_png(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, on white: a viewer has anything behind a file."""
    figure.savefig(path, facecolor="white", metadata={"Software": None})
