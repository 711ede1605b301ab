"""The seam between the mathematics and the array libraries.

Every function has one definition, in the array API, and that definition serves every library. The
functions at the bottom of everything, the dual norm, the steepest step, that in a box and the nearest
point, are `Primitive`s: a definition together with its derivative, which `Library.apply` evaluates. A
library that can do better (NumPy: in blocks that stay in the cache) maps primitives to implementations
of its own; one that must be told more (torch, JAX: the derivative) overrides `apply`. Such a `Library`
is registered under the library's name in the entry-point group `lpfamily.libraries`, and loaded when the
first array of that library arrives. `lpfamily.libraries.testing.LibraryTests` holds the laws for it.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import EntryPoint, EntryPoints, entry_points
from types import MappingProxyType
from typing import Any

import numpy as np
from array_api_compat import is_array_api_obj

from lpfamily._arrays import A, Array, constant_when_traced, device_of, library_name, namespace_of
from lpfamily.libraries.rows import threads as threads

GROUP = "lpfamily.libraries"
"""The group of entry points, named after the module whose arrays a `Library` serves."""

OLD_GROUP = "lpfamily.kernels"
"""The former name of that group. It is still read, with a warning."""

BUILT_IN = {"numpy": "lpfamily.libraries.on_numpy:library", "dask": "lpfamily.libraries.on_dask:library"}
"""Those that need no entry point, so that a copy of this package without metadata has them."""

primitives: dict[str, Primitive] = {}
"""All there are, by name."""


@dataclass(frozen=True, eq=False)
class Primitive:
    """A function of arrays with a parameter p, its first derivative in closed form, and its shape.

    `value(p, *operands)` is the definition. `jvp(p, operands, tangents)` is the directional
    derivative, `vjp(p, operands, cotangent)` its transpose, one cotangent per operand; both are built
    from primitives, so that they can be differentiated again.
    """

    name: str
    value: Callable[..., Array]
    jvp: Callable[[float, tuple[Array, ...], tuple[Array, ...]], Array]
    vjp: Callable[[float, tuple[Array, ...], Array], tuple[Array, ...]]
    signature: str
    """What it makes of one example, as for NumPy's generalized ufuncs: "(n),(1)->()" makes a number of
    a row and its radius. A caller may leave out trailing operands."""
    whole: bool = False
    """Whether a compiler had better call it whole: the definition repeats steps, or sorts."""
    splits: bool = False
    """Whether one example may lie in several chunks: the definition takes its sums and maxima alone."""

    def __post_init__(self) -> None:
        primitives[self.name] = self

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as a name: libraries look primitives up by identity."""
        return _primitive, (self.value.__module__, self.name)

    def signature_of(self, operands: int) -> str:
        """Return the signature of a call with this many operands."""
        taken, made = self.signature.split("->")
        return f"{','.join(taken.split(',')[:operands])}->{made}"

    @property
    def reduces(self) -> bool:
        """Whether the result is one number per example."""
        return self.signature.endswith("->()")

    def __call__(self, p: float, *operands: Array) -> Array:
        """Evaluate on the library that the operands belong to."""
        return library_of(operands[0]).apply(self, p, *operands)


def _primitive(module: str, name: str) -> Primitive:
    import_module(module)
    return primitives[name]


