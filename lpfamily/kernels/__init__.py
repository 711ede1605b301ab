"""The former name of `lpfamily.libraries`, kept for programs that import it."""

import warnings

from lpfamily.libraries import Library, Primitive, constant, library_of, primitives, threads

__all__ = ["Library", "Primitive", "constant", "library_of", "primitives", "threads"]

warnings.warn(
    "lpfamily.kernels is now lpfamily.libraries: import it by that name", DeprecationWarning, stacklevel=2
)
