"""A run's metrics as TensorBoard's event files, by TensorBoard's own writer, which needs no other library."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from lpfamily.training.errors import BadInput
from lpfamily.training.runs import Run

EVENTS = "events.out.tfevents.*"
"""How the writer names its files."""


@contextmanager
def logging(run: Run) -> Iterator[list[Callable[[Mapping[str, float]], None]]]:
    """Give the callbacks that log each epoch into the run folder; epochs before come first, once.

    Each number of `metrics.jsonl` but the epoch is a scalar of its name, and the epoch is its step. Every
    time that training goes on adds a file, and TensorBoard shows all of them as one run.

    Raises
    ------
    BadInput
        TensorBoard cannot be imported.
    """
    is_new = not any(run.folder.glob(EVENTS))
    with run.writing(EVENTS):
        log = writer()(str(run.folder))

    def write(metrics: Mapping[str, float]) -> None:
        with run.writing(EVENTS):
            for name in metrics.keys() - {"epoch"}:
                log.add_scalar(name, metrics[name], int(metrics["epoch"]))
            log.flush()

    try:
        for line in run.metrics() if is_new else ():
            write(line)
        yield [write]
    finally:
        log.close()


def writer() -> Callable[[str], Any]:
    """Return TensorBoard's class of writers, or raise `BadInput` where it cannot be imported."""
    try:
        from tensorboard.summary import Writer
    except ImportError as cause:
        raise BadInput(
            f"--log tensorboard: TensorBoard cannot be imported ({cause}); pip install tensorboard"
        ) from cause
    made: Callable[[str], Any] = Writer
    return made