class Library:
    """What one array library knows: by default, that it follows the array API and no more."""

    implementations: Mapping[Primitive, Callable[..., Array]] = MappingProxyType({})
    """What evaluates a primitive, as function(p, *operands); by default its definition."""

    def apply(self, primitive: Primitive, p: float, *operands: Array) -> Array:
        """Evaluate `primitive`, so that the library's automatic differentiation sees its derivative."""
        with self.unwarned():
            return self.implementations.get(primitive, primitive.value)(p, *operands)

    def detour(self, function: Callable[..., A], *arguments: Any) -> A:
        """Return `function` of arrays, and of anything else, by a faster library that shares their memory."""
        return function(*arguments)

    def per_example(self, function: Callable[..., Any], signature: str, dtypes: Any, *operands: Array) -> Any:
        """Evaluate a `function` of many steps that takes each example by itself.

        `signature` says which axes are an example's, as for NumPy's generalized ufuncs: "(m,n),(m)->(n)"
        is a matrix for all and a vector for each; `dtypes` are those of the results.
        """
        with self.unwarned():
            return function(*operands)

    def per_row(self, function: Callable[..., Array], reduces: bool, *operands: Array) -> Array:
        """Evaluate a `function` of rows, (..., d), and of what broadcasts to them, row by row.

        It makes a number of each row if it `reduces`, else a row.
        """
        with self.unwarned():
            return function(*operands)

    def steps_of_leaves(self, p: float, leaves: Sequence[Array], sigma: Array) -> Sequence[Array] | None:
        """Return eq. 3 of rows that come in several arrays, or None where they must be joined for it."""
        return None

    def read(self, *arrays: Array) -> tuple[Array, ...]:
        """Return arrays whose values can be looked at."""
        return arrays

    def unwarned(self) -> AbstractContextManager[Any]:
        """Return the scope in which log 0, overflow and inf - inf are results like any other."""
        return np.errstate(all="ignore")  # what stands on NumPy warns as it does

    def visible(self, x: Array) -> bool:
        """Whether the values of x can be looked at without waiting for a device or a computation."""
        return False

    def reach(self, grad: Array, x: Array, low: Any, high: Any) -> tuple[Array, bool, bool]:
        """Return how far each entry of x is from the bound that grad points to, of x's dtype.

        And whether values are visible, and whether they tell that no x is outside.
        """
        xp = namespace_of(x)
        up, down = high - x, x - low
        room = xp.where(xp.astype(grad, x.dtype, copy=False) < 0, down, up)
        visible = self.visible(room)
        within = visible and (0 in room.shape or (bool(xp.min(up) >= 0) and bool(xp.min(down) >= 0)))
        return room, visible, within

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

    def iterate(self, step: Callable[[Any, Any], Any], state: Any, numbers: Sequence[float]) -> Any:
        """Return the state after state = step(state, number) for each of some numbers; a tuple of arrays."""
        for number in numbers:
            state = step(state, number)
        return state

    def branch(self, condition: Any, function: Callable[[Any], Any], state: Any) -> Any:
        """Return function(state) where a number's condition holds, else the state."""
        return function(state) if condition else state

    def places(self, mask: Array) -> Array | None:
        """Return the places where a vector is True, or None where shapes cannot depend on values."""
        return np.flatnonzero(mask) if isinstance(mask, np.ndarray) else None

    def generators(self, rng: Any, count: int) -> Sequence[Any]:
        """Return generators of independent draws, the same one where it moves on."""
        return [rng] * count

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


def library_of(x: Array, name: str = "x") -> Library:
    """Return the `Library` that serves `x`; `name` is what an error calls it."""
    library = library_name(namespace_of(x, name))
    _load(library)
    return _libraries[library]


def detoured(function: Callable[..., A], name: str, x: Array, sigma: Any, *others: Any) -> A:
    """Return function(x, sigma, *others), by the `detour` of x's library; `name` is what an error calls x.

    An array of radii goes there where it is like x and all are in range: others are not the same to all.
    """
    library = library_of(x, name)
    if not isinstance(sigma, int | float):
        alike = type(sigma) is type(x) and sigma.dtype == x.dtype and 0 not in sigma.shape
        if not (alike and library.visible(sigma)):
            return function(x, sigma, *others)
        xp, seen = namespace_of(sigma), library.constant(sigma)
        if not 0 <= float(xp.min(seen)) <= float(xp.max(seen)) < math.inf:
            return function(x, sigma, *others)
    return library.detour(function, x, sigma, *others)


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


def _registered(name: str) -> EntryPoints:
    """Return the entry points that serve a module's arrays."""
    if entries := entry_points(group=GROUP, name=name):
        return entries
    if entries := entry_points(group=OLD_GROUP, name=name):
        warnings.warn(
            f"the entry-point group {OLD_GROUP} of {name!r} is now {GROUP}: register the library there",
            DeprecationWarning,
            stacklevel=2,
        )
    return entries


@constant_when_traced  # entry points cannot be read in a traced function
def _load(name: str) -> bool:
    if name in _libraries:
        return True
    library: Any = Library()
    built_in = [EntryPoint(name, BUILT_IN[name], GROUP)] if name in BUILT_IN else []
    for entry in (*built_in, *_registered(name)):
        library = entry.load()
        if not isinstance(library, Library):
            raise TypeError(f"entry point {entry.value!r} of {GROUP} must be a Library; got {library!r}")
    _libraries[name] = library
    return True
