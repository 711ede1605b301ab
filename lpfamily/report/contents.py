"""The contents of a report as data: tables and figures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Cell = str | float | None


@dataclass(frozen=True)
class Column:
    """A column of a table: numbers are shown in `format`, text as it is, None as an empty cell."""

    head: str
    format: str = "{}"


@dataclass(frozen=True)
class Table:
    """A table, whose first column names the rows."""

    name: str
    """The name of its files, such as table6."""
    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    notes: tuple[str, ...] = ()
    """Sentences below the table: the meaning of its columns, and what a reader must know."""


@dataclass(frozen=True)
class Plot:
    """A figure, drawn on demand.

    `draw` receives an empty matplotlib figure of `size` inches, on which text and axes are in `INK`. Anything
    else that should have the colour of the page's text uses `INK` too. Series use `COLOURS`, which are
    readable on light and on dark pages.
    """

    name: str
    title: str
    alt: str
    """The figure in words, for readers who cannot see it: a sentence or two with the numbers that matter."""
    draw: Callable[[Figure], None]
    size: tuple[float, float] = (7.0, 3.2)
    notes: tuple[str, ...] = ()


Item = Table | Plot


def columns(*groups: tuple[str, ...]) -> tuple[Column, ...]:
    """Return columns from groups; a group is a format and the heads of the columns in this format."""
    return tuple(Column(head, form) for form, *heads in groups for head in heads)


TEXT, PERCENT = "{}", "{:.2%}"
"""The formats of text and of fractions."""
INK = "#010203"
"""Nearly black; the page replaces it by the colour of its text."""
COLOURS = ("#2f7ed8", "#e0603f", "#3a9e5c", "#a064c8", "#c08a1e", "#5f8a9c", "#d14f8b")
