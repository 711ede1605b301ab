"""What a long command shows: a bar on a terminal, a line an epoch elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

Report = Callable[[dict[str, Any], int], None]
"""report(metrics, examples) says that an epoch is done."""


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

                def advance(metrics: dict[str, Any], examples: int) -> None:
                    bar.set_postfix_str(_summary(metrics, examples), refresh=False)
                    bar.update()

                yield advance
        else:

            def write(metrics: dict[str, Any], examples: int) -> None:
                nonlocal done
                done += 1
                left = (total - done) * metrics["seconds"]
                summary = _summary(metrics, examples)
                sys.stderr.write(
                    f"{stage and stage + ', '}epoch {done}/{total}: {summary}, {left:.0f} s left\n"
                )

            yield write


def _summary(metrics: dict[str, Any], examples: int) -> str:
    parts = [f"loss {metrics['loss']:.4g}"]
    if "held_out_loss" in metrics:
        parts.append(f"held-out loss {metrics['held_out_loss']:.4g}")
    elif "validation_error" in metrics:
        parts.append(f"validation error {metrics['validation_error']:.2%}")
    else:
        parts.append(f"training error {metrics['error']:.2%}")
    parts.append(f"{examples / metrics['seconds']:,.0f} examples/s")
    return ", ".join(parts)
