"""The array libraries that the tests run on, each described by a dataclass."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import ml_dtypes
import numpy as np
from array_api_compat import array_namespace

NUMPY_DTYPES = {name: np.dtype(name) for name in ("float16", "float32", "float64")}
NUMPY_DTYPES["bfloat16"] = np.dtype(ml_dtypes.bfloat16)
P = (1, 1 + 1e-12, 1.1, 4 / 3, 1.5, 2, 2.7, 3, 5, 1e9, float("inf"))


@dataclass(frozen=True)
class Floats:
    """The numbers of a dtype: its rounding, its range, and the smallest number in a result."""

    name: str
    eps: float
    tiny: float
    least: float
    largest: float

    @classmethod
    def of(cls, name: str, *, flushes: bool = False) -> Floats:
        info = ml_dtypes.finfo(NUMPY_DTYPES[name])
        tiny, least = float(info.smallest_normal), float(info.smallest_subnormal)
        # float16 is computed in float32, where its subnormals are normal
        return cls(
            name, float(info.eps), tiny, tiny if flushes and name != "float16" else least, float(info.max)
        )

    @property
    def compute(self) -> str:
        return "float64" if self.name == "float64" else "float32"

    def round(self, x: Any) -> np.ndarray:
        """Return x as finite float64 numbers that the dtype holds exactly."""
        clipped = np.clip(x, -self.largest, self.largest)
        return clipped.astype(NUMPY_DTYPES[self.name]).astype(np.float64)

    def seen(self, x: np.ndarray) -> np.ndarray:
        """Return x as the library sees it: without subnormals where it flushes them."""
        return np.where(np.abs(x) < self.least, 0.0, x)


def plain(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile nothing."""
    return function


@dataclass(frozen=True, repr=False)
class TestLibrary:
    """One array library: how values enter and leave, and what it can do with a function."""

    __test__ = False  # not a test, whatever pytest thinks of the name

    name: str
    xp: Any
    dtypes: tuple[str, ...]
    convert: Callable[[np.ndarray], Any]
    back: Callable[[Any], np.ndarray]
    flushes: tuple[str, ...] = ()
    """The dtypes whose subnormals the library flushes to zero."""
    compiles: bool = False
    """Every p and every shape costs a compilation, so the laws draw them from a short list."""
    slow: bool = False
    """Every operation costs milliseconds, so a test run with this library draws fewer examples of a law."""
    looking: Callable[[], Any] = contextlib.nullcontext
    """A context in which functions may read the values of arrays."""
    scope: Callable[[], Any] = contextlib.nullcontext
    jit: Callable[[Callable[..., Any]], Callable[..., Any]] = plain
    derivative: Callable[[Callable[..., Any]], Callable[..., Any]] | None = None
    """derivative(f)(x, ...) is the gradient of the scalar f with respect to x."""
    vmap: Callable[[Callable[..., Any]], Callable[..., Any]] | None = None
    jacobian: Callable[[Callable[..., Any]], Callable[..., Any]] | None = None
    """The Jacobian by forward mode."""

    def __repr__(self) -> str:
        return self.name

    def from_numpy(self, x: Any, dtype: str | None = None) -> Any:
        """Return x as an array of this library, of `dtype` if one is named."""
        x = np.asarray(x)
        with self.scope() if dtype == "float64" else contextlib.nullcontext():
            return self.convert(x if dtype is None else x.astype(NUMPY_DTYPES[dtype]))

    def to_numpy(self, x: Any) -> np.ndarray:
        """Return x as float64."""
        return np.asarray(self.back(x)).astype(np.float64)

    @cached_property
    def floats(self) -> dict[str, Floats]:
        return {name: Floats.of(name, flushes=name in self.flushes) for name in self.dtypes}


def numpy_readonly() -> TestLibrary:
    def convert(x: np.ndarray) -> np.ndarray:
        x = x.copy()
        x.flags.writeable = False
        return x

    dtypes = ("float16", "bfloat16", "float32", "float64")
    return TestLibrary("numpy", np, dtypes, convert, np.asarray)


def array_api_strict() -> TestLibrary:
    import array_api_strict as xp

    # forbid what tracing libraries cannot do, and all extensions for which the standard has a substitute
    xp.set_array_api_strict_flags(
        api_version="2024.12",
        boolean_indexing=False,
        data_dependent_shapes=False,
        enabled_extensions=["linalg"],
    )
    # arrays are on a device that is not the default, so that one made without naming a device is found
    host, device = (xp.Device(name) for name in ("CPU_DEVICE", "device1"))
    return TestLibrary(
        "array-api-strict",
        xp,
        ("float32", "float64"),
        lambda x: xp.asarray(x, device=device),
        lambda x: np.asarray(x.to_device(host)),
    )


def torch(device: str = "cpu") -> TestLibrary:
    import torch as xp

    def convert(x: np.ndarray) -> Any:
        if x.dtype == NUMPY_DTYPES["bfloat16"]:
            return xp.tensor(x.astype(np.float32), device=device).to(xp.bfloat16)
        return xp.tensor(x, device=device)

    return TestLibrary(
        "torch",
        xp,
        ("float16", "bfloat16", "float32", "float64"),
        convert,
        lambda x: x.detach().to(xp.float64).numpy(force=True),
        derivative=xp.func.grad,
        vmap=xp.func.vmap,
        jacobian=xp.func.jacfwd,
    )


def cupy() -> TestLibrary:
    import cupy as xp

    return TestLibrary(
        "cupy", xp, ("float16", "float32", "float64"), xp.asarray, xp.asnumpy, flushes=("float32",)
    )


def jax() -> TestLibrary:
    import jax

    dtypes = ("float16", "bfloat16", "float32", "float64")
    return TestLibrary(
        "jax",
        jax.numpy,
        dtypes,
        jax.numpy.asarray,
        np.asarray,
        flushes=dtypes if jax.default_backend() == "cpu" else (),
        compiles=True,
        scope=lambda: jax.enable_x64(True),
        jit=jax.jit,
        derivative=jax.grad,
        vmap=jax.vmap,
        jacobian=jax.jacfwd,
    )


def dask() -> TestLibrary:
    import dask
    import dask.array as xp

    def too_early(*_: Any, **__: Any) -> None:
        raise AssertionError("dask was asked to compute before to_numpy")

    # for the whole test run: only `back` computes, as it names its scheduler
    dask.config.set(scheduler=too_early)

    def convert(x: np.ndarray) -> Any:
        # every axis has two chunks, so that no example is in a single one
        return xp.from_array(x, chunks=tuple(max(1, -(-n // 2)) for n in x.shape))

    return TestLibrary(
        "dask",
        array_namespace(xp.zeros(1)),
        ("float16", "float32", "float64"),
        convert,
        lambda x: x.compute(scheduler="synchronous"),
        slow=True,
        looking=lambda: dask.config.set(scheduler="synchronous"),
    )


def ndonnx() -> TestLibrary:
    import ndonnx as xp

    xp = array_namespace(xp.asarray(0))
    return TestLibrary("ndonnx", xp, ("float32", "float64"), xp.asarray, xp.Array.unwrap_numpy, slow=True)


LIBRARIES = {
    "numpy": numpy_readonly,
    "array-api-strict": array_api_strict,
    "torch": torch,
    "torch-cuda": lambda: torch("cuda"),
    "cupy": cupy,
    "jax": jax,
    "dask": dask,
    "ndonnx": ndonnx,
}
