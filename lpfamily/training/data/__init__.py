"""Data sets by name, from other distributions, and from the user's files: float inputs and integer labels.

A distribution adds a data set by an entry point in the group `lpfamily.datasets`: a `Source`, under the name
of the data set.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from pathlib import Path

from lpfamily.training import plugins
from lpfamily.training.data import cifar10, custom, digits, mnist
from lpfamily.training.data.custom import as_floats
from lpfamily.training.data.datasets import Dataset, Source, Split, check_source, read_checked
from lpfamily.training.data.scaling import Scale, Scaling
from lpfamily.training.errors import BadInput

__all__ = [
    "GROUP",
    "NAMES",
    "SOURCES",
    "Dataset",
    "Scale",
    "Scaling",
    "Source",
    "Split",
    "as_floats",
    "folder",
    "is_named",
    "load",
    "names",
    "shape_and_classes",
    "source",
]

SOURCES = {each.name: each for each in (digits.DIGITS, mnist.MNIST, cifar10.CIFAR10)}
"""The data sets that come with lpfamily, by name; the first is the default."""

NAMES = tuple(SOURCES)

GROUP = "lpfamily.datasets"
"""The entry-point group for a data set's `Source`; `NAMES` are reserved."""


def load(name: str, data_dir: Path | None = None, size: Sequence[int] = ()) -> Dataset:
    """Load a data set.

    ``digits``: scikit-learn's 8x8 digits, x = pixel / 16 of shape (n, 64), 1,497 for training and 300
    for testing.
    ``mnist``: x = pixel / 255 of shape (n, 784), 60,000 for training and 10,000 for testing in the
    official files.
    ``cifar10``: colour images, x of shape (n, 3072), 50,000 for training and 10,000 for testing in the
    official files; contrast normalised and whitened, so that a coordinate has mean 0 and standard
    deviation 0.52.

    Other data sets are those that `names` lists; an .npz file with x, y, x_test and y_test; a folder with one
    subfolder of images per class; a folder with the four IDX files of a set in MNIST's format.
    `lpfamily.training.data.custom.load` describes how files and folders are read. A folder with the name of a
    data set needs a "/" at the end.

    Parameters
    ----------
    name
        One of `names()`, or a path relative to `data_dir` or, without it, to the current folder.
    data_dir
        Folder with local files; no other files are used then. None takes the environment variable
        LPFAMILY_DATA; without that, the official files are downloaded once into the user's cache. The digits
        need no files and ignore it. A path ignores the variable.
    size
        Height and width to which the images of a folder are resized, or one number for both; empty keeps
        their size.

    Raises
    ------
    BadInput
        Unknown name; a file that is missing, unreadable, damaged or not what its name says; examples
        that cannot be used; a download that failed from every mirror; scikit-learn or Pillow missing.
    """
    if _is_path(name, data_dir):
        path = _path(name, data_dir)
        for each in SOURCES.values():
            each.refuse(path)
        return custom.load(path, size)
    chosen = source(name)
    if size:
        raise BadInput(f"--size: is for folders of images, and {name} is none; leave it out")
    where = folder(name, data_dir)
    return chosen.read(where) if name in SOURCES else read_checked(chosen, where)


def names() -> list[str]:
    """Return the names of lpfamily's data sets, then those of other distributions, which are not imported."""
    return [*SOURCES, *(name for name in plugins.names(GROUP) if name not in SOURCES)]


def is_named(name: str) -> bool:
    """Return whether there is a data set of this name."""
    return name in SOURCES or name in plugins.names(GROUP)


def source(name: str) -> Source:
    """Return the `Source` of a data set; raise `BadInput` if there is no such data set."""
    check = functools.partial(check_source, name)
    result: Source | None = SOURCES.get(name) or plugins.load(GROUP, "data set", name, check)
    if result is None:
        raise BadInput(
            f"--data {name!r}: there is no such data set; choose one of {', '.join(names())}, or give an "
            ".npz file or a folder"
        )
    return result


def shape_and_classes(
    name: str, shape: Sequence[int] | None, classes: int | None
) -> tuple[tuple[int, ...], int]:
    """Return the shape and classes that a config gives for a data set, or else those of its `Source`."""
    if shape and classes:
        return tuple(shape), classes
    known = source(name)
    return known.shape, known.classes


def folder(name: str, data_dir: Path | None = None) -> Path | None:
    """Return the folder whose files `load` uses; None if it uses no local files."""
    if _is_path(name, data_dir):
        return _path(name, data_dir).parent
    chosen = data_dir or os.environ.get("LPFAMILY_DATA")
    return Path(chosen) if chosen and source(name).has_files else None


def _is_path(name: str, data_dir: Path | None) -> bool:
    """Return whether a name is the path of a file or folder, and not the name of a data set."""
    if is_named(name):
        return False
    is_there = bool(name) and (data_dir or Path()).joinpath(name).exists()
    return is_there or name.endswith((custom.SUFFIX, "/", os.sep))


def _path(name: str, data_dir: Path | None) -> Path:
    # not resolved, so that a link keeps its own name
    return Path(os.path.abspath((data_dir or Path()) / name))  # noqa: PTH100
