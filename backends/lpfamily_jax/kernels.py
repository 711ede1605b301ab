"""What JAX tells the core: derivatives, and that a definition is one compiled function."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from lpfamily.balls import nearest
from lpfamily.box import boxed
from lpfamily.kernels import Library, Primitive
from lpfamily.kernels.multipliers import ROUNDINGS, STEPS

Definition = Callable[..., jax.Array]


class JaxLibrary(Library):
    """JAX: eager arrays and tracers alike."""

    def __init__(self) -> None:
        self.implementations = {boxed: _boxed, nearest: _nearest}

    def apply(self, primitive: Primitive, p: float, *operands: jax.Array) -> jax.Array:
        """Evaluate as one compiled function whose derivatives are the primitive's own."""
        return _function(primitive, p)(*operands)

    def by_examples(
        self, function: Callable[..., Any], signature: str, dtypes: Any, *operands: jax.Array
    ) -> Any:
        """Evaluate as one compiled function: a loop in an eager call would be compiled at every call."""
        if isinstance(function, functools.partial):  # each is a function of its own to jax.jit
            return _compiled(function.func, *function.args)(*operands)
        return _compiled(function)(*operands)

    def repeat(
        self, step: Callable[..., tuple[jax.Array, ...]], state: tuple[jax.Array, ...], times: int
    ) -> tuple[jax.Array, ...]:
        """Loop in XLA, which would otherwise compile every step."""

        def changes(carry: tuple[int | jax.Array, tuple[jax.Array, ...], tuple[jax.Array, ...]]) -> jax.Array:
            count, old, new = carry
            different = [jax.numpy.any(a != b) for a, b in zip(old, new, strict=True)]
            return jax.numpy.any(jax.numpy.stack(different)) & (count < times)

        first = step(*state)
        _, _, result = jax.lax.while_loop(
            changes, lambda carry: (carry[0] + 1, carry[2], step(*carry[2])), (1, state, first)
        )
        return tuple(result)

    def iterate(self, step: Callable[[Any, Any], Any], state: Any, numbers: Sequence[float]) -> Any:
        """Loop in XLA where the state is traced."""
        if not numbers or not any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(state)):
            return super().iterate(step, state, numbers)
        xs = jax.numpy.asarray(numbers)
        return jax.lax.scan(lambda state, number: (step(state, number), None), state, xs)[0]

    def branch(self, condition: Any, function: Callable[[Any], Any], state: Any) -> Any:
        """Decide in XLA where the condition is traced."""
        if not isinstance(condition, jax.core.Tracer):
            return super().branch(condition, function, state)
        return jax.lax.cond(condition, function, lambda state: state, state)

    def generators(self, rng: Any, count: int) -> Sequence[Any]:
        """Split a key."""
        return list(jax.random.split(rng, count))

    def variates(
        self, rng: Any, shape: tuple[int, ...], concentration: float, dtype: Any
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Draw from a key."""
        half = dtype is not None and jax.numpy.dtype(dtype).itemsize == 2
        kind = jax.numpy.float32 if half else float if dtype is None else dtype
        one, two, three = jax.random.split(rng, 3)
        uniform = jax.random.uniform(one, shape, kind, -1, 1)
        gamma = jax.random.gamma(two, concentration, shape, kind)
        return uniform, gamma, jax.random.exponential(three, (*shape[:-1], 1), kind)

    def constant(self, x: jax.Array) -> jax.Array:
        """Stop the gradient."""
        return jax.lax.stop_gradient(x)

    def normal_tail(self, x: jax.Array) -> jax.Array:
        """Halve XLA's own erfc."""
        return 0.5 * jax.scipy.special.erfc(x * 0.5**0.5)


def _boxed(p: float, x: jax.Array, sigma: jax.Array, wall: jax.Array) -> jax.Array:
    """Return the step in a box by one multiplier where that is exact for all rows, else by its definition.

    With r = |x| / max|x|, eps = min((s r^{p*})^(1/p) sigma, wall), s such that what is spent is sigma^p.
    """
    definition: Definition = functools.partial(boxed.value, p)
    if p in (1, math.inf) or x.size == 0:
        return definition(x, sigma, wall)
    top = jax.numpy.max(abs(x), axis=-1, keepdims=True)
    r = abs(x) / jax.numpy.where(top > 0, top, 1)
    u = r ** (1 / (p - 1))
    share = jax.numpy.minimum(wall, sigma) / jax.numpy.where(sigma > 0, sigma, 1)
    s, gone, valid = _multiplier(u * r, share**p, math.inf)
    step = u * (s ** (1 / p) * sigma)
    eps = jax.numpy.minimum(jax.numpy.where(gone, jax.numpy.where(x == 0, 0, wall), step), wall)
    valid = valid & _ordinary(top) & _ordinary(sigma) & (gone | _ordinary(s ** (1 / p) * sigma))
    valid = valid & (~gone | ~jax.numpy.any((u * r == 0) & (x != 0), axis=-1, keepdims=True))
    fast = jax.numpy.copysign(eps, x)
    return _exact(jax.numpy.all(valid), fast, definition, x, sigma, wall)


def _nearest(p: float, v: jax.Array, sigma: jax.Array, *wall: jax.Array) -> jax.Array:
    """Return the nearest point, in a box at p = 2 by one multiplier: y = min(c |v|, wall), c at most 1."""
    definition: Definition = functools.partial(nearest.value, p)
    if p != 2 or not wall or v.size == 0:
        return definition(v, sigma, *wall)
    top = jax.numpy.max(abs(v), axis=-1, keepdims=True)
    r = abs(v) / jax.numpy.where(top > 0, top, 1)
    share = jax.numpy.minimum(wall[0], sigma) / jax.numpy.where(sigma > 0, sigma, 1)
    most = (top / jax.numpy.where(sigma > 0, sigma, 1)) ** 2
    s, gone, valid = _multiplier(r * r, share * share, most)
    inside = gone | (s >= most)
    step = jax.numpy.where(inside, abs(v), r * (jax.numpy.sqrt(s) * sigma))
    valid = valid & _ordinary(top) & _ordinary(sigma) & _ordinary(most)
    fast = jax.numpy.copysign(jax.numpy.minimum(step, wall[0]), v)
    return _exact(jax.numpy.all(valid), fast, definition, v, sigma, *wall)


def _exact(valid: jax.Array, fast: jax.Array, definition: Definition, *operands: jax.Array) -> jax.Array:
    """Return what is fast where it is exact for all rows."""
    result: jax.Array = jax.lax.cond(valid, lambda *_: fast, definition, *operands)
    return result


def _ordinary(size: jax.Array) -> jax.Array:
    """Whether numbers are neither so small nor so large that a power of them, or a sum, leaves the dtype."""
    info = np.finfo(size.dtype)
    return (size > float(info.tiny) * 2.0**26) & (size < float(info.max) * 2.0**-26)


def _multiplier(weights: jax.Array, limits: jax.Array, most: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return s, at most `most`, with sum min(s weights, limits) = 1, for each row.

    Beside it whether all reach their limits, and whether s is exact. The sum is concave and piecewise linear
    in s: Newton's steps from below never pass the solution, and end in its piece.
    """
    info = np.finfo(weights.dtype)
    # weights that have vanished must not matter beside those that walls leave free
    tolerance, least = ROUNDINGS * float(info.eps), float(info.tiny) * 2.0**40

    def summed(terms: jax.Array) -> jax.Array:
        return jax.numpy.sum(terms, axis=-1, keepdims=True)

    def step(state: tuple[Any, ...]) -> tuple[Any, ...]:
        count, s, *_ = state
        spent = s * weights
        slope = summed(jax.numpy.where(spent < limits, weights, 0))
        rest = 1 - summed(jax.numpy.minimum(spent, limits))
        full = (s >= most) & (rest >= 0)
        gone = ~full & (slope == 0) & (rest > tolerance)
        new = jax.numpy.minimum(s + rest / jax.numpy.where(slope > 0, slope, 1), most)
        # where the sums round, a step is no progress
        done = full | gone | (abs(rest) <= tolerance) | (new <= s)
        return count + 1, jax.numpy.where(done, s, new), done, gone, gone | full | (slope >= least)

    total = summed(jax.numpy.where(limits > 0, weights, 0))
    begin = jax.numpy.minimum(1 / jax.numpy.where(total > 0, total, 1), most)
    no = jax.numpy.zeros_like(total, bool)
    _, s, done, gone, steep = jax.lax.while_loop(
        lambda state: (state[0] < STEPS) & ~jax.numpy.all(state[2]), step, step((0, begin, no, no, no))
    )
    return s, gone, done & steep


library = JaxLibrary()


@functools.cache
def _compiled(function: Callable[..., Any], *static: Any) -> Any:
    return jax.jit(functools.partial(function, *static))


@functools.cache
def _function(primitive: Primitive, p: float) -> Callable[..., jax.Array]:
    value = library.implementations.get(primitive, primitive.value)
    function = jax.custom_jvp(functools.partial(value, p))
    function.defjvp(
        lambda operands, tangents: (_function(primitive, p)(*operands), primitive.jvp(p, operands, tangents))
    )
    return jax.jit(function)
