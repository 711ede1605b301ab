"""What a long command shows: bars on a terminal, and lines elsewhere."""

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
    """What a part of the work says of its progress."""

    def __call__(self, done: float, of: float, what: str = "") -> None:
        """Say that so much of the whole is done, in any unit."""


Part = Callable[[str], AbstractContextManager[Tick]]
"""part(name) is the time that a part of the work takes, and gives its tick."""

HALF_A_MINUTE = 30.0


class Epochs:
    """What shows nothing of epochs; others show them."""

    def tick(self, done: float, of: float, what: str = "") -> None:
        """Say how much of an epoch is done: a `Tick`."""

    def report(self, metrics: Metrics, examples: int, fewest: float, most: float) -> None:
        """Say that an epoch of so many examples is done, and how many are still to come."""


@dataclass(frozen=True)
class Progress:
    """Progress on stderr, or warnings alone if quiet."""

    quiet: bool = False

    def note(self, line: str) -> None:
        """Say something once."""
        if not self.quiet:
            sys.stderr.write(line + "\n")

    def warn(self, line: str) -> None:
        """Say what must not be missed, also if quiet, and without breaking the bar."""
        if sys.stderr.isatty():
            from tqdm import tqdm

            tqdm.write(f"warning: {line}", file=sys.stderr)
        else:
            sys.stderr.write(f"warning: {line}\n")

    @contextmanager
    def epochs(self, total: int, done: int, stage: str = "") -> Iterator[Epochs]:
        """Show at most `total` epochs of a stage, of which `done` were there before."""
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
        """Show the parts of some work, one after another, by name; their costs tell what is left of all."""
        if self.quiet or not costs:
            yield lambda name: nullcontext(silent)
        elif sys.stderr.isatty():
            with _bars(costs) as part:
                yield part
        else:
            yield _lines


def silent(done: float, of: float, what: str = "") -> None:
    """Show nothing: the tick of what is quiet."""


@contextmanager
def _bars(costs: Mapping[str, float]) -> Iterator[Part]:
    """Give parts that share a bar, below the bar of all of them if there are several."""
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
    """Give a part that says a line when it begins, every half minute at most, and when it ends."""
    begun = said = time.monotonic()
    sys.stderr.write(f"{name}: begun\n")

    def tick(done: float, of: float, what: str = "") -> None:
        nonlocal said
        now = time.monotonic()
        if now - said >= HALF_A_MINUTE:
            said, share = now, done / of if of else 1.0
            left = f", {(now - begun) * (1 - share) / share:.0f} s left" if share else ""
            sys.stderr.write(f"{name}: {share:.0%}{left}{what and ', ' + what}\n")

    yield tick
    sys.stderr.write(f"{name}: done in {time.monotonic() - begun:.0f} s\n")


@dataclass(eq=False)
class _ShownEpochs(Epochs, ABC):
    """Epochs whose time is known: by the clock, with all that is done between them."""

    total: int
    done: int
    stage: str
    pause: ClassVar[float]
    """Seconds between what is said within an epoch."""

    def __post_init__(self) -> None:
        self.begun = self.said = time.monotonic()
        self.seconds: list[float] = []

    def tick(self, done: float, of: float, what: str = "") -> None:
        if (now := time.monotonic()) - self.said >= self.pause:
            self.said = now
            self._within(done / of, (now - self.begun) * (of / done - 1))

    def report(self, metrics: Metrics, examples: int, fewest: float, most: float) -> None:
        now = time.monotonic()
        self.seconds.append(now - self.begun)
        self.begun = self.said = now
        self.done += 1
        each = statistics.median(self.seconds)  # compiling, in the first, is not what is to come
        self._ended(f"{_summary(metrics, examples)}, {_left(fewest * each, most * each)}")

    @abstractmethod
    def _within(self, share: float, left: float) -> None:
        """Show how much of an epoch is done, and the seconds that it still takes."""

    @abstractmethod
    def _ended(self, summary: str) -> None:
        """Show that an epoch has ended."""


class _EpochsInLines(_ShownEpochs):
    pause = HALF_A_MINUTE

    def _within(self, share: float, left: float) -> None:
        self._say(self.done + 1, f"{share:.0%}, {_duration(left)} of it left")

    def _ended(self, summary: str) -> None:
        self._say(self.done, summary)

    def _say(self, epoch: int, what: str) -> None:
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
    """Return how long it still takes, from two numbers of seconds."""
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
    said = f"loss {metrics['loss']:.4g}", judged, f"{examples / metrics['seconds']:,.0f} examples/s"
    return ", ".join(filter(None, said))
