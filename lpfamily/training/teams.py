"""The processes that train one run together: one leads, the others take part in what its trainer does."""

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
"""The seconds after which a process that does not answer is given up; an ended one is noticed at once."""


Scalar = TypeVar("Scalar", bound=np.generic)
Exchange = Callable[[NDArray[Any]], Iterable[NDArray[Any]]]
"""Returns what all processes give, arrays of one shape, by rank."""


class Lost(OSError):
    """Another process of the team has ended, or does not answer."""


class Team(Protocol):
    """What a backend's library does for them. All processes call the same methods in the same order."""

    @property
    def rank(self) -> int:
        """Which of them this one is; 0 leads."""

    @property
    def size(self) -> int:
        """How many they are."""

    def share(self, content: bytes) -> bytes:
        """Return what the leader gives, in every process; what the others give is not looked at."""

    def gather(self, rows: Floats) -> Floats:
        """Return the rows that the processes give, (n, ...), after one another by rank, in every process."""

    def leave(self) -> None:
        """Part from the others."""


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


def own(team: Team, examples: int) -> slice:
    """Return which of some examples this process has: consecutive ones, as many as any other or one more."""
    return slice(examples * team.rank // team.size, examples * (team.rank + 1) // team.size)


def gathered(rows: NDArray[Scalar], exchange: Exchange) -> NDArray[Scalar]:
    """Return the rows of all processes, which may be more in one than in another."""
    lengths = [int(length[0]) for length in exchange(np.array([len(rows)]))]
    padded = np.zeros((max(lengths), *rows.shape[1:]), rows.dtype)
    padded[: len(rows)] = rows
    return np.concatenate([each[:length] for each, length in zip(exchange(padded), lengths, strict=True)])


def number(variable: str, least: int, below: int, remedy: str) -> int:
    """Return what an environment variable says, or raise `BadInput` if that is no such whole number."""
    text = os.environ.get(variable, "")
    if not (text.isascii() and text.isdecimal() and len(text) < 10 and least <= int(text) < below):
        raise BadInput(
            f"{variable} must be a whole number from {least} to {below - 1}; got {text!r}: {remedy}"
        )
    return int(text)
