"""How figures look, on a page and as files."""

from __future__ import annotations

import os
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from io import BytesIO
from typing import TYPE_CHECKING

from lpfamily.report.contents import COLOURS, INK

if TYPE_CHECKING:
    from matplotlib.axes import Axes
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
    _import_matplotlib()
    from matplotlib import style
    from matplotlib.figure import Figure

    with style.context(["default", _LOOKS]):
        figure = Figure(figsize=size, layout="constrained")
        draw(figure)
        yield figure


def legend_below(figure: Figure, axes: Axes, columns: int, size: float | None = 8) -> None:
    """Put the legend of one of the axes below all of them, in so many columns."""
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, fontsize=size)


def rendered(
    draw: Callable[[Figure], None],
    size: tuple[float, float],
    formats: Iterable[str],
    name: str,
    warn: Callable[[str], None],
) -> dict[str, bytes]:
    """Return a figure's files by format, "png" or "svg"; if it cannot be drawn, no file and a warning.

    A PNG is on white, as a viewer has anything behind a file. `name` is that of the figure in the warning.
    """
    found = {}
    try:
        with drawn(draw, size) as figure:
            for kind in formats:
                content = BytesIO()
                paper = "white" if kind == "png" else "none"
                figure.savefig(content, format=kind, facecolor=paper, metadata={_DATED[kind]: None})
                found[kind] = content.getvalue()
    except Exception as cause:  # whatever matplotlib raises, its fonts, its caches and the user's settings
        reason = textwrap.shorten(str(cause) or type(cause).__name__, 200, placeholder=" ...")
        warn(f"{name} could not be drawn ({reason}); nothing else depends on it")
        return {}
    return found


_DATED = {"png": "Software", "svg": "Date"}
"""The metadata that make the bytes of a file depend on more than the figure."""


def _import_matplotlib() -> None:
    """Import matplotlib, also where MPLBACKEND names nothing that it knows: files need no window."""
    if "matplotlib" in sys.modules:
        return
    backend = os.environ.pop("MPLBACKEND", None)
    try:
        import matplotlib as mpl
    finally:
        if backend is not None:
            os.environ["MPLBACKEND"] = backend
    if backend:
        with suppress(ValueError):
            mpl.rcParams["backend"] = backend  # as the import does, for other windows of this process
