"""The data sets by name: examples as float32, labels as integers."""

from __future__ import annotations

import os
from pathlib import Path

from lpfamily.training.data import cifar10, digits, mnist
from lpfamily.training.data.datasets import Dataset, Source, Split
from lpfamily.training.errors import BadInput

__all__ = ["NAMES", "SOURCES", "Dataset", "Source", "Split", "folder", "load", "source"]

SOURCES = {each.name: each for each in (digits.DIGITS, mnist.MNIST, cifar10.CIFAR10)}
"""The data sets that there are, by name; the first is the default."""

NAMES = tuple(SOURCES)


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
    return source(name).read(folder(name, data_dir))


def source(name: str) -> Source:
    """Return what is known of a data set without its examples; raise `BadInput` if there is none."""
    if name not in SOURCES:
        raise BadInput(f"--data {name!r}: there is no such data set; choose one of {', '.join(SOURCES)}")
    return SOURCES[name]


def folder(name: str, data_dir: Path | None = None) -> Path | None:
    """Return the folder whose files `load` uses; None if it uses no local ones."""
    chosen = data_dir or os.environ.get("LPFAMILY_DATA")
    return Path(chosen) if chosen and source(name).has_files else None
