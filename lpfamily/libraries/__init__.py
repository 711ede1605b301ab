"""The interface between the mathematics and the array libraries.

Every function has one definition, in the array API, which works for every library. The basic functions (dual
norm, steepest step, steepest step in a box, nearest point) are `Primitive`s: a definition together with its
derivatives. `Library.apply` evaluates them. A subclass of `Library` defines how one library computes. It may
map primitives to faster implementations (NumPy works in blocks that stay in the cache), or override `apply`
to give the library the derivatives (torch, JAX). An instance is registered in the entry-point group
`lpfamily.libraries`, under the name of the array library, and loaded with the first array of that library.
`lpfamily.libraries.testing.LibraryTests` holds the tests for it.
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

from lpfamily._arrays import A, Array, Numbers, constant_when_traced, device_of, library_name, namespace_of
from lpfamily.libraries.rows import threads as threads

GROUP = "lpfamily.libraries"
"""The entry-point group; an entry's name is that of the module whose arrays the `Library` serves."""

OLD_GROUP = "lpfamily.kernels"
"""The former name of that group. It is still read, with a warning."""

BUILT_IN = {"numpy": "lpfamily.libraries.on_numpy:library", "dask": "lpfamily.libraries.on_dask:library"}
"""Libraries without an entry point, so that a copy of this package without metadata works with them."""

primitives: dict[str, Primitive] = {}
"""All primitives by name."""


@dataclass(frozen=True, eq=False)
class Primitive:
    """A function of arrays with a parameter p, its derivatives in closed form, and its signature.

    Attributes
    ----------
    name
        The name under which `primitives` has it.
    value
        value(p, *operands) is the definition.
    jvp
        jvp(p, operands, tangents) is the directional derivative. It is built from primitives, and so is
        `vjp`, so both can be differentiated again.
    vjp
        vjp(p, operands, cotangent) is the transpose of `jvp`, with one result per operand.
    signature
        The shapes for one example, as in NumPy's generalized ufuncs: "(n),(1)->()" maps a row and its radius
        to a number. A caller may leave out trailing operands.
    whole
        Whether a compiler should call it as one operation: the definition repeats steps, or sorts.
    splits
        Whether one example may lie in several chunks: the definition only takes sums and maxima over it.
    """

    name: str
    value: Callable[..., Array]
    jvp: Callable[[float, tuple[Array, ...], tuple[Array, ...]], Array]
    vjp: Callable[[float, tuple[Array, ...], Array], tuple[Array, ...]]
    signature: str
    whole: bool = False
    splits: bool = False

    def __post_init__(self) -> None:
        primitives[self.name] = self

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle by name, because libraries look primitives up by identity."""
        return _primitive, (self.value.__module__, self.name)

    def signature_of(self, operands: int) -> str:
        """Return the signature of a call with this many operands."""
        inputs, output = self.signature.split("->")
        return f"{','.join(inputs.split(',')[:operands])}->{output}"

    @property
    def reduces(self) -> bool:
        """Whether the result is one number per example."""
        return self.signature.endswith("->()")

    def __call__(self, p: float, *operands: Array) -> Array:
        """Evaluate with the operands' library."""
        return library_of(operands[0]).apply(self, p, *operands)


def _primitive(module: str, name: str) -> Primitive:
    import_module(module)
    return primitives[name]


