"""What a long command shows: bars on a terminal, and lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Protocol

Metrics = dict[str, float]

Report = Callable[[Metrics, int], None]
"""report(metrics, examples) says that an epoch is done."""


class Tick(Protocol):
    """What a part of the work says of its progress."""

    def __call__(self, done: float, of: float, what: str = "") -> None:
        """Say that so much of the whole is done, in any unit."""


Part = Callable[[str], AbstractContextManager[Tick]]
"""part(name) is the time that a part of the work takes, and gives its tick."""

HALF_A_MINUTE = 30.0


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
    def epochs(self, total: int, done: int, stage: str = "") -> Iterator[Report]:
        """Show at most `total` epochs of a stage, of which `done` were there before."""
        if self.quiet:
            yield lambda metrics, examples: None
        elif sys.stderr.isatty():
            from tqdm import tqdm

            with tqdm(total=total, initial=done, unit="epoch", desc=stage or None, dynamic_ncols=True) as bar:

                def advance(metrics: Metrics, examples: int) -> None:
                    bar.set_postfix_str(_summary(metrics, examples), refresh=False)
                    bar.update()

                yield advance
        else:

            def write(metrics: Metrics, examples: int) -> None:
                nonlocal done
                done += 1
                left = (total - done) * metrics["seconds"]
                summary = _summary(metrics, examples)
                sys.stderr.write(
                    f"{stage and stage + ', '}epoch {done}/{total}: {summary}, {left:.0f} s left\n"
                )

            yield write

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


def _summary(metrics: Metrics, examples: int) -> str:
    if "held_out_loss" in metrics:
        judged = f"held-out loss {metrics['held_out_loss']:.4g}"
    elif "validation_error" in metrics:
        judged = f"validation error {metrics['validation_error']:.2%}"
    else:
        judged = f"training error {metrics['error']:.2%}"
    return f"loss {metrics['loss']:.4g}, {judged}, {examples / metrics['seconds']:,.0f} examples/s"
