"""Arrays as every function takes them: their namespace, their examples as rows, their dtype."""

from __future__ import annotations

import contextlib
import importlib
import math
import operator
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real
from types import ModuleType
from typing import Any, Generic, Protocol, TypeAlias, TypeGuard, TypeVar

import numpy as np
from array_api_compat import array_namespace, is_array_api_obj

Array: TypeAlias = Any
"""An array of any library that follows the array API standard, directly or through array-api-compat."""

DType: TypeAlias = Any
"""A dtype of such a library; each library has its own type for it."""

Device: TypeAlias = Any
"""A device of such a library; each library has its own type for it."""

A = TypeVar("A")
"""The type of an array argument, which is also the type of the result."""

Numbers: TypeAlias = float | Array
"""One number for all examples or entries, or an array that broadcasts to them."""

Bounds: TypeAlias = tuple[Numbers, Numbers]


class FInfo(Protocol):
    """The limits of a floating dtype, as the array API names them."""

    bits: int
    eps: float
    max: float
    smallest_normal: float


_NUMBERS = (int, float, np.integer, np.floating)

_namespaces: dict[type, ModuleType] = {}
_REFUSED = {"MaskedArray", "MaskedTensor", "matrix"}
"""Types of arrays whose functions mean something else than the standard's."""
_CONVERSIONS = {
    "mlx": "numpy.asarray({0})",
    "paddle": "{0}.numpy()",
    "tensorflow": "tensorflow.convert_to_tensor({0}).numpy(), or call this through tensorflow.numpy_function",
    "xarray": "{0}.data, or of a Dataset that of its variables",
}
"""By package, how to convert arrays that do not follow the standard, or not far enough (mlx)."""


@dataclass(frozen=True)
class Given(Generic[A]):
    """An array argument as a function computes with it, and the way back to its shape and dtype."""

    xp: ModuleType
    array: Array
    """The argument as `admit` returns it; masked entries are 0."""
    values: Array
    """The argument in the dtype to compute in; `examples` gives it one row per example, (*batch, d)."""
    mask: Array | None

    @property
    def batch(self) -> tuple[int, ...]:
        """The shape of the axes that index examples."""
        return tuple(self.values.shape[:-1])

    def radius(self, sigma: Numbers, name: str = "sigma") -> Array:
        """Return sigma as a column, (*batch, 1), in the dtype of the rows.

        Numbers and NumPy arrays, which can be seen without waiting for a device, are checked here. In other
        arrays a sigma outside [0, inf) becomes NaN, and so does its row.
        """
        xp, values = self.xp, self.values
        batch, dtype, device = self.batch, values.dtype, device_of(values)
        largest = float(finfo(xp, dtype).max)
        if is_number(sigma):
            number = as_float(sigma)
            _check_radius(name, sigma, 0 <= number <= largest, largest, dtype)
            if isinstance(values, np.ndarray):  # same result as below, in half the time
                return np.full((*batch, 1), number, dtype)
            return xp.full((*batch, 1), number, dtype=dtype, device=device)
        if isinstance(sigma, np.ndarray):
            if not is_real(sigma.dtype):
                raise TypeError(f"{name} must be real; got {sigma.dtype}")
            sigma = sigma.astype(np.float64)
            _check_radius(name, sigma, np.all((sigma >= 0) & (sigma <= largest)), largest, dtype)
            sigma = xp.asarray(sigma, dtype=dtype, device=device)
        else:
            sigma = xp.astype(beside(values, sigma, name), dtype)
            sigma = xp.where((sigma >= 0) & (sigma <= largest), sigma, math.nan)
        try:
            return xp.broadcast_to(sigma, batch)[..., None]
        except Exception as cause:  # each library has its own type for this
            raise ValueError(
                f"{name} must be a number or broadcast to the batch axes {batch}; got shape "
                f"{tuple(sigma.shape)}: use scale for values that differ by entry, as between channels"
            ) from cause

    def rows(self, entries: Array) -> Array:
        """Return an array of the argument's shape as rows."""
        return reshape(entries, tuple(self.values.shape))

    def back(self, result: Array) -> A:
        """Return a result in the argument's dtype."""
        array: A = as_dtype(self.xp, result, self.array.dtype)
        return array

    def shaped(self, rows: Array) -> A:
        """Return rows in the argument's shape and dtype."""
        return self.back(reshape(rows, tuple(self.array.shape)))


def floating(x: A, name: str) -> Given[A]:
    """Return a real floating array, and its values in the dtype to compute in."""
    xp, array = admit(x, name)
    return Given(xp, array, as_dtype(xp, array, compute_dtype(array, name)), None)


