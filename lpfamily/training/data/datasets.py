"""A data set: its examples, and what is known of it before they are read."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lpfamily.training.data import scaling
from lpfamily.training.data.scaling import Scale, Scaling
from lpfamily.training.errors import BadInput
from lpfamily.training.files import sha256


# Compared by identity: an array compared with an array has no single truth value.
@dataclass(frozen=True, eq=False)
class Split:
    """Examples with their labels.

    Attributes
    ----------
    x
        float32 of shape (n, inputs), unless it was given another dtype.
    labels
        int64 of shape (n,), values in [0, classes).
    """

    x: NDArray[np.floating]
    labels: NDArray[np.int64]

    def rows(self, which: slice | list[int]) -> Split:
        """Return some of the examples."""
        return Split(self.x[which], self.labels[which])

    def astype(self, dtype: str) -> Split:
        """Return the examples with x in a dtype; what has it already is not copied."""
        return Split(self.x.astype(dtype, copy=False), self.labels)

    def first_of_each(self, classes: Iterable[int]) -> Split:
        """Return the first example of each of some classes, in their order."""
        return self.rows([int(np.flatnonzero(self.labels == each)[0]) for each in classes])


@dataclass(frozen=True, eq=False)
class Dataset:
    """A data set by the name it is loaded with.

    Attributes
    ----------
    classes
        How many there are.
    shape
        Of an example, channels first where it is an image; their product is the number of inputs.
    source_sha256
        The checksum of what the examples were computed from, where they are not the same on every
        machine to the last bit, or are scaled.
    recipe
        What differs in its recipes from the published ones, where it is no `Source` that says it.
    scaling
        What `scaled` has done to all x.
    """

    name: str
    train: Split
    test: Split
    classes: int
    shape: tuple[int, ...]
    source_sha256: str | None = None
    recipe: Mapping[str, Any] = field(default_factory=dict)
    scaling: Scaling | None = None

    def scaled(self, by: Scale | Scaling | None) -> Dataset:
        """Return the data set with x scaled, as computed from all its training examples, or as given.

        Its checksum is that of the examples before.
        """
        if isinstance(by, str):
            by = scaling.fit(by, self.train.x, self.shape[0])
        if by is None:
            return self
        if len(by.divide) != self.shape[0]:
            raise BadInput(f"a scaling of {len(by.divide)} numbers is not one of {self.name}, {self.shape}")
        train, test = (Split(by(split.x), split.labels) for split in (self.train, self.test))
        return replace(self, train=train, test=test, source_sha256=self.sha256(), scaling=by)

    def first(self, train: int, test: int) -> Dataset:
        """Return the data set of so many examples of each split, the first ones; 0 is all."""
        for flag, count, split in ("--examples", train, self.train), ("--test-examples", test, self.test):
            if count > len(split.x):
                raise BadInput(f"{flag} {count}: {self.name} has {len(split.x)}; give less, or 0 for all")
        first_train, first_test = (slice(count or None) for count in (train, test))
        return replace(self, train=self.train.rows(first_train), test=self.test.rows(first_test))

    def sha256(self) -> str:
        """Return the checksum of everything in it, by which a run knows its data again."""
        if self.source_sha256 is not None:
            return self.source_sha256
        arrays = (each for split in (self.train, self.test) for each in (split.x, split.labels))
        return sha256(each.data for each in arrays).hexdigest()


@dataclass(frozen=True)
class Source:
    """What is known of a data set without its examples, and what reads them.

    Attributes
    ----------
    name
        The name to load it with.
    shape
        Of an example, channels first where it is an image.
    classes
        How many there are.
    radius
        The published sigma at p = 2, in units of the input; None takes that of MNIST in proportion to the
        square root of the number of coordinates (section IV-B of the paper).
    read
        read(folder) returns the examples, from local files in the folder, or for None from official files
        that are downloaded once.
    has_files
        Whether it needs files.
    recipe
        What differs in its recipes from those of other sets.
    of_models
        What differs beside it, by model.
    refuse
        refuse(path) raises `BadInput` for a folder or file that is a version of it which cannot be read.
    """

    name: str
    shape: tuple[int, ...]
    classes: int
    read: Callable[[Path | None], Dataset]
    radius: float | None = None
    has_files: bool = True
    recipe: Mapping[str, Any] = field(default_factory=dict)
    of_models: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    refuse: Callable[[Path], None] = lambda path: None

    @property
    def inputs(self) -> int:
        """The number of coordinates of an example."""
        return math.prod(self.shape)

    def dataset(self, train: Split, test: Split, source_sha256: str | None = None) -> Dataset:
        """Return examples as those of this set."""
        return Dataset(self.name, train, test, self.classes, self.shape, source_sha256)


def check_source(name: str, found: Any) -> None:
    """Raise unless it is the `Source` of a data set of this name."""
    if not isinstance(found, Source) or found.name != name:
        raise TypeError(f"it is no lpfamily.training.data.Source named {name!r}")


def read_strange(source: Source, folder: Path | None) -> Dataset:
    """Return what a `Source` of another distribution reads; raise `BadInput` if it cannot be used."""
    try:
        found = source.read(folder)
        for name in "name", "shape", "classes":
            if getattr(found, name) != getattr(source, name):
                raise ValueError(f"its {name} is {getattr(found, name)!r}")
        for name, split in ("train", found.train), ("test", found.test):
            x, labels, n = split.x, split.labels, len(split.x)
            if x.shape != (n, source.inputs) or x.dtype not in (np.float32, np.float64) or not n:
                raise ValueError(
                    f"{name}.x must be float32 or float64, (n, {source.inputs}); got {x.dtype} {x.shape}"
                )
            if labels.shape != (n,) or labels.dtype != np.int64:
                raise ValueError(f"{name}.labels must be int64, ({n},); got {labels.dtype} {labels.shape}")
            if not 0 <= labels.min() <= labels.max() < source.classes:
                raise ValueError(f"{name}.labels must be from 0 to {source.classes - 1}")
            if bad := unusable(x):
                raise ValueError(f"{name}.x is not finite in {bad} of {n} examples, or beyond float32")
    except BadInput:
        raise
    except Exception as cause:  # a stranger's module may fail in any way
        raise BadInput(
            f"data set {source.name!r} cannot be used ({cause!r}); tell those who made it"
        ) from cause
    return found


def unusable(x: NDArray[np.floating]) -> int:
    """Return how many examples, (n, inputs), have a number that float32 has not: NaN, or too large."""
    return int(np.count_nonzero(~(np.abs(x) <= np.finfo(np.float32).max).all(axis=1)))


def published_radius(radius: float | None, inputs: int) -> float:
    """Return the radius at p = 2: the published one, or that of MNIST for so many coordinates."""
    return math.sqrt(inputs) / 28 if radius is None else radius
