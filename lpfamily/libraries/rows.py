"""What NumPy's kernels do with the rows of an array: blocks of them, and one number for each."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

CACHE_BYTES = 1 << 20
"""For a block, its result and its scratch: half of a common second-level cache."""

PIECE = 1024
"""How many products NumPy may add one after another: the sum loses a few units in the last place."""

Floats = NDArray[Any]
Rows = NDArray[np.bool_]


THREADS_FROM = 1 << 25
"""Bytes of an array from which a step in several threads is worth their start."""

Block = TypeVar("Block")

_threads: ContextVar[int | None] = ContextVar("threads", default=None)


@contextmanager
def threads(count: int | None) -> Iterator[None]:
    """Let NumPy's kernels use so many threads inside; None leaves it to the environment.

    That is OMP_NUM_THREADS, or else the cores that this process may use; for torch's tensors it is
    torch.get_num_threads(). Results do not depend on it.
    """
    token = _threads.set(count)
    try:
        yield
    finally:
        _threads.reset(token)


@contextmanager
def threads_by_default(count: int) -> Iterator[None]:
    """Let NumPy's kernels use so many threads inside where no one has said how many."""
    with threads(_threads.get() or count):
        yield


def thread_count() -> int:
    """Return how many threads NumPy's kernels may use."""
    if (count := _threads.get()) is not None:
        return count
    asked = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
    if asked.isdecimal():
        return int(asked)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def share_out(work: Callable[[Sequence[Block]], None], blocks: Sequence[Block], size: int) -> None:
    """Do work(blocks), in threads with some of the blocks each where the array has many bytes."""
    count = min(thread_count(), len(blocks)) if size >= THREADS_FROM else 1
    if count < 2:
        work(blocks)
        return

    def alone(blocks: Sequence[Block]) -> None:
        with threads(1):
            work(blocks)

    with ThreadPoolExecutor(count) as pool:
        # NumPy's error state and buffer size are of the context
        done = [pool.submit(copy_context().run, alone, blocks[i::count]) for i in range(count)]
    for future in done:
        future.result()


def row_blocks(rows: Floats, arrays: int = 4) -> list[slice]:
    """Return blocks of rows, so many arrays of which stay in the cache."""
    step = max(1, CACHE_BYTES // (arrays * rows[0].nbytes))
    return [slice(start, start + step) for start in range(0, len(rows), step)]


def scratch(count: int, like: Floats) -> Floats:
    """Return arrays like this one that begin where a line of the cache does, which NumPy's do not."""
    size = -(-like.nbytes // 64) * 64
    memory = np.empty(count * size + 64, np.uint8)
    start = -memory.ctypes.data % 64
    return np.ndarray((count, *like.shape), like.dtype, memory, start, (size, *like.strides))


def dots(a: Floats, b: Floats, piece: int = PIECE) -> Floats:
    """Return the sum of products of each row, in float64."""
    pieces = a.shape[1] // piece
    if pieces < 2:
        return np.asarray(np.vecdot(a, b).astype(np.float64))
    first, second = (each[:, : pieces * piece].reshape(len(a), pieces, piece) for each in (a, b))
    rest = np.vecdot(a[:, pieces * piece :], b[:, pieces * piece :])
    total: Floats = np.vecdot(first, second).sum(axis=1, dtype=np.float64) + rest
    return total


def sizes(x: Floats, t: Floats) -> Floats:
    """Fill t with |x| and return the largest of each row: numbers are in the order of their bits."""
    np.abs(x, out=t)
    top: Floats = t.view(f"i{x.itemsize}").max(axis=1).view(x.dtype)
    return top


def scale_down(x: Floats, t: Floats, most: float = math.inf) -> Floats:
    """Fill t with |x| / unit, below 1 where `most` allows it, and return the units, powers of two."""
    unit = np.minimum(np.ldexp(1.0, np.frexp(sizes(x, t))[1]), most)
    np.multiply(t, (1 / unit).astype(x.dtype)[:, None], out=t)
    return unit


_SIGN_BITS: dict[int, Any] = {4: np.uint32(1 << 31), 8: np.uint64(1 << 63)}


def with_sign_of(x: Floats, u: Floats, t: Floats) -> Floats:
    """Give the entries of u, which are not negative, the signs of x."""
    sign = _SIGN_BITS[x.itemsize]
    bits = sign.dtype
    np.bitwise_and(x.view(bits), sign, out=t.view(bits))
    np.bitwise_or(u.view(bits), t.view(bits), out=u.view(bits))
    return u