def examples(x: A, name: str, batch_ndim: int | None, mask: Array | None = None) -> Given[A]:
    """Return a real floating array with its examples as rows; the first `batch_ndim` axes index them."""
    xp, array = admit(x, name)
    dtype, shape = compute_dtype(array, name), _shape_of_rows(array, batch_ndim, name)
    if mask is not None:
        array = masked(array, mask, name)
    return Given(xp, array, as_dtype(xp, reshape(array, shape), dtype), mask)


def _check_radius(name: str, sigma: Numbers, fits: bool | np.bool_, largest: float, dtype: DType) -> None:
    if not fits:
        raise ValueError(
            f"{name} is the ball's radius: it must lie in [0, {largest:.4g}] for {dtype}; got {sigma}"
        )


def admit(x: Array, name: str) -> tuple[ModuleType, Array]:
    """Return the namespace of an argument, and the argument in the layout that all functions expect.

    The values of a NumPy array do not depend on its byte order or strides, but views of its bits and the
    order of sums do. So an array that is not native, or whose examples are not contiguous, is copied. An
    array that is not dense raises a TypeError.
    """
    xp = namespace_of(x, name)
    if isinstance(x, np.ndarray):
        return xp, x if _is_plain(x) else _copied(x)
    if library_name(xp) == "torch":
        if x.layout is not xp.strided or x.is_nested or x.is_quantized:
            layout, remedy = _tensor_layout(x)
            raise TypeError(f"{name} must be a dense tensor; got {layout}: pass {remedy.format(name)}")
    elif not getattr(x.dtype, "isnative", True):  # dask's
        x = xp.astype(x, x.dtype.newbyteorder("="))
    return xp, x


def _is_plain(x: np.ndarray[Any, Any]) -> bool:
    flags = x.flags
    if not (flags.aligned and x.dtype.isnative):
        return False
    return flags.c_contiguous or (x.ndim > 1 and x.strides[0] >= x[0].nbytes and x[0].flags.c_contiguous)


