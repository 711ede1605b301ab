"""The parts of a reproduction: settings, measurements, experiments that report them, and chapters."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from lpfamily.training.files import Json as Json
from lpfamily.training.progress import Tick

if TYPE_CHECKING:  # measuring must not load the report
    from lpfamily.report.contents import Item

Budget = Literal["quick", "paper"]

Verdict = Literal["ahead of", "level with", "behind"]
"""How one of our numbers compares with the paper's."""
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)


@dataclass(frozen=True)
class Setting:
    """The options of a reproduction."""

    out: Path
    data_dir: Path | None
    backend: str = "numpy"
    device: str = "cpu"
    budget: Budget = "quick"
    seeds: int | None = None
    """Number of runs of each network, from seed 0; None leaves it to the measurement."""
    jobs: int = 1
    """Number of networks that are trained at the same time, each in a process of one thread."""
    runs: tuple[Path, ...] = ()
    """Folders of finished runs to use instead of training, where the recipe is the same."""


@dataclass(frozen=True)
class Measurement:
    """A measurement, whose result is JSON and is saved in OUT/measured/NAME.json."""

    name: str
    measure: Callable[[Setting, Tick], Json]
    cost: float = 1.0
    """Approximate minutes with the quick budget on two cores, for the estimate of the remaining time."""
    seeds: Callable[[Setting], int] | None = None
    """The number of seeds for a setting; None if the measurement does not depend on seeds."""
    depends: tuple[str, ...] = ("backend", "budget")
    """The other fields of `Setting` that the result depends on."""
    networks: tuple[str, ...] = ()
    """The networks that are measured."""
    data: tuple[str, ...] = ("mnist",)
    """The data sets that are used."""


@dataclass(frozen=True)
class Experiment:
    """A table or figure of the paper, or one that the paper lacks: its measurements and its report."""

    name: str
    """The name in the command, such as table6."""
    measurements: tuple[Measurement, ...]
    report: Callable[..., Iterable[Item]]
    """report(setting, *results) returns tables and figures of the measurements' results."""
    within: str = ""
    """Another experiment that contains this one; if both have results, the page shows only the other."""
    finding: Callable[..., str] | None = None
    """finding(setting, *results) returns a sentence or two on what the first item of the report shows."""
    verdicts: Callable[..., dict[str, Verdict]] | None = None
    """verdicts(setting, *results) compares our numbers with the paper's, by the name of each number."""


@dataclass(frozen=True)
class Chapter:
    """A section of the page."""

    title: str
    text: str
    """A paragraph, marked up like those of a `page.Section`."""
    experiments: tuple[Experiment, ...]
