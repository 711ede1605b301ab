"""The processes that train one run together: one leads, and all take part in the work of its trainer."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from lpfamily.training.errors import BadInput
from lpfamily.training.networks import Floats

TIMEOUT = 600
"""The seconds to wait for a process that does not answer. One that has ended is noticed at once."""


Scalar = TypeVar("Scalar", bound=np.generic)
Exchange = Callable[[NDArray[Any]], Iterable[NDArray[Any]]]
"""Takes the array of this process and returns those of all processes, by rank; all have the same shape."""


class Lost(OSError):
    """Another process of the team has ended, or does not answer."""


class Team(Protocol):
    """Communication of the processes, by a backend's library. All call the same methods in the same order."""

    @property
    def rank(self) -> int:
        """The number of this process; 0 is the leader."""

    @property
    def size(self) -> int:
        """The number of processes."""

    def share(self, content: bytes) -> bytes:
        """Return the leader's content in every process; the content of the others is ignored."""

    def gather(self, rows: Floats) -> Floats:
        """Return the rows of all processes, (n, ...), concatenated by rank, in every process."""

    def leave(self) -> None:
        """Leave the team."""


@dataclass(frozen=True)
class Alone:
    """The team of one process."""

    rank: int = 0
    size: int = 1

    def share(self, content: bytes) -> bytes:
        """Return the content."""
        return content

    def gather(self, rows: Floats) -> Floats:
        """Return the rows."""
        return rows

    def leave(self) -> None:
        """Do nothing."""


ALONE = Alone()


def local_slice(team: Team, examples: int) -> slice:
    """Return the slice of a batch of `examples` that this process has; sizes differ by at most one."""
    return slice(examples * team.rank // team.size, examples * (team.rank + 1) // team.size)


def gathered(rows: NDArray[Scalar], exchange: Exchange) -> NDArray[Scalar]:
    """Return the rows of all processes, concatenated; each may have another number of rows."""
    lengths = [int(length[0]) for length in exchange(np.array([len(rows)]))]
    padded = np.zeros((max(lengths), *rows.shape[1:]), rows.dtype)
    padded[: len(rows)] = rows
    return np.concatenate([each[:length] for each, length in zip(exchange(padded), lengths, strict=True)])


def number(variable: str, least: int, below: int, remedy: str) -> int:
    """Return an environment variable as a whole number in [least, below), or raise `BadInput`."""
    text = os.environ.get(variable, "")
    if not (text.isascii() and text.isdecimal() and len(text) < 10 and least <= int(text) < below):
        raise BadInput(
            f"{variable} must be a whole number from {least} to {below - 1}; got {text!r}: {remedy}"
        )
    return int(text)
