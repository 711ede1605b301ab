"""Progress of long commands: bars on a terminal, lines elsewhere."""

from __future__ import annotations

import statistics
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

Metrics = dict[str, float]


class Tick(Protocol):
    """A function that reports progress."""

    def __call__(self, done: float, of: float, what: str = "") -> None:
        """Report that `done` of `of` is done, in any unit."""


Part = Callable[[str], AbstractContextManager[Tick]]
"""part(name) is a context for one part of the work, and yields its tick."""

HALF_A_MINUTE = 30.0


class Epochs:
    """A display of epochs that shows nothing; subclasses show them."""

    def tick(self, done: float, of: float, what: str = "") -> None:
        """Report the progress within an epoch: a `Tick`."""

    def report(self, metrics: Metrics, examples: int, fewest: float, most: float) -> None:
        """Report that an epoch of `examples` examples has ended, and `fewest` to `most` are to come."""


@dataclass(frozen=True)
class Progress:
    """Progress on stderr; if quiet, only warnings."""

    quiet: bool = False

    def note(self, line: str) -> None:
        """Print a line, unless quiet."""
        if not self.quiet:
            sys.stderr.write(line + "\n")

    def warn(self, line: str) -> None:
        """Print a warning, even if quiet, without breaking the bar."""
        if sys.stderr.isatty():
            from tqdm import tqdm

            tqdm.write(f"warning: {line}", file=sys.stderr)
        else:
            sys.stderr.write(f"warning: {line}\n")

    @contextmanager
    def epochs(self, total: int, done: int, stage: str = "") -> Iterator[Epochs]:
        """Show the epochs of a stage, at most `total`, of which `done` were trained before."""
        if self.quiet:
            yield Epochs()
        elif sys.stderr.isatty():
            from tqdm import tqdm

            form = "{desc}{percentage:3.0f}%|{bar}| {n:.1f}/{total} [{elapsed}{postfix}]"
            with tqdm(
                total=total, initial=done, desc=stage or None, bar_format=form, dynamic_ncols=True
            ) as bar:
                yield _EpochsInABar(total, done, stage, bar)
        else:
            yield _EpochsInLines(total, done, stage)

    @contextmanager
    def parts(self, costs: Mapping[str, float]) -> Iterator[Part]:
        """Show the parts of the work one after another, by name; their costs give the time left in all."""
        if self.quiet or not costs:
            yield lambda name: nullcontext(silent)
        elif sys.stderr.isatty():
            with _bars(costs) as part:
                yield part
        else:
            yield _lines


def silent(done: float, of: float, what: str = "") -> None:
    """Show nothing: the tick of a quiet `Progress`."""


@contextmanager
def _bars(costs: Mapping[str, float]) -> Iterator[Part]:
    """Yield parts that share a bar; if there are several, a bar above it shows the whole."""
    from tqdm import tqdm

    form = "{desc:24.24} {percentage:3.0f}% |{bar}| {elapsed}, {remaining} left{postfix}"
    total, several = sum(costs.values()), len(costs) > 1
    with (
        tqdm(total=total, desc="all", bar_format=form, dynamic_ncols=True, disable=not several) as whole,
        tqdm(total=1.0, bar_format=form, dynamic_ncols=True) as bar,
    ):
        ended = 0.0

        @contextmanager
        def part(name: str) -> Iterator[Tick]:
            nonlocal ended
            bar.set_description_str(name, refresh=False)
            bar.reset()

            def tick(done: float, of: float, what: str = "") -> None:
                share = done / of if of else 1.0
                bar.set_postfix_str(what, refresh=False)
                for each, at in (bar, share), (whole, ended + share * costs[name]):
                    each.n = min(at, each.total)
                    each.refresh()

            yield tick
            tick(1, 1)
            ended += costs[name]

        yield part


