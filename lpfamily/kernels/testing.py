"""The former name of `lpfamily.libraries.testing`."""

from lpfamily.libraries.testing import LibraryTests

__all__ = ["LibraryTests"]