class Library:
    """How one array library computes; the defaults need only the array API.

    To support a library, override methods in a subclass, and test an instance with
    `lpfamily.libraries.testing.LibraryTests`.

    Attributes
    ----------
    implementations
        Functions (p, *operands) that replace the definitions of some primitives.
    """

    implementations: Mapping[Primitive, Callable[..., Array]] = MappingProxyType({})

    def apply(self, primitive: Primitive, p: float, *operands: Array) -> Array:
        """Evaluate `primitive`; a library with automatic differentiation gives it the derivatives here."""
        with self.unwarned():
            return self.implementations.get(primitive, primitive.value)(p, *operands)

    def detour(self, function: Callable[..., A], *arguments: Any) -> A:
        """Return function(*arguments), computed by a faster library if one can share the arrays' memory."""
        return function(*arguments)

    def per_example(self, function: Callable[..., Any], signature: str, dtypes: Any, *operands: Array) -> Any:
        """Evaluate a `function` of many steps that treats each example independently.

        `signature` names the axes of one example, as in NumPy's generalized ufuncs: "(m,n),(m)->(n)" takes
        a matrix, which all examples may share, and a vector per example. `dtypes` are those of the results.
        """
        with self.unwarned():
            return function(*operands)

    def per_row(self, function: Callable[..., Array], reduces: bool, *operands: Array) -> Array:
        """Evaluate a `function` of rows, (..., d), and of operands that broadcast to them, row by row.

        The function returns one number per row if it `reduces`, else rows.
        """
        with self.unwarned():
            return function(*operands)

    def fused(self, function: Callable[..., Any], *operands: Any) -> Any:
        """Evaluate a `function` of many operations; a compiler makes them one program.

        Operands and results are arrays, numbers, None, tuples of them, and regions of `lpfamily.ascent`.
        """
        with self.unwarned():
            return function(*operands)

    def steps_of_leaves(self, p: float, leaves: Sequence[Array], sigma: Array) -> Sequence[Array] | None:
        """Return eq. 3 of rows that are split over several arrays, or None if these must be joined first."""
        return None

    def read(self, *arrays: Array) -> tuple[Array, ...]:
        """Return the arrays with their values; a lazy library computes them here."""
        return arrays

    def unwarned(self) -> AbstractContextManager[Any]:
        """Return a context without warnings for log 0, overflow and inf - inf, which are valid here."""
        return np.errstate(all="ignore")  # libraries that build on NumPy warn as NumPy does

    def visible(self, x: Array) -> bool:
        """Whether the values of x can be looked at without waiting for a device or a computation."""
        return False

    def reach(
        self,
        grad: Array,
        x: Array,
        low: Numbers,
        high: Numbers,
        slack: Callable[[Numbers, Numbers], Numbers],
    ) -> tuple[Array, bool]:
        """Return the distance of each entry of x from the bound that grad points to, in x's dtype.

        It is 0 where x is outside its bounds, and NaN where it is so by more than slack(low, high). The
        second result is whether the values show that no x is outside.
        """
        xp = namespace_of(x)
        up, down = high - x, x - low
        room = xp.where(xp.astype(grad, x.dtype, copy=False) < 0, down, up)
        if self.visible(room) and (0 in room.shape or (bool(xp.min(up) >= 0) and bool(xp.min(down) >= 0))):
            return room, True
        inside = xp.minimum(up, down) >= -slack(low, high)
        return xp.where(inside, xp.where(room > 0, room, 0.0), math.nan), False

    def constant(self, x: Array) -> Array:
        """Return x with its gradient stopped."""
        return x

    def repeat(
        self, step: Callable[..., tuple[Array, ...]], state: tuple[Array, ...], times: int
    ) -> tuple[Array, ...]:
        """Apply state = step(*state) `times` times, or until the state no longer changes; return it."""
        for _ in range(times):
            old, state = state, step(*state)
            if self.settled(old, state):
                break
        return state

    def iterate(self, step: Callable[[Any, Any], Any], state: Any, numbers: Sequence[float]) -> Any:
        """Apply state = step(state, number) for each number in turn; return the state, a tuple of arrays."""
        for number in numbers:
            state = step(state, number)
        return state

    def branch(self, condition: Any, function: Callable[[Any], Any], state: Any) -> Any:
        """Return function(state) if `condition`, a scalar, is true, else the state."""
        return function(state) if condition else state

    def places(self, mask: Array) -> Array | None:
        """Return the indices where a vector is True, or None where shapes cannot depend on values."""
        return np.flatnonzero(mask) if isinstance(mask, np.ndarray) else None

    def generators(self, rng: Any, count: int) -> Sequence[Any]:
        """Return `count` generators or keys whose draws are independent.

        A generator that advances with each draw is returned `count` times.
        """
        return [rng] * count

    def settled(self, old: tuple[Array, ...], new: tuple[Array, ...]) -> bool:
        """Whether two states are equal; False if their values cannot be looked at."""
        xp = namespace_of(new[0])
        return all(bool(xp.all(a == b)) for a, b in zip(old, new, strict=True))

    def variates(
        self, rng: Any, shape: tuple[int, ...], concentration: float, dtype: Any
    ) -> tuple[Array, Array, Array]:
        """Draw the random numbers of `lpfamily.sample` from a generator of this library.

        Return three arrays: uniform numbers in (-1, 1), of `shape`; Gamma numbers with this
        `concentration` >= 1, of `shape`; and exponential numbers, one per row, of shape (..., 1). Their dtype
        is `dtype`, float32 for half precision, or the library's default if `dtype` is None.
        """
        raise TypeError(
            f"rng must be a NumPy or torch generator, or a JAX key; got {type(rng).__name__}: "
            f"numpy.random.default_rng(seed) makes one"
        )

    def normal_tail(self, x: Array) -> Array:
        """Return P(eta >= x) for a standard normal eta, accurate also where 1 - cdf rounds to 0.

        The array API has no erfc. SciPy's works for arrays that NumPy's functions accept (dask stays lazy) or
        can read.
        """
        from scipy.special import ndtr  # imported here because it takes longer than the rest of the core

        if hasattr(x, "__array_ufunc__") or isinstance(x, np.generic):
            return ndtr(np.negative(x))
        tail = np.asarray(ndtr(np.negative(np.from_dlpack(x, device="cpu"))))
        return namespace_of(x).asarray(tail, device=device_of(x))


_libraries: dict[str, Library] = {}


def library_of(x: Array, name: str = "x") -> Library:
    """Return the `Library` of `x`; an error calls x `name`."""
    library = library_name(namespace_of(x, name))
    _load(library)
    return _libraries[library]


def detoured(function: Callable[..., A], name: str, x: Array, sigma: Any, *others: Any) -> A:
    """Return function(x, sigma, *others), by the `detour` of x's library; an error calls x `name`.

    An array sigma allows the detour only if it has x's type and dtype and all its radii lie in [0, inf):
    libraries differ in how they handle any other sigma.
    """
    library = library_of(x, name)
    if not isinstance(sigma, int | float):
        alike = type(sigma) is type(x) and sigma.dtype == x.dtype and 0 not in sigma.shape
        if not (alike and library.visible(sigma)):
            return function(x, sigma, *others)
        xp, radii = namespace_of(sigma), library.constant(sigma)
        if not 0 <= float(xp.min(radii)) <= float(xp.max(radii)) < math.inf:
            return function(x, sigma, *others)
    return library.detour(function, x, sigma, *others)


def library_of_generator(rng: Any) -> Library:
    """Return the `Library` of a random generator or key."""
    name = type(rng).__module__.partition(".")[0]
    if is_array_api_obj(rng):
        return library_of(rng)
    _load(name)
    return _libraries[name]


def constant(x: Array) -> Array:
    """Return `x`, of any library, with its gradient stopped."""
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


@constant_when_traced  # a traced function cannot read entry points
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
