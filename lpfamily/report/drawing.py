"""Draw figures in one style, for a page and as files."""

from __future__ import annotations

import os
import sys
import textwrap
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from io import BytesIO
from typing import TYPE_CHECKING, Literal

from lpfamily.report.contents import COLOURS, INK

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_STYLE = {
    # the first comes with matplotlib, so that the layout is the same on every machine
    "font.sans-serif": ["DejaVu Sans", "Verdana", "Helvetica", "Arial", "sans-serif"],
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "grid.color"), INK),
    **dict.fromkeys(("xtick.color", "ytick.color"), INK),
    **dict.fromkeys(("axes.facecolor", "savefig.facecolor"), "none"),
    **dict.fromkeys(("axes.spines.top", "axes.spines.right", "legend.frameon"), False),
    "axes.prop_cycle": f"cycler(color={list(COLOURS)})",
    "axes.titlesize": "medium",
    "figure.titlesize": 11,
    "grid.alpha": 0.15,
    # ticks read 2.303, not 0.003 with an offset of 2.3
    "axes.formatter.useoffset": False,
    "savefig.dpi": 150,
    "svg.fonttype": "none",
    "svg.hashsalt": "lpfamily",
}


@contextmanager
def drawn(draw: Callable[[Figure], None], size: tuple[float, float]) -> Iterator[Figure]:
    """Yield a figure of `size` inches after `draw` has drawn on it, to be saved before the context ends.

    It has no background, and `INK` for text and axes, whatever matplotlib settings the user has.
    """
    _import_matplotlib()
    from matplotlib import style
    from matplotlib.figure import Figure

    with style.context(["default", _STYLE]):
        figure = Figure(figsize=size, layout="constrained")
        draw(figure)
        yield figure


def legend_below(figure: Figure, columns: int, size: float | None = None) -> None:
    """Put one legend for all axes below them, in so many columns; each label appears once."""
    labelled = {
        label: handle
        for axes in figure.axes
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    if labelled:
        figure.legend(
            labelled.values(), labelled, loc="outside lower center", ncols=columns, fontsize=size or "medium"
        )


def plain_logarithm(axes: Axes, name: Literal["x", "y"], linear_to: float = 0.0) -> None:
    """Make an axis logarithmic, with ticks such as 0.01, 0.1 and 1; it is linear from 0 to `linear_to`.

    A y-axis whose data span less than three decades has ticks at 2 and 5 too.
    """
    from matplotlib import ticker

    low, high = getattr(axes.dataLim, f"interval{name}")
    subs = (1.0,) if name == "x" or high >= 1000 * max(low, linear_to) else (1.0, 2.0, 5.0)
    axis, set_scale = (getattr(axes, each) for each in (f"{name}axis", f"set_{name}scale"))
    if linear_to:
        set_scale("symlog", linthresh=linear_to, linscale=0.5)
        axis.set_major_locator(ticker.SymmetricalLogLocator(base=10, linthresh=linear_to, subs=subs))
    else:
        set_scale("log")
        axis.set_major_locator(ticker.LogLocator(subs=subs))
    axis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(ticker.NullLocator())


def entitle(figure: Figure, title: str) -> None:
    """Put a title above all axes of a figure; the figure grows by the lines that the title needs."""
    if not title:
        return
    width, height = figure.get_size_inches()
    # a folder's name in a title may be invalid Unicode, and may have dollar signs
    text, most = title.encode(errors="backslashreplace").decode(), round(12 * width)
    count = len(textwrap.wrap(text, most))
    # the narrowest wrapping with the same number of lines, so that no line is a single word
    lines = next(
        wrapped for limit in range(1, most + 1) if len(wrapped := textwrap.wrap(text, limit)) == count
    )
    figure.set_size_inches(width, height + LINE * len(lines))
    figure.suptitle("\n".join(lines), parse_math=False)


def rendered(
    draw: Callable[[Figure], None],
    size: tuple[float, float],
    formats: Iterable[str],
    name: str,
    warn: Callable[[str], None],
    title: str = "",
) -> dict[str, bytes]:
    """Return the files of a figure by format, "png" or "svg"; if drawing fails, warn and return none.

    A PNG is viewed by itself, so it has a white background and a title. An SVG is for pages, which have a
    caption. `name` is the name of the figure in the warning.
    """
    contents, formats = {}, tuple(formats)
    try:
        with warnings.catch_warnings(), drawn(draw, size) as figure:
            warnings.filterwarnings("ignore", "Glyph .* missing")  # a missing glyph is drawn as a box
            for kind in sorted(formats, reverse=True):  # the SVG has no title
                if kind == "png":
                    entitle(figure, title)
                content = BytesIO()
                paper = "white" if kind == "png" else "none"
                figure.savefig(content, format=kind, facecolor=paper, metadata={_DATED[kind]: None})
                contents[kind] = content.getvalue()
    except Exception as cause:  # matplotlib, its fonts, its caches and the user's settings may raise anything
        reason = textwrap.shorten(str(cause) or type(cause).__name__, 200, placeholder=" ...")
        warn(f"{name} could not be drawn ({reason}); nothing else depends on it")
        return {}
    return {kind: contents[kind] for kind in formats}


LINE = 0.24
"""Height of a line of a title, in inches."""
_DATED = {"png": "Software", "svg": "Date"}
"""Metadata that would make the bytes of a file depend on the date or on the version of matplotlib."""


def _import_matplotlib() -> None:
    """Import matplotlib even if MPLBACKEND names an unknown backend, as files need no window."""
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
            mpl.rcParams["backend"] = backend  # as the import does, for other figures of this process
