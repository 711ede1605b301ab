"""Rows of NumPy arrays: blocks of rows, threads, and reductions to one number per row."""

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
"""Size of a block with its result and scratch arrays: half of a common second-level cache."""

RUN = 1024
"""Number of products that NumPy may add one after another; their sum loses a few units in the last place."""

Floats = NDArray[Any]
Mask = NDArray[np.bool_]

THREADS_FROM = 1 << 25
"""Array size in bytes from which several threads gain more time than starting them costs."""

Block = TypeVar("Block")

_threads: ContextVar[int | None] = ContextVar("threads", default=None)


@contextmanager
def threads(count: int | None) -> Iterator[None]:
    """Set the number of threads for NumPy arrays inside this context; None leaves it to the environment.

    The environment's number is OMP_NUM_THREADS, or else the number of cores that this process may use; for
    torch's tensors it is torch.get_num_threads(). Results do not depend on the number.
    """
    token = _threads.set(count)
    try:
        yield
    finally:
        _threads.reset(token)


@contextmanager
def threads_by_default(count: int) -> Iterator[None]:
    """Set the number of threads for NumPy arrays inside this context, unless `threads` has set one."""
    with threads(_threads.get() or count):
        yield


def thread_count() -> int:
    """Return the number of threads that a function of NumPy arrays may use."""
    if (count := _threads.get()) is not None:
        return count
    setting = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
    if setting.isdecimal():
        return int(setting)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def share_out(work: Callable[[Sequence[Block]], None], blocks: Sequence[Block], size: int) -> None:
    """Call work(blocks); for an array of many bytes, share the blocks out to several threads."""
    count = min(thread_count(), len(blocks)) if size >= THREADS_FROM else 1
    if count < 2:
        work(blocks)
        return

    def work_in_one_thread(blocks: Sequence[Block]) -> None:
        with threads(1):
            work(blocks)

    with ThreadPoolExecutor(count) as pool:
        # each thread needs a copy of the context, which holds NumPy's error state and buffer size
        futures = [
            pool.submit(copy_context().run, work_in_one_thread, blocks[i::count]) for i in range(count)
        ]
    for future in futures:
        future.result()


def row_blocks(rows: Floats, arrays: int = 4) -> list[slice]:
    """Return blocks of rows so small that `arrays` arrays of a block's size stay in the cache."""
    step = max(1, CACHE_BYTES // (arrays * rows[0].nbytes))
    return [slice(start, start + step) for start in range(0, len(rows), step)]


def scratch(count: int, like: Floats) -> Floats:
    """Return `count` arrays like this one, each aligned with a cache line, which np.empty does not ensure."""
    size = -(-like.nbytes // 64) * 64
    memory = np.empty(count * size + 64, np.uint8)
    start = -memory.ctypes.data % 64
    return np.ndarray((count, *like.shape), like.dtype, memory, start, (size, *like.strides))


def dots(a: Floats, b: Floats, run: int = RUN) -> Floats:
    """Return the dot product of each row of a with that of b, in float64."""
    runs = a.shape[1] // run
    if runs < 2:
        return np.asarray(np.vecdot(a, b).astype(np.float64))
    first, second = (each[:, : runs * run].reshape(len(a), runs, run) for each in (a, b))
    rest = np.vecdot(a[:, runs * run :], b[:, runs * run :])
    total: Floats = np.vecdot(first, second).sum(axis=1, dtype=np.float64) + rest
    return total


def rough_dots(a: Floats, b: Floats) -> Floats:
    """Return `dots` in a third of the time; the sums may lose a little more precision."""
    return dots(a, b, run=4096)


def column(numbers: Any, dtype: Any) -> Floats:
    """Return one number per row as a column of this dtype."""
    result: Floats = np.asarray(numbers, dtype)[:, None]
    return result


def ones_like(x: Floats) -> Floats:
    """Return ones in the shape of x; memory holds one row of them."""
    return np.ndarray(x.shape, x.dtype, np.ones(x.shape[1], x.dtype), 0, (0, x.itemsize))


def sizes(x: Floats, t: Floats) -> Floats:
    """Fill t with |x| and return the maximum of each row.

    The bits are compared as integers, which have the same order.
    """
    np.abs(x, out=t)
    top: Floats = t.view(f"i{x.itemsize}").max(axis=1).view(x.dtype)
    return top


def scale_down(x: Floats, t: Floats, most: float = math.inf) -> Floats:
    """Fill t with |x| / unit, and return the units: one power of two per row, `most` at most.

    The quotients are below 1, unless `most` caps the unit.
    """
    unit = np.minimum(np.ldexp(1.0, np.frexp(sizes(x, t))[1]), most)
    np.multiply(t, (1 / unit).astype(x.dtype)[:, None], out=t)
    return unit


_SIGN_BITS: dict[int, Any] = {4: np.uint32(1 << 31), 8: np.uint64(1 << 63)}


def with_sign_of(x: Floats, u: Floats, t: Floats) -> Floats:
    """Give the entries of u, none of them negative, the signs of x."""
    sign = _SIGN_BITS[x.itemsize]
    bits = sign.dtype
    np.bitwise_and(x.view(bits), sign, out=t.view(bits))
    np.bitwise_or(u.view(bits), t.view(bits), out=u.view(bits))
    return u


def within(x: Floats, room: Floats, t: Floats) -> None:
    """Clip the entries of x to [-room, room]; t is scratch."""
    np.minimum(x, room, out=x)
    np.negative(room, out=t)
    np.maximum(x, t, out=x)
