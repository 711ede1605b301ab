"""Data sets of a user's own: an .npz file, a folder of images by class, or one of IDX files as MNIST's."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lpfamily.training.data import idx, images, npz
from lpfamily.training.data.datasets import Dataset, Split, unusable
from lpfamily.training.errors import BadInput
from lpfamily.training.files import sha256
from lpfamily.training.networks import Floats, Ints

SUFFIX = ".npz"
NAMES = ("x", "y", "x_test", "y_test")
ORDER_SEED = 0
MOST_HELD_OUT, HELD_OUT_ONE_IN = 10_000, 6
"""As many of the training examples as of MNIST's."""
RECIPE = {"epochs": 100, "patience": 20, "second_stage": "none"}
CHANNELS = (1, 3, 4)


def is_own(name: str, data_dir: Path | None) -> bool:
    """Return whether what is no name of a data set is a file's or a folder's."""
    return name.endswith((SUFFIX, "/", os.sep)) or (data_dir or Path()).joinpath(name).exists()


def load(path: Path, size: Sequence[int] = ()) -> Dataset:
    """Load a file or a folder as a data set, which has its name, one of a folder with a "/" behind it.

    x is float32, or float64 where the numbers come in more than 24 bits. Bytes are pixels, x = byte / 255.
    Examples of two axes are images of one channel. The training examples come in a random order, always the
    same: files often have them by class.

    Parameters
    ----------
    path
        Absolute. An .npz file with x, y, x_test and y_test: numbers, (n, ...), and classes, integers from 0 without
        gaps. Or a folder with images, as `lpfamily.training.data.images` has it, or with the four IDX files
        of a set in MNIST's format at any depth, whose classes may also be counted from 1.
    size
        What images are resized to.

    Raises
    ------
    BadInput
        It cannot be read, or cannot be used: the message says what of it.
    """
    path = Path(os.path.abspath(path))  # not resolved: what a link is named by is the name
    checksum = None
    if not path.exists():
        raise BadInput(f"--data {path}: there is no such file or folder; if it was moved, --data-dir says where to")
    if path.is_dir():
        name = f"{path.name}/"
        if found := idx.find(path):
            arrays, names = _of_idx(found)
        else:
            (arrays, checksum), names = images.read(path, size), ("images", "classes") * 2
            size = ()
    elif path.suffix == SUFFIX:
        name, names = path.name, NAMES
        arrays = [*npz.read(path, NAMES, str(path)).values()]
    else:
        raise BadInput(f"--data {path}: is neither an {SUFFIX} file nor a folder; give one of these")
    if size:
        raise BadInput(f"--size: is for folders of images, and {path} is none; leave it out")
    try:
        return _dataset(path, name, arrays, names, checksum or _checksum(arrays))
    except MemoryError as cause:
        raise BadInput(f"{path}: does not fit into the memory that is free; give less") from cause


def _of_idx(found: dict[tuple[str, str], Path]) -> tuple[list[NDArray[Any]], tuple[str, ...]]:
    arrays: list[NDArray[Any]] = []
    names = []
    for split in "train", "test":
        paths = found[split, "images"], found[split, "labels"]
        arrays += idx.pair(*paths)
        names += [path.name for path in paths]
    first = min(1, arrays[1].min())
    return [arrays[0], arrays[1] - first, arrays[2], arrays[3] - first], tuple(names)


def _dataset(path: Path, name: str, arrays: list[NDArray[Any]], names: Sequence[str], checksum: str) -> Dataset:
    x, y, test_x, test_y = arrays
    for which, labels, what, of in (x, y, *names[:2]), (test_x, test_y, *names[2:]):
        _check(path, which, labels, what, of)
    if x.shape[1:] != test_x.shape[1:]:
        raise BadInput(
            f"{path}: {names[0]} has examples of shape {x.shape[1:]}, and {names[2]} of {test_x.shape[1:]}; "
            "give both the same"
        )
    there = np.unique(y)
    classes = len(there)
    if there[0] != 0 or there[-1] != classes - 1:
        raise BadInput(
            f"{path}: {names[1]} must number the classes from 0 without gaps; got {_some(there)}; "
            "numpy.unique(y, return_inverse=True)[1] does that"
        )
    if classes < 2:
        raise BadInput(f"{path}: {names[1]} has one class; give two or more")
    if strange := set(np.unique(test_y).tolist()) - set(range(classes)):
        raise BadInput(f"{path}: {names[3]} has the class {min(strange)}, which {names[1]} has no example of")
    order = np.random.default_rng(ORDER_SEED).permutation(len(x))
    splits = (
        Split(_floats(path, each, what), labels.astype(np.int64))
        for each, labels, what in ((x[order], y[order], names[0]), (test_x, test_y, names[2]))
    )
    shape = x.shape[1:] if x.ndim != 3 else (1, *x.shape[1:])
    validation = min(MOST_HELD_OUT, len(x) // HELD_OUT_ONE_IN)
    recipe = RECIPE | ({"validation": validation} if validation else {"validation": 0, "patience": 0})
    return Dataset(name, *splits, classes, shape, checksum, recipe)


def _check(path: Path, x: NDArray[Any], y: NDArray[Any], what: str, of: str) -> None:
    if x.dtype.kind not in "fiub":
        raise BadInput(f"{path}: {what} must be numbers; got {x.dtype}")
    if x.ndim < 2 or not x.size:
        raise BadInput(f"{path}: {what} must have an axis of examples and others; got shape {x.shape}")
    if y.dtype.kind not in "iu" or y.shape != x.shape[:1]:
        raise BadInput(
            f"{path}: {of} must be integers, one class per example, of shape ({len(x)},); got {y.dtype} of "
            f"shape {y.shape}"
        )


def _floats(path: Path, x: NDArray[Any], what: str) -> Floats:
    """Return examples as floats, (n, inputs)."""
    x = x.reshape(len(x), -1)
    if x.dtype == np.uint8:
        return np.divide(x, 255, dtype=np.float32)
    with np.errstate(over="ignore"):
        found: Floats = x.astype(np.float32 if np.can_cast(x.dtype, np.float32) else np.float64)
    if bad := unusable(found):
        raise BadInput(f"{path}: {what} is not finite, as float32, in {bad} of {len(x)} examples")
    return found


def _checksum(arrays: Sequence[NDArray[Any]]) -> str:
    blocks = ((repr((each.dtype.str, each.shape)).encode(), np.ascontiguousarray(each).data) for each in arrays)
    return sha256(block for pair in blocks for block in pair).hexdigest()


def _some(values: Ints) -> str:
    text = ", ".join(map(str, values[:5].tolist()))
    return text if len(values) <= 5 else f"{text}, ..., {values[-1]}"