@contextmanager
def _lines(name: str) -> Iterator[Tick]:
    """Print a line when a part begins, at most every half minute, and when it ends; yield its tick."""
    begun = printed = time.monotonic()
    sys.stderr.write(f"{name}: begun\n")

    def tick(done: float, of: float, what: str = "") -> None:
        nonlocal printed
        now = time.monotonic()
        if now - printed >= HALF_A_MINUTE:
            printed, share = now, done / of if of else 1.0
            left = f", {(now - begun) * (1 - share) / share:.0f} s left" if share else ""
            sys.stderr.write(f"{name}: {share:.0%}{left}{what and ', ' + what}\n")

    yield tick
    sys.stderr.write(f"{name}: done in {time.monotonic() - begun:.0f} s\n")


@dataclass(eq=False)
class _ShownEpochs(Epochs, ABC):
    """A display of epochs that times them by the clock, including the work between them."""

    total: int
    done: int
    stage: str
    pause: ClassVar[float]
    """The seconds between updates within an epoch."""

    def __post_init__(self) -> None:
        self.begun = self.shown = time.monotonic()
        self.seconds: list[float] = []

    def tick(self, done: float, of: float, what: str = "") -> None:
        if (now := time.monotonic()) - self.shown >= self.pause:
            self.shown = now
            self._within(done / of, (now - self.begun) * (of / done - 1))

    def report(self, metrics: Metrics, examples: int, fewest: float, most: float) -> None:
        now = time.monotonic()
        self.seconds.append(now - self.begun)
        self.begun = self.shown = now
        self.done += 1
        each = statistics.median(self.seconds)  # the first epoch includes compilation, later ones do not
        self._ended(f"{_summary(metrics, examples)}, {_left(fewest * each, most * each)}")

    @abstractmethod
    def _within(self, share: float, left: float) -> None:
        """Show the finished share of an epoch, and the seconds left in it."""

    @abstractmethod
    def _ended(self, summary: str) -> None:
        """Show that an epoch has ended."""


class _EpochsInLines(_ShownEpochs):
    pause = HALF_A_MINUTE

    def _within(self, share: float, left: float) -> None:
        self._print(self.done + 1, f"{share:.0%}, {_duration(left)} of it left")

    def _ended(self, summary: str) -> None:
        self._print(self.done, summary)

    def _print(self, epoch: int, what: str) -> None:
        sys.stderr.write(f"{self.stage and self.stage + ', '}epoch {epoch}/{self.total}: {what}\n")


@dataclass(eq=False)
class _EpochsInABar(_ShownEpochs):
    bar: Any
    pause = 0.1

    def _within(self, share: float, left: float) -> None:
        self.bar.n = self.done + share
        self.bar.refresh()

    def _ended(self, summary: str) -> None:
        self.bar.n = self.done
        self.bar.set_postfix_str(summary)


def _left(fewest: float, most: float) -> str:
    """Return the time left in words, from the least and the largest number of seconds."""
    least, longest = map(_duration, (fewest, most))
    if not fewest < most:
        return f"{longest} left"
    return f"{least} to {longest} left" if fewest else f"at most {longest} left"


def _duration(seconds: float) -> str:
    for unit, name, of_next in ((1, "s", 100), (60, "min", 100), (3600, "h", 48)):
        if seconds < of_next * unit:
            return f"{seconds / unit:.3g} {name}" if unit == 3600 else f"{seconds / unit:.0f} {name}"
    return f"{seconds / 86400:.3g} days"


def _summary(metrics: Metrics, examples: int) -> str:
    if "held_out_loss" in metrics:
        judged = f"held-out loss {metrics['held_out_loss']:.4g}"
    elif "validation_error" in metrics:
        judged = f"validation error {metrics['validation_error']:.2%}"
    elif "error" in metrics:
        judged = f"training error {metrics['error']:.2%}"
    else:
        judged = ""
    items = f"loss {metrics['loss']:.4g}", judged, f"{examples / metrics['seconds']:,.0f} examples/s"
    return ", ".join(filter(None, items))
