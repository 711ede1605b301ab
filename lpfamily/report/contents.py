"""What a report holds, as data: tables and figures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Cell = str | float | None


@dataclass(frozen=True)
class Column:
    """A column of a table; its numbers are shown in `format`, text as it is, None as nothing."""

    head: str
    format: str = "{}"


@dataclass(frozen=True)
class Table:
    """A table, whose first column names the rows."""

    name: str
    """Of its files, such as table6."""
    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    notes: tuple[str, ...] = ()
    """What a reader must know beside the numbers: sentences."""


@dataclass(frozen=True)
class Plot:
    """A figure, drawn when it is asked for.

    `draw` is given an empty matplotlib figure of `size` inches, on which text and axes have `INK`, as has
    anything else that is to have the colour of the page's text; series have `COLOURS`, which are readable
    on light and on dark pages.
    """

    name: str
    title: str
    alt: str
    """What it shows, for those who do not see it: a sentence or two with the numbers that matter."""
    draw: Callable[[Figure], None]
    size: tuple[float, float] = (7.0, 3.2)
    notes: tuple[str, ...] = ()


Item = Table | Plot


def columns(*groups: tuple[str, ...]) -> tuple[Column, ...]:
    """Return columns by groups, each a format and the heads of the columns that have it."""
    return tuple(Column(head, form) for form, *heads in groups for head in heads)


TEXT, PERCENT = "{}", "{:.2%}"
"""The format of a fraction in most columns."""
INK = "#010203"
"""Black, and in the page whatever the colour of the text is."""
COLOURS = ("#2f7ed8", "#e0603f", "#3a9e5c", "#a064c8", "#c08a1e", "#5f8a9c", "#d14f8b")
