"""dask: each chunk holds whole examples and is computed by the library of its arrays."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from lpfamily._arrays import Array
from lpfamily.libraries import Library, Primitive, library_of, threads


class DaskLibrary(Library):
    """dask: one task for each chunk of examples; nothing is computed until the caller asks for it."""

    def apply(self, primitive: Primitive, p: float, *operands: Array) -> Array:
        """Evaluate `primitive` chunk by chunk.

        An implementation needs all coordinates of an example together. This costs memory only if they lie in
        several chunks. An example larger than dask's limit for a chunk stays split if the primitive `splits`.
        A primitive that sorts needs whole examples in any case.
        """
        from dask import config
        from dask.utils import parse_bytes

        x = operands[0]
        too_large = x.shape[-1] * x.dtype.itemsize > parse_bytes(config.get("array.chunk-size"))
        can_stay_split = x.numblocks[-1] > 1 and primitive.splits
        if x.shape[-1] == 0 or (too_large and can_stay_split):
            return super().apply(primitive, p, *operands)
        signature = primitive.signature_of(len(operands))
        return self.per_example(functools.partial(_apply, primitive, p), signature, x.dtype, *operands)

    def per_example(self, function: Callable[..., Any], signature: str, dtypes: Any, *operands: Array) -> Any:
        """Evaluate `function` on chunks of whole examples, when the result is asked for."""
        from dask.array import apply_gufunc

        return apply_gufunc(  # type: ignore[no-untyped-call]
            functools.partial(_per_example, function, signature, dtypes),
            signature,
            *operands,
            output_dtypes=dtypes,
            allow_rechunk=True,
        )

    def per_row(self, function: Callable[..., Any], reduces: bool, *operands: Array) -> Any:
        """Evaluate `function` chunk by chunk; the chunks' library silences warnings of overflow."""
        from dask.array import broadcast_to

        x = operands[0]
        if 0 in x.shape:
            return super().per_row(function, reduces, *operands)
        rows = [broadcast_to(each, (*x.shape[:-1], each.shape[-1])) for each in operands]  # type: ignore[no-untyped-call]
        inputs = ",".join("(n)" if each.shape[-1] == x.shape[-1] else "(k)" for each in rows)
        signature = f"{inputs}->{'()' if reduces else '(n)'}"
        return self.per_example(functools.partial(_per_row, function, reduces), signature, x.dtype, *rows)

    def read(self, *arrays: Array) -> tuple[Array, ...]:
        """Compute the arrays together, once."""
        from dask.base import compute

        computed: tuple[Array, ...] = compute(*arrays)  # type: ignore[no-untyped-call]
        return computed


library = DaskLibrary()


def _per_example(function: Callable[..., Any], signature: str, dtypes: Any, *operands: Array) -> Any:
    return library_of(operands[0]).per_example(function, signature, dtypes, *operands)


def _per_row(function: Callable[..., Any], reduces: bool, *operands: Array) -> Any:
    return library_of(operands[0]).per_row(function, reduces, *operands)


def _apply(primitive: Primitive, p: float, *operands: Array) -> Array:
    with threads(1):  # dask has its own threads
        return library_of(operands[0]).apply(primitive, p, *operands)
