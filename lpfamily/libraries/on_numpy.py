"""NumPy's implementations of the primitives, which evaluate one block of rows at a time.

The definitions read and write the whole array in main memory some twenty times. Here a block of rows stays
in the cache from start to end, and p decides once how the power is computed. One number per row shows the
rare rows (NaN, infinite, zero, subnormal). They are scaled and computed again; rows that are still not exact
go to the definition. So ordinary rows take only the operations that the mathematics needs.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from lpfamily.box import step_in_box
from lpfamily.libraries import Library, Primitive, multipliers
from lpfamily.libraries.powers import fastest_power
from lpfamily.libraries.rows import Floats, Mask, dots, row_blocks, scratch, share_out
from lpfamily.nearest import nearest
from lpfamily.steepest import steepest

BLOCKS_FROM = 1 << 14
"""Array size in bytes from which blocks save more time than they cost."""


@dataclass(frozen=True)
class Kernel:
    """A way to compute the steepest step of a block of rows, and the memory that it needs."""

    fill: Callable[..., tuple[Any, ...]]
    """fill(x, sigma, out, t) fills out, with t as scratch of x's shape, and returns statistics per row."""
    valid: Callable[..., Mask]
    """valid(sigma, *statistics) returns a mask of the rows whose result is exact."""
    scratch: bool = True
    """Whether it uses t."""
    working_arrays: int = 3
    """Number of block-sized arrays in use at a time."""
    zeroed: bool = False
    """Whether out must be 0 at the start."""


class NumpyLibrary(Library):
    """NumPy, which has no automatic differentiation."""

    def __init__(self) -> None:
        self.implementations = {
            steepest: _steepest,
            step_in_box: multipliers.step_in_box_rows,
            nearest: multipliers.nearest_rows,
        }

    def apply(self, primitive: Primitive, p: float, *operands: Floats) -> Floats:
        """Evaluate `primitive` on rows; without an implementation, evaluate the definition block by block."""
        x = operands[0]
        if x.size == 0:
            return np.asarray(primitive.value(p, *operands))
        batch = x.shape[:-1]
        evaluate = self.implementations.get(primitive)
        if evaluate is None:
            evaluate = functools.partial(_by_blocks, primitive.value)
        with self.unwarned():
            # With a larger buffer NumPy would first copy the column operands.
            np.setbufsize(16)
            result = evaluate(p, *[_rows(operand, batch) for operand in operands])
            return result.reshape(batch + result.shape[1:])

    def visible(self, x: Floats) -> bool:
        """Return True: the values are in memory."""
        return True

    def reach(self, grad: Floats, x: Floats, low: Any, high: Any, slack: Any) -> tuple[Floats, bool]:
        """Select by the bits of grad's sign, in blocks: selecting by a mask costs more than all the rest."""
        if grad.ndim == 0 or grad.nbytes < BLOCKS_FROM:
            return super().reach(grad, x, low, high, slack)
        grad = np.ascontiguousarray(grad, x.dtype)
        sides = [np.broadcast_to(np.asarray(side, x.dtype), x.shape) for side in (low, high)]
        room, bits = np.empty(x.shape, x.dtype), f"i{x.itemsize}"
        least = []

        def work(blocks: Sequence[slice]) -> None:
            up, signs = scratch(2, room[blocks[0]])
            for block in blocks:
                down, k = room[block], len(room[block])
                np.subtract(x[block], sides[0][block], out=down)
                np.subtract(sides[1][block], x[block], out=up[:k])
                least.extend([down.min(), up[:k].min()])
                # selected = down where the sign bit is set, else up
                selected, sign, other = down.view(bits), signs[:k].view(bits), up[:k].view(bits)
                np.right_shift(grad[block].view(bits), 8 * x.itemsize - 1, out=sign)
                selected ^= other
                selected &= sign
                selected ^= other

        share_out(work, row_blocks(room), room.nbytes)
        if all(each >= 0 for each in least):
            return room, True
        return super().reach(grad, x, low, high, slack)

    def per_row(self, function: Callable[..., Floats], reduces: bool, *operands: Floats) -> Floats:
        """Evaluate in blocks; an operand with one row is given to every block."""
        x = operands[0]
        if x.nbytes < BLOCKS_FROM:
            return np.asarray(super().per_row(function, reduces, *operands))
        flat = [each.reshape(-1, each.shape[-1]) for each in operands]
        with self.unwarned():
            results = [
                function(*(each if len(each) == 1 else each[block] for each in flat))
                for block in row_blocks(flat[0], 8)
            ]
        result = np.concatenate(results)
        return np.asarray(result.reshape(x.shape[:-1] + result.shape[1:]))

    def steps_of_leaves(self, p: float, leaves: Sequence[Floats], sigma: Floats) -> Sequence[Floats] | None:
        """Compute leaf by leaf at p = 2, where only a sum couples the leaves, and at p = inf."""
        if p not in (2, math.inf) or any(each.size == 0 for each in leaves):
            return None
        rows, radius = [_rows(each, each.shape[:-1]) for each in leaves], sigma.reshape(-1, 1)
        kernel, dtype, indices = _kernel(p, rows[0].dtype), rows[0].dtype, range(len(rows))
        ends = np.cumsum([each.size for each in rows])
        memory = np.empty(ends[-1], dtype)  # many small allocations would cost more than filling the memory
        out = [each.reshape(x.shape) for each, x in zip(np.split(memory, ends[:-1]), rows, strict=True)]
        totals = [np.empty(0)] * len(rows)

        def add_squares(indices: Sequence[int]) -> None:
            for index in indices:
                totals[index] = dots(rows[index], rows[index])

        def scale(indices: Sequence[int]) -> None:
            for index in indices:
                np.multiply(rows[index], column, out=out[index])

        def fill(indices: Sequence[int]) -> None:
            for index in indices:
                totals[index] = kernel.fill(rows[index], radius, out[index], out[index])[0]

        with self.unwarned():
            np.setbufsize(16)
            share_out(add_squares if p == 2 else fill, indices, memory.nbytes)
            if p == 2:
                total = np.sum(totals, axis=0)
                factor = total**-0.5 * radius[:, 0]
                column = factor.astype(dtype)[:, None]
                share_out(scale, indices, memory.nbytes)
                valid = kernel.valid(radius, total, factor)
            else:
                valid = kernel.valid(radius, totals[0])
        # if a row is zero, not finite, or of an extreme scale, the leaves are joined after all
        return [each.reshape(x.shape) for each, x in zip(out, leaves, strict=True)] if valid.all() else None

    def variates(
        self, rng: Any, shape: tuple[int, ...], concentration: float, dtype: Any
    ) -> tuple[Floats, Floats, Floats]:
        """Draw from a `numpy.random.Generator`."""
        if not isinstance(rng, np.random.Generator):
            return super().variates(rng, shape, concentration, dtype)
        dtype = np.float64 if dtype is None or np.dtype(dtype).itemsize == 8 else np.float32
        return (
            2 * rng.random(shape, dtype) - dtype(1),
            rng.standard_gamma(concentration, shape, dtype),
            rng.standard_exponential((*shape[:-1], 1), dtype),
        )


