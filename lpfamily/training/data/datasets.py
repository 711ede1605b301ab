"""A data set: its examples (`Dataset`), and its description before they are read (`Source`)."""

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
        Inputs of shape (n, inputs), float32 unless they were given in another dtype.
    labels
        int64 of shape (n,), values in [0, classes).
    """

    x: NDArray[np.floating]
    labels: NDArray[np.int64]

    def rows(self, which: slice | list[int]) -> Split:
        """Return a subset of the examples."""
        return Split(self.x[which], self.labels[which])

    def astype(self, dtype: str) -> Split:
        """Return the examples with x in a dtype, without a copy if x has it already."""
        return Split(self.x.astype(dtype, copy=False), self.labels)

    def first_of_each(self, classes: Iterable[int]) -> Split:
        """Return the first example of each given class, in the given order."""
        return self.rows([int(np.flatnonzero(self.labels == each)[0]) for each in classes])


@dataclass(frozen=True, eq=False)
class Dataset:
    """A data set with the name by which it is loaded.

    Attributes
    ----------
    classes
        The number of classes.
    shape
        The shape of an example, channels first for an image. The number of inputs is the product.
    source_sha256
        The checksum of the data from which the examples were computed, if the examples are scaled or can
        differ between machines by rounding.
    recipe
        The values by which its recipes differ from the published ones, for a set without a `Source`.
    scaling
        The scaling that `scaled` has applied to all x.
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
        """Return the data set with x scaled. The scaling is given, or computed from the training examples.

        The checksum stays that of the unscaled examples.
        """
        if isinstance(by, str):
            by = scaling.fit(by, self.train.x, self.shape[0])
        if by is None:
            return self
        if len(by.divide) != self.shape[0]:
            raise BadInput(
                f"a scaling with {len(by.divide)} numbers does not fit {self.name}, whose examples have "
                f"shape {self.shape}"
            )
        train, test = (Split(by(split.x), split.labels) for split in (self.train, self.test))
        return replace(self, train=train, test=test, source_sha256=self.sha256(), scaling=by)

    def first(self, train: int, test: int) -> Dataset:
        """Return the data set of the first `train` and `test` examples; 0 keeps all."""
        for flag, count, split in ("--examples", train, self.train), ("--test-examples", test, self.test):
            if count > len(split.x):
                raise BadInput(f"{flag} {count}: {self.name} has {len(split.x)}; give less, or 0 for all")
        first_train, first_test = (slice(count or None) for count in (train, test))
        return replace(self, train=self.train.rows(first_train), test=self.test.rows(first_test))

    def sha256(self) -> str:
        """Return the checksum of all examples, by which a run recognises its data."""
        if self.source_sha256 is not None:
            return self.source_sha256
        arrays = (each for split in (self.train, self.test) for each in (split.x, split.labels))
        return sha256(each.data for each in arrays).hexdigest()


@dataclass(frozen=True)
class Source:
    """The description of a data set, and the function that reads its examples.

    Attributes
    ----------
    name
        The name by which it is loaded.
    shape
        The shape of an example, channels first for an image.
    classes
        The number of classes.
    radius
        The published sigma at p = 2, in units of the input; None scales that of MNIST with the square root of
        the number of inputs (section IV-B of the paper).
    read
        read(folder) returns the examples, from local files in the folder or, for None, from official files
        that are downloaded once.
    has_files
        Whether it needs files.
    recipe
        The values by which its recipes differ from those of other sets.
    of_models
        Further such values, by model.
    refuse
        refuse(path) raises `BadInput` for a folder or file with a version of the set that cannot be read.
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
        """The number of inputs of an example."""
        return math.prod(self.shape)

    def dataset(self, train: Split, test: Split, source_sha256: str | None = None) -> Dataset:
        """Return the `Dataset` of these examples."""
        return Dataset(self.name, train, test, self.classes, self.shape, source_sha256)


def check_source(name: str, registered: Any) -> None:
    """Raise TypeError unless the registered object is the `Source` of this name."""
    if not isinstance(registered, Source) or registered.name != name:
        raise TypeError(f"it is no lpfamily.training.data.Source named {name!r}")


def read_checked(source: Source, folder: Path | None) -> Dataset:
    """Return the data set of a third-party `Source`; raise `BadInput` if it cannot be used."""
    try:
        result = source.read(folder)
        for name in "name", "shape", "classes":
            if getattr(result, name) != getattr(source, name):
                raise ValueError(f"its {name} is {getattr(result, name)!r}")
        for name, split in ("train", result.train), ("test", result.test):
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
    except Exception as cause:  # a third-party module may fail in any way
        raise BadInput(f"data set {source.name!r} cannot be used ({cause!r}); tell its authors") from cause
    return result


def unusable(x: NDArray[np.floating]) -> int:
    """Return the number of examples, (n, inputs), with a NaN or a number beyond the range of float32."""
    return int(np.count_nonzero(~(np.abs(x) <= np.finfo(np.float32).max).all(axis=1)))


def published_radius(radius: float | None, inputs: int) -> float:
    """Return the radius at p = 2: the published one, or that of MNIST scaled to the number of inputs."""
    return math.sqrt(inputs) / 28 if radius is None else radius
