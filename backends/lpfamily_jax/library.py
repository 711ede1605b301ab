"""JAX's `Library`: JAX gets the derivatives of primitives, and compiles each definition as one function."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax

from lpfamily.ascent.search import Region
from lpfamily.box import step_in_box
from lpfamily.libraries import Library, Primitive
from lpfamily.nearest import nearest
from lpfamily_jax import multipliers
from lpfamily_jax.meshes import alike


class JaxLibrary(Library):
    """JAX: eager arrays and tracers alike."""

    def __init__(self) -> None:
        self.implementations = {step_in_box: multipliers.step_in_box_rows, nearest: multipliers.nearest_rows}

    def apply(self, primitive: Primitive, p: float, *operands: jax.Array) -> jax.Array:
        """Evaluate as one compiled function with the primitive's derivatives."""
        return _function(primitive, p)(*operands)

    def per_example(
        self, function: Callable[..., Any], signature: str, dtypes: Any, *operands: jax.Array
    ) -> Any:
        """Evaluate as one compiled function: in an eager call, a loop would be compiled at every call."""
        return self.fused(function, *operands)

    def per_row(self, function: Callable[..., Any], reduces: bool, *operands: jax.Array) -> Any:
        """Evaluate as one compiled function."""
        return self.fused(function, *operands)

    def fused(self, function: Callable[..., Any], *operands: Any) -> Any:
        """Evaluate as one compiled function."""
        with self.unwarned():
            if isinstance(function, functools.partial):  # jax.jit would take each partial for a new function
                return _compiled(function.func, *function.args)(*operands)
            return _compiled(function)(*operands)

    def reach(
        self, grad: jax.Array, x: jax.Array, low: Any, high: Any, slack: Callable[..., Any]
    ) -> tuple[jax.Array, bool]:
        """Evaluate as one compiled function; bounds that are numbers compile it only once."""
        return _compiled(_reach, slack)(grad, x, low, high), False

    def repeat(
        self, step: Callable[..., tuple[jax.Array, ...]], state: tuple[jax.Array, ...], times: int
    ) -> tuple[jax.Array, ...]:
        """Loop in XLA, so that it compiles one step instead of all."""

        def goes_on(carry: tuple[int | jax.Array, tuple[jax.Array, ...], tuple[jax.Array, ...]]) -> jax.Array:
            count, old, new = carry
            different = [jax.numpy.any(a != b) for a, b in zip(old, new, strict=True)]
            return (count < times) & ((count == 0) | jax.numpy.any(jax.numpy.stack(different)))

        # the first step too is one of the loop: loops in loops would double the program at every level
        _, _, result = jax.lax.while_loop(
            goes_on, lambda carry: (carry[0] + 1, carry[2], step(*carry[2])), (0, *alike((state, state)))
        )
        return tuple(result)

    def iterate(self, step: Callable[[Any, Any], Any], state: Any, numbers: Sequence[float]) -> Any:
        """Loop in XLA if the state is traced."""
        if not numbers or not any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(state)):
            return super().iterate(step, state, numbers)
        xs = jax.numpy.asarray(numbers)
        return jax.lax.scan(lambda state, number: (step(state, number), None), alike(state), xs)[0]

    def branch(self, condition: Any, function: Callable[[Any], Any], state: Any) -> Any:
        """Branch in XLA if the condition is traced."""
        if not isinstance(condition, jax.core.Tracer):
            return super().branch(condition, function, state)
        return jax.lax.cond(condition, function, lambda state: state, alike(state))

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


library = JaxLibrary()

jax.tree_util.register_dataclass(Region, ["x", "sigma", "bounds", "mask"], ["p", "batch_ndim"])


@functools.cache
def _compiled(function: Callable[..., Any], *static: Any) -> Any:
    return jax.jit(functools.partial(function, *static))


def _reach(slack: Callable[..., Any], grad: jax.Array, x: jax.Array, low: Any, high: Any) -> Any:
    return Library().reach(grad, x, low, high, slack)[0]


@functools.cache
def _function(primitive: Primitive, p: float) -> Callable[..., jax.Array]:
    value = library.implementations.get(primitive, primitive.value)

    def named(*operands: Any) -> Any:
        return value(p, *operands)

    named.__name__ = f"lpfamily_{primitive.name}"  # profilers show it
    function = jax.custom_jvp(_of_all_rows(named))
    function.defjvp(
        lambda operands, tangents: (_function(primitive, p)(*operands), primitive.jvp(p, operands, tangents))
    )
    return jax.jit(function)


def _of_all_rows(function: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """Return a function of rows that `jax.vmap` gives more rows.

    By itself it would evaluate both sides of each condition, of which one is a definition.
    """
    mapped = jax.custom_batching.custom_vmap(function)

    @mapped.def_vmap
    def more_rows(size: int, are_mapped: Sequence[bool], *operands: Any) -> tuple[jax.Array, bool]:
        def repeated(operand: Any) -> Any:  # an operand may be None
            return jax.tree.map(lambda x: jax.numpy.broadcast_to(x, (size, *x.shape)), operand)

        pairs = zip(operands, are_mapped, strict=True)
        alike = (operand if is_mapped else repeated(operand) for operand, is_mapped in pairs)
        return mapped(*alike), True

    return mapped