def _copied(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return np.array(x, x.dtype.newbyteorder("="), order="C")


def _tensor_layout(x: Array) -> tuple[str, str]:
    """Return how a tensor that is not dense is stored, and how to make it dense."""
    if x.is_quantized:
        return f"a quantised one, {x.dtype}", "{0}.dequantize()"
    if x.is_nested:
        return f"a nested one, {x.layout}", "{0}.to_padded_tensor(0.0), or each of {0}.unbind()"
    if str(x.layout) == "torch.sparse_coo":
        return f"layout {x.layout}", "its values, {0}.coalesce().values(), or all of it, {0}.to_dense()"
    return f"layout {x.layout}", "{0}.to_dense()"


def portable(value: Array) -> Array:
    """Return a NumPy array in a form that any other library takes; return anything else as it is."""
    if not isinstance(value, np.ndarray):
        return value
    if is_bfloat16(value.dtype):
        return value.astype(np.float32)  # this is exact
    return value if value.flags.carray and value.dtype.isnative else _copied(value)


def namespace_of(x: Array, name: str = "x") -> ModuleType:
    """Return the array API namespace of `x`; `name` is what an error calls it."""
    _look_up(type(x))
    if (xp := _namespaces.get(type(x))) is not None:
        return xp
    if not is_array_api_obj(x) or _is_refused(type(x)):
        raise TypeError(
            f"{name} must be an array (NumPy, torch, JAX, CuPy, dask, ...); got {_named(type(x))}: "
            f"{_remedy(type(x)).format(name)}"
        )
    xp = _namespaces[type(x)] = _completed(array_namespace(x))
    return xp


def _completed(xp: ModuleType) -> ModuleType:
    """Return a namespace with the functions that it lacks."""
    if xp.__name__ != "ndonnx":
        return xp
    completed = ModuleType(xp.__name__, xp.__doc__)
    # size is 0 where x is 0, and NaN where x is NaN, so the signs of these do not matter
    vars(completed).update(vars(xp) | {"copysign": lambda size, x: xp.where(x < 0, -size, size)})
    return completed


def _is_refused(kind: type) -> bool:
    named = bool(_REFUSED & {base.__name__ for base in kind.__mro__})
    return _is_sparse(kind) or named or _package(kind) in _CONVERSIONS


def _package(kind: type) -> str:
    return kind.__module__.partition(".")[0]


def _named(kind: type) -> str:
    return f"{_package(kind)}'s {kind.__name__}" if _package(kind) in _CONVERSIONS else kind.__name__


def _is_sparse(kind: type) -> bool:
    """Whether it is a sparse array of JAX, SciPy, CuPy or the package sparse."""
    return hasattr(kind, "todense")


def _remedy(kind: type) -> str:
    names = {base.__name__ for base in kind.__mro__}
    if _is_sparse(kind):
        return "it is sparse, pass {0}.%s()" % ("toarray" if hasattr(kind, "toarray") else "todense")
    if "MaskedArray" in names:
        return "pass {0}.filled(0) with mask=~{0}.mask"
    if "MaskedTensor" in names:
        return "pass {0}.to_tensor(0) with mask={0}.get_mask()"
    if (conversion := _CONVERSIONS.get(_package(kind))) is not None:
        return f"pass {conversion}"
    return "convert it first, for example with numpy.asarray"


def constant_when_traced(function: Callable[..., bool]) -> Callable[..., bool]:
    """Let torch.compile call a function while it traces, and treat the result as a constant.

    It does what torch.compiler.assume_constant_result does, without torch, which the core does not load.
    Such a function fills a global table by imports, which a graph cannot hold. It returns True, and traced
    code reads the table.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


@constant_when_traced  # array_namespace itself makes torch.compile warn
def _look_up(kind: type) -> bool:
    """Store the namespace that array-api-compat has for a type, found by the type's library."""
    if kind in _namespaces or _is_refused(kind):
        return True
    if hasattr(kind, "dtype") and hasattr(kind, "shape"):
        for base in kind.__mro__:
            with contextlib.suppress(ImportError):
                xp = importlib.import_module("array_api_compat." + base.__module__.partition(".")[0])
                if hasattr(xp, "__array_api_version__"):
                    _namespaces[kind] = xp
                    break
    return True


def library_name(xp: ModuleType) -> str:
    """Return the name of a namespace's library."""
    return xp.__name__.removeprefix("array_api_compat.").partition(".")[0]


def is_number(value: object) -> TypeGuard[float]:
    """Whether `value` is a real number of Python or NumPy."""
    return isinstance(value, _NUMBERS) and not isinstance(value, bool)


def as_float(value: float) -> float:
    """Return a number as a float; beyond the largest float it is infinite."""
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def check_p(p: float) -> float:
    """Return p as a float; raise if it is not a number in [1, inf]."""
    if not isinstance(p, int | float | Real) or isinstance(p, bool):  # Real alone takes ten times as long
        raise TypeError(f"p must be a Python number in [1, inf]; got {p!r}")
    value = as_float(p)
    if not value >= 1:
        raise ValueError(
            f"p must lie in [1, inf]; got {p}: below 1 the ball is not convex and eq. 3 is not its maximiser"
        )
    # a finite p that overflows in float32 must not act as inf; beyond 2^100 no digit changes
    return value if value == math.inf else min(value, 2.0**100)


def beside(lead: Array, value: Array, name: str) -> Array:
    """Return a real array of lead's library: `value` itself, or a NumPy array moved to lead's device."""
    if not is_dtype(namespace_of(value, name), value.dtype, ("integral", "real floating")):
        raise TypeError(f"{name} must be real; got {value.dtype}")
    return of_library(lead, value, name)


def of_library(lead: Array, value: Array, name: str) -> Array:
    """Return an array of lead's library: `value` itself, or a NumPy array moved to lead's device."""
    xp = namespace_of(lead)
    namespace, value = admit(value, name)
    if namespace is xp:
        return value
    if not isinstance(value, np.ndarray | np.generic):
        raise TypeError(
            f"{name} must be an array of {library_name(xp)}, as the array beside it is, or a NumPy array; "
            f"got an array of {library_name(namespace)}: convert it first"
        )
    return xp.asarray(portable(value), device=device_of(lead))


def mask_beside(lead: Array, mask: Array) -> Array:
    """Return a mask as an array of lead's library and device; a traced mask has no device and stays."""
    xp, device = namespace_of(lead), device_of(lead)
    if isinstance(mask, np.ndarray) and library_name(xp) == "torch" and xp.compiler.is_compiling():
        return xp.asarray(mask, device=device)  # while tracing, torch already sees it as a tensor
    if hasattr(mask, "dtype"):
        namespace, mask = admit(mask, "mask")
        if namespace is xp and device_of(mask) in (None, device):
            return mask
    return xp.asarray(portable(mask), device=device)


def masked(grad: Array, mask: Array, name: str = "grad") -> Array:
    """Return grad with 0 where the mask is False."""
    xp = namespace_of(grad)
    return xp.where(broadcast_mask(grad, mask, name), grad, xp.zeros_like(grad))


def broadcast_mask(grad: Array, mask: Array, name: str) -> Array:
    """Return a mask in grad's library and shape."""
    xp = namespace_of(grad)
    mask = mask_beside(grad, mask)
    if not xp.isdtype(mask.dtype, "bool"):
        raise TypeError(f"mask must be boolean, True where eps may move; got {mask.dtype}")
    try:
        return xp.broadcast_to(mask, grad.shape)
    except Exception as cause:  # each library has its own type for this
        raise ValueError(
            f"mask must broadcast to the shape of {name}, {tuple(grad.shape)}; got {tuple(mask.shape)}"
        ) from cause


def device_of(x: Array) -> Device | None:
    """Return the device of `x`, or None where it has none, as under a JAX trace."""
    return getattr(x, "device", None)


def reshape(x: Array, shape: tuple[int, ...]) -> Array:
    """Return `x` in this shape."""
    if tuple(x.shape) == shape:
        return x
    if 0 in shape and hasattr(x, "rechunk"):
        x = x.rechunk(-1)  # dask reshapes an array without entries only if it is one chunk
    return namespace_of(x).reshape(x, shape)


def as_dtype(xp: ModuleType, x: Array, dtype: DType) -> Array:
    """Return `x` in this dtype."""
    return x if x.dtype == dtype else xp.astype(x, dtype)


def sign(x: Array) -> Array:
    """Return the sign of `x`; array-api-compat's writes through a mask on torch, which vmap refuses."""
    xp = namespace_of(x)
    return xp.where(x != x, x, xp.astype(x > 0, x.dtype) - xp.astype(x < 0, x.dtype))


def compute_dtype(x: Array, name: str) -> DType:
    """Return the dtype to compute in: x's dtype, or float32 for half precision.

    float16 ends at 65504 and bfloat16 keeps 8 bits: a sum over an example is useless in them.
    """
    xp, dtype = namespace_of(x, name), x.dtype
    if isinstance(dtype, np.dtype) and dtype.kind == "f" and dtype.itemsize in (4, 8):
        return dtype  # same result as below, in a tenth of the time
    if is_dtype(xp, dtype, "real floating"):
        bits = finfo(xp, dtype).bits
        if bits == 16:
            return xp.float32
        if bits in (32, 64):
            return dtype
    raise TypeError(
        f"{name} must be float16, bfloat16, float32 or float64; got {dtype}: convert it to one of these"
    )


def is_dtype(xp: ModuleType, dtype: DType, kinds: str | tuple[str, ...]) -> bool:
    """Whether a dtype is of one of the standard's kinds; bfloat16 counts as "real floating" in NumPy too."""
    try:
        return bool(xp.isdtype(dtype, kinds))
    except TypeError:  # NumPy raises it for a dtype of another package
        return is_bfloat16(dtype) and "real floating" in kinds


def is_bfloat16(dtype: DType) -> bool:
    """Whether a dtype is NumPy's bfloat16, which the package ml_dtypes defines."""
    return isinstance(dtype, np.dtype) and dtype.kind == "V" and dtype.name == "bfloat16"


def is_real(dtype: np.dtype[Any]) -> bool:
    """Whether a NumPy dtype holds real numbers."""
    return dtype.kind in "iuf" or is_bfloat16(dtype)


def finfo(xp: ModuleType, dtype: DType) -> FInfo:
    """Return xp.finfo(dtype); for bfloat16 NumPy has none, and ml_dtypes has it."""
    info: FInfo = (importlib.import_module("ml_dtypes") if is_bfloat16(dtype) else xp).finfo(dtype)
    return info


def known_shape(x: Array, name: str) -> tuple[int, ...]:
    """Return the shape of `x`; raise if a lazy library does not know it."""
    shape = tuple(x.shape)
    if None in shape or any(map(operator.ne, shape, shape)):
        raise ValueError(
            f"{name} must have a known shape; got {shape}: for dask, call its compute_chunk_sizes() first"
        )
    return shape


def _shape_of_rows(x: Array, batch_ndim: int | None, name: str) -> tuple[int, ...]:
    """Return the batch shape of `x`, followed by the number of coordinates of one example."""
    if batch_ndim is None:
        batch_ndim = 0 if x.ndim < 2 else 1
    if isinstance(batch_ndim, bool) or not isinstance(batch_ndim, int | np.integer):
        raise TypeError(f"batch_ndim must be a whole number; got {batch_ndim!r}")
    if not 0 <= batch_ndim <= x.ndim:
        raise ValueError(
            f"batch_ndim must lie in 0..{x.ndim}, the number of axes of {name}; got {batch_ndim}: "
            f"it counts the leading axes that index examples"
        )
    shape = known_shape(x, name)
    return *shape[:batch_ndim], math.prod(shape[batch_ndim:])
