"""NumPy's step in a box at p = 1: entries move to their bounds, the largest |x| first."""

from __future__ import annotations

import math
import sys
from typing import Any

import numpy as np

from lpfamily.libraries.rows import Floats, Mask, column, rough_dots, sizes, with_sign_of

SAMPLE = 16
"""A sample of one entry in SAMPLE shows roughly how far the budget goes."""

SAMPLED_FROM = 512
"""Row length from which a sample saves more time than it costs."""


def fill_largest_first(x: Floats, sigma: Floats, room: Floats, out: Floats, space: Floats) -> Mask:
    """Move entries to their bounds from the largest |x| down, the last one as far as the budget goes.

    Only entries near the last one are sorted; a sample gives the interval of |x| that they lie in.
    """
    size, cost, t, mask = space[:4]
    n, d = x.shape
    above, near = (mask.view(bool)[:, k * d : (k + 1) * d] for k in range(2))
    top, budget = sizes(x, size), sigma[:, 0].astype(np.float64)
    np.minimum(room, sigma, out=cost)
    least, share = np.empty(n, x.dtype), np.empty(n)
    missed: Mask = np.ones(n, bool)
    if d >= SAMPLED_FROM:
        high, low = _bracket(size[:, ::SAMPLE], cost[:, ::SAMPLE], sigma / SAMPLE)
        np.greater(size, high, out=above)
        np.greater(size, low, out=near)
        left, beyond = budget - rough_dots(cost, above), budget - rough_dots(cost, near)
        near ^= above
        missed = ~((left >= 0) & ((beyond <= 0) | (low[:, 0] == 0)))
        near[missed] = False
        where = np.flatnonzero(near)
        begins = np.searchsorted(where, d * np.arange(n + 1))
        count = np.diff(begins)
        width = max(count.max(), 1)
        places = np.arange(len(where)) + np.repeat(np.arange(n) * width - begins[:-1], count)
        candidates = np.zeros((2, n * width), x.dtype)
        candidates[0, places], candidates[1, places] = size.take(where), cost.take(where)
        sizes_near, costs_near = candidates.reshape(2, n, width)
        least[...], share[...] = _reached(sizes_near, costs_near, left)
    if missed.any():
        rest = size[missed]
        least[missed], share[missed] = _reached(rest, np.where(rest > 0, cost[missed], 0), budget[missed])
    np.subtract(size, least[:, None], out=t)
    bits = f"i{x.itemsize}"
    np.right_shift(t.view(bits), 8 * x.itemsize - 1, out=t.view(bits))
    np.invert(t.view(bits), out=t.view(bits))
    np.bitwise_and(cost.view(bits), t.view(bits), out=out.view(bits))
    where = np.flatnonzero(np.equal(size, least[:, None], out=near))
    np.put(out, where, np.minimum(share[where // d], cost.take(where)))
    with_sign_of(x, out, t)
    valid: Mask = np.isfinite(top) & ~np.isnan(share)
    return valid


def _reached(size: Floats, cost: Floats, budget: Floats) -> tuple[Floats, Floats]:
    """Return the least size that the budget reaches, and the cost allowed to each entry of that size.

    The cost is infinite where the budget suffices for all entries.
    """
    size, cost = _sort_together(size, cost)
    spent = np.zeros((len(size), size.shape[1] + 1))
    spent[:, 1:] = cost
    np.cumsum(spent, axis=1, out=spent)
    rows, reached = np.arange(len(size)), _first_true(spent[:, 1:] > budget[:, None])
    ample = reached == size.shape[1]
    least = size[rows, np.where(ample, 0, reached)]
    least[ample] = np.finfo(size.dtype).smallest_subnormal
    first = _first_true(size <= least[:, None])
    ties = np.where(ample, 1, _first_true(size < least[:, None]) - first)
    share = budget - spent[rows, first]
    if (most := ties.max()) > 1:
        place = np.arange(most)
        costs = cost[rows[:, None], np.minimum(first[:, None] + place, size.shape[1] - 1)]
        share = _even_share(np.where(place < ties[:, None], costs, math.inf), ties, share)
    share[ample & ~np.isnan(spent[:, -1])] = math.inf
    return least, share


def _first_true(mask: Mask) -> Any:
    """Return the index of the first True of each row, or the row's length without one."""
    at = mask.argmax(axis=1)
    return np.where(mask[np.arange(len(mask)), at], at, mask.shape[1])


def _sort_together(size: Floats, cost: Floats) -> tuple[Floats, Floats]:
    """Sort the sizes of each row, largest first, and the costs with them; none of them is negative."""
    if size.itemsize == 4:  # sorting both as one number of 64 bits takes a third of the time
        both = np.empty((*size.shape, 2), size.dtype)
        major = int(sys.byteorder == "little")
        both[..., major], both[..., 1 - major] = size, cost
        both.view(np.int64)[..., 0].sort(axis=1)
        return both[:, ::-1, major], both[:, ::-1, 1 - major]
    order = np.argsort(-size, axis=1)
    return np.take_along_axis(size, order, axis=1), np.take_along_axis(cost, order, axis=1)


def _even_share(costs: Floats, count: Any, budget: Floats) -> Floats:
    """Return c with sum min(c, cost) = budget, over the `count` finite costs of each row."""
    costs.sort(axis=1)
    place = np.arange(costs.shape[1])
    real = place < count[:, None]
    paid = np.cumsum(np.where(real, costs, 0), axis=1, dtype=np.float64)
    share = (budget[:, None] - np.where(real, paid - costs, 0)) / np.maximum(count[:, None] - place, 1)
    enough = (share <= costs) | (place == count[:, None] - 1)
    return np.take_along_axis(share, np.argmax(enough, axis=1)[:, None], axis=1)[:, 0]


def _bracket(size: Floats, cost: Floats, sigma: Floats) -> tuple[Floats, Floats]:
    """Return two columns, an interval that is likely to contain the least |x| that the budget affords."""
    size, cost = _sort_together(size, cost)
    at = _first_true(np.cumsum(cost, axis=1) > sigma)
    margin = (3 + 3 * np.sqrt(at)).astype(int)
    last, rows = size.shape[1] - 1, np.arange(len(size))
    high = np.where(at < margin, math.inf, size[rows, np.clip(at - margin, 0, last)])
    low = np.where(at + margin > last, 0, size[rows, np.clip(at + margin, 0, last)])
    return column(high, size.dtype), column(low, size.dtype)