def _rows(operand: Floats, batch: tuple[int, ...]) -> Floats:
    if operand.shape[:-1] != batch:
        operand = np.broadcast_to(operand, (*batch, operand.shape[-1]))
    return operand if len(batch) == 1 else operand.reshape(-1, operand.shape[-1])


def _by_blocks(function: Callable[..., Floats], p: float, *rows: Floats) -> Floats:
    return np.concatenate([function(p, *(each[block] for each in rows)) for block in row_blocks(rows[0])])


def _steepest(p: float, x: Floats, sigma: Floats) -> Floats:
    kernel = _kernel(p, x.dtype)
    blocks = row_blocks(x, kernel.working_arrays)
    out = np.zeros(x.shape, x.dtype) if kernel.zeroed else np.empty(x.shape, x.dtype)
    per_block: list[Any] = [()] * len(blocks)

    def work(indices: Sequence[int]) -> None:
        t = np.empty(x[blocks[0]].shape if kernel.scratch else (0, 0), x.dtype)
        for index in indices:
            rows, block = x[blocks[index]], blocks[index]
            per_block[index] = kernel.fill(rows, sigma[block], out[block], t[: len(rows)])

    share_out(work, range(len(blocks)), x.nbytes)
    statistics = per_block[0] if len(blocks) == 1 else map(np.concatenate, zip(*per_block, strict=True))
    valid = kernel.valid(sigma, *statistics)
    if not valid.all():
        for block in blocks:
            wrong = np.flatnonzero(~valid[block]) + block.start
            if wrong.size:
                out[wrong] = _repaired(p, kernel, x[wrong], sigma[wrong])
    return out


