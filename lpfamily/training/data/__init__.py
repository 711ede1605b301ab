"""The data sets by name: examples as float32, labels as integers."""

import hashlib
import os
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lpfamily.training.errors import BadInput

__all__ = ["CLASSES", "NAMES", "SHAPES", "Dataset", "Split", "folder", "load"]

SHAPES = {"digits": (1, 8, 8), "mnist": (1, 28, 28), "cifar10": (3, 32, 32)}
"""Of an example of each data set as an image, channels first."""
CLASSES = 10
"""How many each of them has."""
NAMES = tuple(SHAPES)


# Compared by identity: an array compared with an array has no single truth value.
@dataclass(frozen=True, eq=False)
class Split:
    """Examples with their labels.

    Attributes
    ----------
    x
        float32 of shape (n, inputs).
    labels
        int64 of shape (n,), values in [0, classes).
    """

    x: NDArray[np.float32]
    labels: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Dataset:
    """A data set by the name it is loaded with.

    Attributes
    ----------
    classes
        How many there are.
    shape
        Of an example as an image, channels first; their product is the number of inputs.
    source_sha256
        The checksum of what the examples were computed from, where they are not the same on every
        machine to the last bit.
    """

    name: str
    train: Split
    test: Split
    classes: int
    shape: tuple[int, ...]
    source_sha256: str | None = None

    def first(self, train: int, test: int) -> "Dataset":
        """Return the data set of so many examples of each split, the first ones; 0 is all."""
        for flag, count, split in ("--examples", train, self.train), ("--test-examples", test, self.test):
            if count > len(split.x):
                raise BadInput(f"{flag} {count}: {self.name} has {len(split.x)}; give less, or 0 for all")
        return replace(self, train=_first(self.train, train), test=_first(self.test, test))

    def sha256(self) -> str:
        """Return the checksum of everything in it, by which a run knows its data again."""
        if self.source_sha256 is not None:
            return self.source_sha256
        digest = hashlib.sha256()
        for split in (self.train, self.test):
            digest.update(split.x.data)
            digest.update(split.labels.data)
        return digest.hexdigest()


def load(name: str, data_dir: Path | None = None) -> Dataset:
    """Load a data set.

    ``digits``: scikit-learn's 8x8 digits, x = pixel / 16 of shape (n, 64), 1,497 for training and 300
    for testing.
    ``mnist``: x = pixel / 255 of shape (n, 784), 60,000 for training and 10,000 for testing in the
    official files.
    ``cifar10``: colour images, x of shape (n, 3072), 50,000 for training and 10,000 for testing in the
    official files; contrast normalised and whitened, so that a coordinate has mean 0 and standard
    deviation 0.52.

    Parameters
    ----------
    name
        One of `NAMES`.
    data_dir
        Folder with local files, which are then the only ones used. None takes the environment
        variable LPFAMILY_DATA; without that, the official files are downloaded once into the user's
        cache. The digits need no files and ignore it.

    Raises
    ------
    BadInput
        Unknown name; a file that is missing, unreadable, damaged or not what its name says; a
        download that failed everywhere; scikit-learn missing.
    """
    # Each loader is imported when asked for: listing the names must not cost an import of scikit-learn.
    if name == "digits":
        from lpfamily.training.data import digits

        return digits.load()
    if name == "mnist":
        from lpfamily.training.data import mnist

        return mnist.load(folder(name, data_dir))
    if name == "cifar10":
        from lpfamily.training.data import cifar10

        return cifar10.load(folder(name, data_dir))
    raise BadInput(f"there is no data set called {name!r}: choose one of {', '.join(NAMES)}")


def folder(name: str, data_dir: Path | None = None) -> Path | None:
    """Return the folder whose files `load` uses; None if it uses no local ones."""
    chosen = data_dir or os.environ.get("LPFAMILY_DATA")
    return Path(chosen) if chosen and name != "digits" else None


def _first(split: Split, count: int) -> Split:
    return Split(split.x[: count or None], split.labels[: count or None])
