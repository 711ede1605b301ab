"""dask's kernels: those of its chunks' own library, on chunks that hold whole examples."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from lpfamily._arrays import Array
from lpfamily.libraries import Library, Primitive, library_of, threads


class DaskLibrary(Library):
    """dask: one task for each chunk of examples, and nothing is computed before its caller asks."""

    def apply(self, primitive: Primitive, p: float, *operands: Array) -> Array:
        """Evaluate `primitive` chunk by chunk.

        A kernel sees an example's coordinates together. That costs memory only where they come in
        several chunks, and an example that is larger than dask's own limit for a chunk is left in
        its chunks where the primitive `splits`. One that sorts needs its examples whole in any case.
        """
        from dask import config
        from dask.utils import parse_bytes

        x = operands[0]
        too_large = x.shape[-1] * x.dtype.itemsize > parse_bytes(config.get("array.chunk-size"))
        in_pieces = x.numblocks[-1] > 1 and primitive.splits
        if x.shape[-1] == 0 or (too_large and in_pieces):
            return super().apply(primitive, p, *operands)
        signature = primitive.signature_of(len(operands))
        return self.per_example(functools.partial(_apply, primitive, p), signature, x.dtype, *operands)

    def per_example(self, function: Callable[..., Any], signature: str, dtypes: Any, *operands: Array) -> Any:
        """Evaluate `function` chunk by chunk, each of whole examples, when the result is asked for."""
        from dask.array import apply_gufunc

        return apply_gufunc(  # type: ignore[no-untyped-call]
            functools.partial(_per_example, function, signature, dtypes),
            signature,
            *operands,
            output_dtypes=dtypes,
            allow_rechunk=True,
        )

    def per_row(self, function: Callable[..., Any], reduces: bool, *operands: Array) -> Any:
        """Evaluate `function` chunk by chunk: each does without warnings of what leaves the range."""
        from dask.array import broadcast_to

        x = operands[0]
        if 0 in x.shape:
            return super().per_row(function, reduces, *operands)
        whole = [broadcast_to(each, (*x.shape[:-1], each.shape[-1])) for each in operands]  # type: ignore[no-untyped-call]
        taken = ",".join("(n)" if each.shape[-1] == x.shape[-1] else "(k)" for each in whole)
        signature = f"{taken}->{'()' if reduces else '(n)'}"
        return self.per_example(functools.partial(_per_row, function, reduces), signature, x.dtype, *whole)

    def read(self, *arrays: Array) -> tuple[Array, ...]:
        """Compute them together, once."""
        from dask.base import compute

        computed: tuple[Array, ...] = compute(*arrays)  # type: ignore[no-untyped-call]
        return computed


library = DaskLibrary()


def _per_example(function: Callable[..., Any], signature: str, dtypes: Any, *operands: Array) -> Any:
    return library_of(operands[0]).per_example(function, signature, dtypes, *operands)


def _per_row(function: Callable[..., Any], reduces: bool, *operands: Array) -> Any:
    return library_of(operands[0]).per_row(function, reduces, *operands)


def _apply(primitive: Primitive, p: float, *operands: Array) -> Array:
    with threads(1):  # dask has its own
        return library_of(operands[0]).apply(primitive, p, *operands)