def _repaired(p: float, kernel: Kernel, x: Floats, sigma: Floats) -> Floats:
    out: Floats
    out, t, scaled = np.zeros((3, *x.shape), x.dtype)
    exact = _scale(x, scaled, p)
    wrong = ~(kernel.valid(sigma, *kernel.fill(scaled, sigma, out, t)) & exact)
    if wrong.any():
        out[wrong] = steepest.value(p, x[wrong], sigma[wrong])
    return out


def _scale(x: Floats, out: Floats, p: float) -> Mask:
    """Fill `out` with x times powers of two, so that max|x| is in [1/2, 1); return which rows are exact."""
    info = np.finfo(x.dtype)
    top = np.maximum(x.max(axis=1), -x.min(axis=1))
    exponents = np.frexp(top)[1]
    exact: Mask = (top > 0) & (top < math.inf) & (np.abs(exponents) <= info.maxexp - 2)
    if p >= 5 and (down := exact & (exponents > 0)).any():
        # scaling down may turn a small entry into zero, which matters for a small power of it
        size = np.abs(x[down])
        size[size == 0] = math.inf
        exact[down] = np.ldexp(size.min(axis=1), -exponents[down]) >= info.tiny
    np.multiply(x, np.ldexp(x.dtype.type(1), -exponents)[:, None], out=out)
    return exact


@functools.lru_cache(64)
def _kernel(p: float, dtype: np.dtype[Any]) -> Kernel:
    if p == math.inf:
        return _signs(dtype)
    if p == 1:
        return Kernel(_fill_largest, _valid_largest, working_arrays=2, zeroed=True)
    power = fastest_power(1 / (p - 1), dtype)
    info = np.finfo(dtype)
    normal, largest = float(info.tiny), float(info.max)
    # x is not scaled down here, so log|x| and its rounding may be large
    most = 2.0**40 if p >= 5 else largest * 2.0**-26
    e = power.exact
    exact_root = -e / (e + 1) if e else -1 / Fraction(p)
    root = float(exact_root)
    # A total far from 1 magnifies the rounding error of -1/p, so the power includes that error.
    lost = float(exact_root - Fraction(root)) if dtype.itemsize == 8 else 0.0

    def fill(x: Floats, sigma: Floats, out: Floats, t: Floats) -> tuple[Floats, ...]:
        u, unit = power.take(x, out, t)
        total = dots(u, x)
        scaled_total = total if unit is None else total / unit ** (1 + power.carries)
        factor = scaled_total**root
        if lost:
            factor *= 1 + lost * np.log(scaled_total)
        if power.carries:
            factor /= unit
        factor *= sigma[:, 0]
        np.multiply(u, factor.astype(x.dtype)[:, None], out=out)
        return total, factor

    def valid(sigma: Floats, total: Floats, factor: Floats) -> Mask:
        in_range: Mask = (factor >= normal) & (factor <= largest) | (sigma[:, 0] == 0)
        return in_range & (total >= normal * 2.0**26) & (total <= most)

    return Kernel(fill, valid, power.scratch, power.working_arrays)


def _fill_largest(x: Floats, sigma: Floats, out: Floats, t: Floats) -> tuple[Floats]:
    np.abs(x, out=t)
    top = t.max(axis=1)
    where = np.flatnonzero(t == top[:, None])
    row = where // x.shape[1]
    ties = np.bincount(row, minlength=len(x))
    share = (sigma[:, 0] / ties).astype(x.dtype)
    np.put(out, where, np.copysign(share[row], x.take(where)))
    return (top,)


def _valid_largest(sigma: Floats, top: Floats) -> Mask:
    valid: Mask = (top > 0) & ~np.isnan(sigma[:, 0])
    return valid


def _signs(dtype: np.dtype[Any]) -> Kernel:
    # `least` is the least subnormal times `huge`, so after the clip every entry is +-least, 0 or NaN.
    info = np.finfo(dtype)
    huge = dtype.type(2.0 ** (info.maxexp - 1))
    least = huge * info.smallest_subnormal

    def fill(x: Floats, sigma: Floats, out: Floats, t: Floats) -> tuple[Floats]:
        np.multiply(x, huge, out=out)
        np.clip(out, -least, least, out=out)
        factor = sigma * (1 / least)
        out *= factor
        return (factor[:, 0],)

    return Kernel(fill, lambda sigma, factor: np.isfinite(factor), scratch=False, working_arrays=1)


library = NumpyLibrary()
