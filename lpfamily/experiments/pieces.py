"""What a reproduction is made of: measurements that are kept, and what is said of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from lpfamily.training.files import Json as Json
from lpfamily.training.progress import Tick

if TYPE_CHECKING:  # what measures loads nothing of the report
    from lpfamily.report.contents import Item

Budget = Literal["quick", "paper"]

Verdict = Literal["ahead of", "level with", "behind"]
"""Where a number of ours is beside the paper's."""
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)


@dataclass(frozen=True)
class Setting:
    """What a reproduction is made with."""

    out: Path
    data_dir: Path | None
    backend: str = "numpy"
    device: str = "cpu"
    budget: Budget = "quick"
    seeds: int | None = None
    """How many runs of each network there are, from seed 0; None is what a measurement takes by itself."""
    jobs: int = 1
    """How many networks are trained at once, each in a process of one thread."""
    runs: tuple[Path, ...] = ()
    """Folders of runs to take where they are what is needed."""


@dataclass(frozen=True)
class Measurement:
    """Something that takes its time; its result is JSON and is kept in OUT/measured/NAME.json."""

    name: str
    measure: Callable[[Setting, Tick], Json]
    cost: float = 1.0
    """About how many minutes it takes at the quick budget on two cores, for the time that is left."""
    seeds: Callable[[Setting], int] | None = None
    """How many seeds it takes, None where `Setting.seeds` changes nothing."""
    depends: tuple[str, ...] = ("backend", "budget")
    """The other fields of `Setting` that change its result."""
    networks: tuple[str, ...] = ()
    """The networks that it is measured on."""
    data: tuple[str, ...] = ("mnist",)
    """The data sets that it is measured on."""


@dataclass(frozen=True)
class Piece:
    """A table or figure of the paper, or of what the paper could not say."""

    name: str
    """As in the command, such as table6."""
    measurements: tuple[Measurement, ...]
    report: Callable[..., Iterable[Item]]
    """report(setting, *results) gives what the results of the measurements are."""
    within: str = ""
    """Another piece that says all of it, where both are on the page."""
    finding: Callable[..., str] | None = None
    """finding(setting, *results) says in a sentence or two what the first item of the report shows."""
    verdicts: Callable[..., dict[str, Verdict]] | None = None
    """verdicts(setting, *results) says of each number of the paper, by what it is of, where ours is."""


@dataclass(frozen=True)
class Chapter:
    """A section of the page."""

    title: str
    text: str
    """A paragraph, marked up like those of a `page.Section`."""
    pieces: tuple[Piece, ...]
