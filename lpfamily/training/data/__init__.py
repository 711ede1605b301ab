"""The data sets, by name, from other distributions, and of a user's own: floats, and labels as integers.

A distribution adds one by an entry point in the group `lpfamily.datasets`: its name is that of the data set,
and it is a `Source`.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from pathlib import Path

from lpfamily.training import plugins
from lpfamily.training.data import cifar10, digits, mnist, own
from lpfamily.training.data.datasets import Dataset, Source, Split, check_source, read_strange
from lpfamily.training.data.own import as_floats
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
"""The group of entry points that name the `Source` of a data set; `NAMES` are taken."""


def load(name: str, data_dir: Path | None = None, size: Sequence[int] = ()) -> Dataset:
    """Load a data set.

    ``digits``: scikit-learn's 8x8 digits, x = pixel / 16 of shape (n, 64), 1,497 for training and 300
    for testing.
    ``mnist``: x = pixel / 255 of shape (n, 784), 60,000 for training and 10,000 for testing in the
    official files.
    ``cifar10``: colour images, x of shape (n, 3072), 50,000 for training and 10,000 for testing in the
    official files; contrast normalised and whitened, so that a coordinate has mean 0 and standard
    deviation 0.52.

    Others are what `names` lists beside them; an .npz file with x, y, x_test and y_test; a folder of images
    by class; a folder with the four IDX files of a set in MNIST's format. `lpfamily.training.data.own.load`
    says what becomes of files and folders. A folder with the name of a data set needs a "/" behind it.

    Parameters
    ----------
    name
        One of `names()`, or a path, from `data_dir` or else the current folder.
    data_dir
        Folder with local files, which are then the only ones used. None takes the environment
        variable LPFAMILY_DATA; without that, the official files are downloaded once into the user's
        cache. The digits need no files and ignore it. A path ignores the variable.
    size
        Height and width that the images of a folder are resized to, or one number for both; none is the size
        that they have.

    Raises
    ------
    BadInput
        Unknown name; a file that is missing, unreadable, damaged or not what its name says; examples
        that cannot be used; a download that failed everywhere; scikit-learn or Pillow missing.
    """
    if _is_own(name, data_dir):
        path = _path(name, data_dir)
        for each in SOURCES.values():
            each.refuse(path)
        return own.load(path, size)
    found = source(name)
    if size:
        raise BadInput(f"--size: is for folders of images, and {name} is none; leave it out")
    where = folder(name, data_dir)
    return found.read(where) if name in SOURCES else read_strange(found, where)


def names() -> list[str]:
    """Return the names of the data sets that come with lpfamily, then of others; imports none of these."""
    return [*SOURCES, *(name for name in plugins.names(GROUP) if name not in SOURCES)]


def is_named(name: str) -> bool:
    """Return whether there is a data set of this name."""
    return name in SOURCES or name in plugins.names(GROUP)


def source(name: str) -> Source:
    """Return what is known of a data set without its examples; raise `BadInput` if there is none."""
    check = functools.partial(check_source, name)
    found: Source | None = SOURCES.get(name) or plugins.load(GROUP, "data set", name, check)
    if found is None:
        raise BadInput(
            f"--data {name!r}: there is no such data set; choose one of {', '.join(names())}, or give an "
            ".npz file or a folder"
        )
    return found


def shape_and_classes(
    name: str, shape: Sequence[int] | None, classes: int | None
) -> tuple[tuple[int, ...], int]:
    """Return what a config says of a data set; where it says nothing, what its `Source` does."""
    if shape and classes:
        return tuple(shape), classes
    known = source(name)
    return known.shape, known.classes


def folder(name: str, data_dir: Path | None = None) -> Path | None:
    """Return the folder whose files `load` uses; None if it uses no local ones."""
    if _is_own(name, data_dir):
        return _path(name, data_dir).parent
    chosen = data_dir or os.environ.get("LPFAMILY_DATA")
    return Path(chosen) if chosen and source(name).has_files else None


def _is_own(name: str, data_dir: Path | None) -> bool:
    """Return whether what is no name of a data set is a file's or a folder's."""
    if is_named(name):
        return False
    is_there = bool(name) and (data_dir or Path()).joinpath(name).exists()
    return is_there or name.endswith((own.SUFFIX, "/", os.sep))


def _path(name: str, data_dir: Path | None) -> Path:
    # not resolved: the name of a link is that of the link
    return Path(os.path.abspath((data_dir or Path()) / name))  # noqa: PTH100
