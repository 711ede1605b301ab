"""Data sets of a user's own: an .npz file, a folder of images by class, or one of IDX files as MNIST's."""

from __future__ import annotations

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
RECIPE = {"epochs": 100, "patience": 0, "second_stage": "none"}
"""One stage to its end, as for the digits: on few examples the best of all epochs is an early one."""


def load(path: Path, size: Sequence[int] = ()) -> Dataset:
    """Load a file or a folder as a data set, which has its name, one of a folder with a "/" behind it.

    x is float32, or float64 where the numbers have more than 24 bits. Bytes are pixels, x = byte / 255.
    Examples of two axes are images of one channel. The training examples come in a random order, always the
    same: files often have them by class.

    Parameters
    ----------
    path
        Absolute. An .npz file with x, y, x_test and y_test: numbers, (n, ...), and classes, integers from 0
        without gaps. Or a folder with images, as `lpfamily.training.data.images` has it, or with the four IDX
        files of a set in MNIST's format at any depth, whose classes may also be counted from 1.
    size
        What images are resized to.

    Raises
    ------
    BadInput
        It cannot be read, or cannot be used: the message says what of it.
    """
    if not path.exists():
        raise BadInput(
            f"--data {path}: there is no such file or folder; if it was moved, --data-dir says where to"
        )
    names: Sequence[str] = NAMES
    checksum = ""
    there = idx.find(path) if path.is_dir() else {}
    if size and (there or not path.is_dir()):
        raise BadInput(f"--size: is for folders of images, and {path} is none; leave it out")
    try:
        if there:
            arrays, names = _of_idx(there)
        elif path.is_dir():
            arrays, checksum = images.read(path, size)
        elif path.suffix == SUFFIX:
            arrays = [*npz.read(path, NAMES, str(path)).values()]
        else:
            raise BadInput(f"--data {path}: is neither an {SUFFIX} file nor a folder; give one of these")
        return _dataset(path, arrays, names, checksum)
    except MemoryError as cause:
        raise BadInput(f"{path}: does not fit into the memory that is free; give less") from cause


def check_examples(x: NDArray[Any], what: str = "x") -> None:
    """Raise `BadInput` unless an array is one of examples, (n, ...), whose entries are numbers."""
    if x.dtype.kind not in "fiub":
        raise BadInput(f"{what} must be numbers; got {x.dtype}")
    if x.ndim < 2 or not x.size:
        raise BadInput(f"{what} must have an axis of examples and others; got shape {x.shape}")


def check_labelled(x: NDArray[Any], y: NDArray[Any], names: Sequence[str]) -> None:
    """Raise `BadInput` unless two arrays, of these names, are examples and integers, one per example."""
    check_examples(x, names[0])
    if y.dtype.kind not in "iu" or y.shape != x.shape[:1]:
        raise BadInput(
            f"{names[1]} must be integers, one class per example, of shape ({len(x)},); got {y.dtype} of "
            f"shape {y.shape}"
        )


def as_floats(x: NDArray[Any]) -> Floats:
    """Return examples as floats, (n, inputs), bytes as fractions of 255; raise as `check_examples` does."""
    check_examples(x)
    flat: NDArray[Any] = x.reshape(len(x), -1)
    kind = np.float32 if np.can_cast(x.dtype, np.float32) else np.float64
    with np.errstate(over="ignore"):
        floats: Floats = flat.astype(kind, copy=False)
    if x.dtype == np.uint8:
        floats /= np.float32(255)  # of a copy
    return floats


def _of_idx(there: dict[tuple[str, str], Path]) -> tuple[list[NDArray[Any]], tuple[str, ...]]:
    """Return images and classes of the training set, then of the test set, and the names of their files."""
    arrays: list[NDArray[Any]] = []
    names: tuple[str, ...] = ()
    for split in "train", "test":
        paths = there[split, "images"], there[split, "labels"]
        images_of, labels = idx.pair(*paths)
        arrays += [images_of, labels.astype(np.int64)]
        names += tuple(path.name for path in paths)
    first = min(1, arrays[1].min())
    return [arrays[0], arrays[1] - first, arrays[2], arrays[3] - first], names


def _dataset(path: Path, arrays: list[NDArray[Any]], names: Sequence[str], checksum: str) -> Dataset:
    """Return a data set, whose checksum is that of the arrays unless there is one."""
    (x, y, test_x, test_y), known = arrays, [f"{path}: {name}" for name in names]
    check_labelled(x, y, known[:2])
    check_labelled(test_x, test_y, known[2:])
    shape, test_shape = x.shape[1:], test_x.shape[1:]
    if shape != test_shape:
        raise BadInput(
            f"{known[0]} has examples of shape {shape}, and {names[2]} of {test_shape}; they must be of one "
            "shape"
        )
    there = np.unique(y)
    if there[0] != 0 or there[-1] != len(there) - 1:
        raise BadInput(
            f"{known[1]} must number the classes from 0 without gaps; got {_some(there)}; "
            "numpy.unique(y, return_inverse=True)[1] does that"
        )
    if len(there) < 2:
        raise BadInput(f"{known[1]} has one class; give two or more")
    if (strange := np.setdiff1d(test_y, there)).size:
        raise BadInput(f"{known[3]} has the class {strange[0]}, of which {names[1]} has no example")
    order = np.random.default_rng(ORDER_SEED).permutation(len(x))
    splits = _split(x, y, order, known[0]), _split(test_x, test_y, slice(None), known[2])
    held_out = min(MOST_HELD_OUT, len(x) // HELD_OUT_ONE_IN)
    image = (1, *shape) if len(shape) == 2 else shape
    name = f"{path.name}/" if path.is_dir() else path.name
    recipe = RECIPE | {"validation": held_out}
    return Dataset(name, *splits, len(there), image, checksum or _checksum(arrays), recipe)


def _split(x: NDArray[Any], y: NDArray[Any], order: slice | Ints, name: str) -> Split:
    """Return examples in an order; raise `BadInput` if some are not finite."""
    x = as_floats(x[order])
    if bad := unusable(x):
        raise BadInput(f"{name} is not finite in {bad} of {len(x)} examples, or beyond float32")
    return Split(x, y[order].astype(np.int64))


def _checksum(arrays: Sequence[NDArray[Any]]) -> str:
    """Return the checksum of shapes, kinds and values, in whatever order their bytes are in the file."""
    arrays = [each.astype(each.dtype.newbyteorder("<"), copy=False) for each in arrays]
    kinds = repr([(each.dtype.str, each.shape) for each in arrays]).encode()
    return sha256([kinds, *(np.ascontiguousarray(each).data for each in arrays)]).hexdigest()


def _some(values: Ints) -> str:
    text = ", ".join(map(str, values[:5].tolist()))
    return text if len(values) <= 5 else f"{text}, ..., {values[-1]}"
