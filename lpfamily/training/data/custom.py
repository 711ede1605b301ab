"""Data sets from the user's files: an .npz file, a folder of images by class, or IDX files like MNIST's."""

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
"""One training example in six is held out, as for MNIST, but at most 10,000."""
RECIPE = {"epochs": 100, "patience": 0, "second_stage": "none"}
"""One stage without early stopping, as for the digits: on few examples the best epoch is an early one."""


def load(path: Path, size: Sequence[int] = ()) -> Dataset:
    """Load a file or a folder as a data set, named by the path's last component, with a "/" for a folder.

    x is float32, or float64 if the numbers have more than 24 bits. Bytes are pixels, x = byte / 255. Examples
    with two axes are images with one channel. The training examples are put in a random order, always the
    same, as files are often sorted by class.

    Parameters
    ----------
    path
        An absolute path. An .npz file with x, y, x_test and y_test: numbers, (n, ...), and classes, integers
        from 0 without gaps. Or a folder with images, as for `lpfamily.training.data.images`, or with the four
        IDX files of a set in MNIST's format at any depth, whose classes may also be counted from 1.
    size
        The size to which images are resized.

    Raises
    ------
    BadInput
        The path cannot be read or used. The message says why.
    """
    if not path.exists():
        raise BadInput(
            f"--data {path}: there is no such file or folder; if it was moved, --data-dir says where to"
        )
    names: Sequence[str] = NAMES
    checksum = ""
    idx_files = idx.find(path) if path.is_dir() else {}
    if size and (idx_files or not path.is_dir()):
        raise BadInput(f"--size: is for folders of images, and {path} is none; leave it out")
    try:
        if idx_files:
            arrays, names = _of_idx(idx_files)
        elif path.is_dir():
            arrays, checksum = images.read(path, size)
        elif path.suffix == SUFFIX:
            arrays = [*npz.read(path, NAMES, str(path)).values()]
        else:
            raise BadInput(f"--data {path}: is neither an {SUFFIX} file nor a folder; give one of these")
        return _dataset(path, arrays, names, checksum)
    except MemoryError as cause:
        raise BadInput(f"{path}: does not fit into the free memory; give less") from cause


def check_examples(x: NDArray[Any], what: str = "x") -> None:
    """Raise `BadInput` unless an array contains examples, (n, ...), of numbers."""
    if x.dtype.kind not in "fiub":
        raise BadInput(f"{what} must be numbers; got {x.dtype}")
    if x.ndim < 2 or not x.size:
        raise BadInput(f"{what} must have an axis of examples and others; got shape {x.shape}")


def check_labelled(x: NDArray[Any], y: NDArray[Any], names: Sequence[str]) -> None:
    """Raise `BadInput` unless the arrays, named by `names`, are examples and one integer per example."""
    check_examples(x, names[0])
    if y.dtype.kind not in "iu" or y.shape != x.shape[:1]:
        raise BadInput(
            f"{names[1]} must be integers, one class per example, of shape ({len(x)},); got {y.dtype} of "
            f"shape {y.shape}"
        )


def as_floats(x: NDArray[Any]) -> Floats:
    """Return examples as floats, (n, inputs), bytes divided by 255; raise as `check_examples` does."""
    check_examples(x)
    flat: NDArray[Any] = x.reshape(len(x), -1)
    kind = np.float32 if np.can_cast(x.dtype, np.float32) else np.float64
    with np.errstate(over="ignore"):
        floats: Floats = flat.astype(kind, copy=False)
    if x.dtype == np.uint8:
        floats /= np.float32(255)  # in place in the copy that astype has made
    return floats


def _of_idx(idx_files: dict[tuple[str, str], Path]) -> tuple[list[NDArray[Any]], tuple[str, ...]]:
    """Return images and classes of the training set, then of the test set, and the names of their files."""
    arrays: list[NDArray[Any]] = []
    names: tuple[str, ...] = ()
    for split in "train", "test":
        paths = idx_files[split, "images"], idx_files[split, "labels"]
        images_of, labels = idx.pair(*paths)
        arrays += [images_of, labels.astype(np.int64)]
        names += tuple(path.name for path in paths)
    first = min(1, arrays[1].min())
    return [arrays[0], arrays[1] - first, arrays[2], arrays[3] - first], names


def _dataset(path: Path, arrays: list[NDArray[Any]], names: Sequence[str], checksum: str) -> Dataset:
    """Return the data set of four arrays; without a checksum, compute it from the arrays."""
    (x, y, test_x, test_y), full_names = arrays, [f"{path}: {name}" for name in names]
    check_labelled(x, y, full_names[:2])
    check_labelled(test_x, test_y, full_names[2:])
    shape, test_shape = x.shape[1:], test_x.shape[1:]
    if shape != test_shape:
        raise BadInput(
            f"{full_names[0]} has examples of shape {shape}, and {names[2]} of {test_shape}; they must be of "
            "one shape"
        )
    classes = np.unique(y)
    if classes[0] != 0 or classes[-1] != len(classes) - 1:
        raise BadInput(
            f"{full_names[1]} must number the classes from 0 without gaps; got {_some(classes)}; "
            "numpy.unique(y, return_inverse=True)[1] does that"
        )
    if len(classes) < 2:
        raise BadInput(f"{full_names[1]} has one class; give two or more")
    if (unknown := np.setdiff1d(test_y, classes)).size:
        raise BadInput(f"{full_names[3]} has the class {unknown[0]}, of which {names[1]} has no example")
    order = np.random.default_rng(ORDER_SEED).permutation(len(x))
    splits = _split(x, y, order, full_names[0]), _split(test_x, test_y, slice(None), full_names[2])
    validation = min(MOST_HELD_OUT, len(x) // HELD_OUT_ONE_IN)
    image = (1, *shape) if len(shape) == 2 else shape
    name = f"{path.name}/" if path.is_dir() else path.name
    recipe = RECIPE | {"validation": validation}
    return Dataset(name, *splits, len(classes), image, checksum or _checksum(arrays), recipe)


def _split(x: NDArray[Any], y: NDArray[Any], order: slice | Ints, name: str) -> Split:
    """Return the examples in an order; raise `BadInput` if some are not finite."""
    x = as_floats(x[order])
    if bad := unusable(x):
        raise BadInput(f"{name} is not finite in {bad} of {len(x)} examples, or beyond float32")
    return Split(x, y[order].astype(np.int64))


def _checksum(arrays: Sequence[NDArray[Any]]) -> str:
    """Return the checksum of shapes, dtypes and values, whatever the byte order in the file."""
    arrays = [each.astype(each.dtype.newbyteorder("<"), copy=False) for each in arrays]
    kinds = repr([(each.dtype.str, each.shape) for each in arrays]).encode()
    return sha256([kinds, *(np.ascontiguousarray(each).data for each in arrays)]).hexdigest()


def _some(values: Ints) -> str:
    text = ", ".join(map(str, values[:5].tolist()))
    return text if len(values) <= 5 else f"{text}, ..., {values[-1]}"
