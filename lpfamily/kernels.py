"""The seam between the mathematics and the array libraries.

Every function has one definition, in the array API, and that definition serves every library. The
functions at the bottom of everything, the dual norm, the steepest step, that in a box and the nearest
point, are `Primitive`s: a definition together with its derivative, which `Library.apply` evaluates. A
library that can do better (NumPy: in blocks that stay in the cache) or that must be told more (torch,
JAX: the derivative) registers a `Library` of its own under its name in the entry-point group
`lpfamily.kernels`; it is loaded when the first array of that library arrives.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any

import numpy as np
from array_api_compat import is_array_api_obj

from lpfamily._arrays import Array, device_of, library_name, namespace_of

primitives: dict[str, Primitive] = {}
"""All there are, by name."""


@dataclass(frozen=True)
class Primitive:
    """A function of arrays with a parameter p, and its first derivative in closed form.

    `value(p, *operands)` is the definition. `jvp(p, operands, tangents)` is the directional
    derivative, `vjp(p, operands, cotangent)` its transpose, one cotangent an operand; both are built
    from primitives, so that they can be differentiated again.
    """

    name: str
    value: Callable[..., Array]
    jvp: Callable[[float, tuple[Array, ...], tuple[Array, ...]], Array]
    vjp: Callable[[float, tuple[Array, ...], Array], tuple[Array, ...]]
    iterates: bool = False
    """Whether the definition repeats steps: a compiler that unrolls them had better call it whole."""

    def __post_init__(self) -> None:
        primitives[self.name] = self

    def __call__(self, p: float, *operands: Array) -> Array:
        """Evaluate on the library that the operands belong to."""
        return library_of(operands[0]).apply(self, p, *operands)


class Library:
    """What one array library knows: by default, that it follows the array API and no more."""

    def apply(self, primitive: Primitive, p: float, *operands: Array) -> Array:
        """Evaluate `primitive`, so that the library's automatic differentiation sees its derivative."""
        with np.errstate(all="ignore"):  # log 0 = -inf and overflow to inf are steps of the definition
            return primitive.value(p, *operands)

    def detour(self, function: Callable[[Array], Array], x: Array) -> Array | None:
        """Return `function` of x by a faster library that shares x's memory, or None if there is none."""
        return None

    def by_examples(self, function: Callable[..., Any], signature: str, dtypes: Any, *operands: Array) -> Any:
        """Evaluate a `function` of many steps that takes each example by itself.

        `signature` says which axes are an example's, as for NumPy's generalized ufuncs: "(m,n),(m)->(n)"
        is a matrix for all and a vector for each; `dtypes` are those of the results.
        """
        with np.errstate(all="ignore"):  # as in `apply`
            return function(*operands)

    def read(self, *arrays: Array) -> tuple[Array, ...]:
        """Return arrays whose values can be looked at."""
        return arrays

    def unwarned(self) -> AbstractContextManager[Any]:
        """Return the scope in which inf, and inf - inf, are results like any other."""
        return nullcontext()

    def visible(self, x: Array) -> bool:
        """Whether the values of x can be looked at without waiting for a device or a computation."""
        return False

    def constant(self, x: Array) -> Array:
        """Return x with its gradient stopped."""
        return x

    def repeat(
        self, step: Callable[..., tuple[Array, ...]], state: tuple[Array, ...], times: int
    ) -> tuple[Array, ...]:
        """Return the state after state = step(*state), `times` times, or where that changes nothing more."""
        for _ in range(times):
            old, state = state, step(*state)
            if self.settled(old, state):
                break
        return state

    def settled(self, old: tuple[Array, ...], new: tuple[Array, ...]) -> bool:
        """Whether two states are equal; False where values cannot be looked at."""
        xp = namespace_of(new[0])
        return all(bool(xp.all(a == b)) for a, b in zip(old, new, strict=True))

    def variates(
        self, rng: Any, shape: tuple[int, ...], concentration: float, dtype: Any
    ) -> tuple[Array, Array, Array]:
        """Draw what `lpfamily.sample` needs from the library's own kind of generator.

        Uniform in (-1, 1) and Gamma of this concentration, >= 1, both of `shape`; and exponential, one a
        row, (..., 1). In float32 or float64: `dtype`, or what half precision is computed in, or for None
        the library's default.
        """
        raise TypeError(
            f"rng must be a NumPy or torch generator, or a JAX key; got {type(rng).__name__}: "
            f"numpy.random.default_rng(seed) makes one"
        )

    def normal_tail(self, x: Array) -> Array:
        """Return P(eta >= x) for a standard normal eta, accurate also where 1 - cdf has rounded to 0.

        The array API has no erfc; SciPy's serves what NumPy's functions take (dask stays lazy) or can read.
        """
        from scipy.special import ndtr  # importing it takes longer than the rest of the core

        if hasattr(x, "__array_ufunc__") or isinstance(x, np.generic):
            return ndtr(np.negative(x))
        tail = np.asarray(ndtr(np.negative(np.from_dlpack(x, device="cpu"))))
        return namespace_of(x).asarray(tail, device=device_of(x))


_libraries: dict[str, Library] = {}


def library_of(x: Array) -> Library:
    """Return the `Library` that serves `x`."""
    name = library_name(namespace_of(x))
    _load(name)
    return _libraries[name]


def library_of_generator(rng: Any) -> Library:
    """Return the `Library` whose arrays a random generator, or key, makes."""
    name = type(rng).__module__.partition(".")[0]
    if is_array_api_obj(rng):
        return library_of(rng)
    _load(name)
    return _libraries[name]


def constant(x: Array) -> Array:
    """Return `x` with its gradient stopped, in whatever library it lives."""
    return library_of(x).constant(x)


def _load(name: str) -> bool:
    if name in _libraries:
        return True
    library: Any = Library()
    if name == "numpy":
        from lpfamily._blocks import NumpyLibrary

        library = NumpyLibrary()
    elif name == "dask":
        from lpfamily._lazy import DaskLibrary

        library = DaskLibrary()
    for entry in entry_points(group="lpfamily.kernels", name=name):
        library = entry.load()
        if not isinstance(library, Library):
            raise TypeError(
                f"entry point {entry.value!r} of lpfamily.kernels must be a Library; got {library!r}"
            )
    _libraries[name] = library
    return True


# What torch.compiler.assume_constant_result sets: entry points cannot be read in a traced function.
_load._dynamo_marked_constant = True  # type: ignore[attr-defined]
