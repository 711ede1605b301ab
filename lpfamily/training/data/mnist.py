"""MNIST from its four IDX files, whose headers are checked before anything is read by their word.

An IDX file is: two zero bytes, the type of an entry (8 = unsigned byte), the number of dimensions, each
dimension as a big-endian 32-bit integer, then the entries with the last dimension varying fastest.
"""

import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lpfamily.training.data import files
from lpfamily.training.data.datasets import Dataset, Source, Split
from lpfamily.training.data.files import REMEDY
from lpfamily.training.errors import BadInput

MIRRORS = (
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
)
FILES = tuple(
    files.Remote(f"{name}-ubyte.gz", size, sha256)
    for name, size, sha256 in (
        ("train-images-idx3", 9_912_422, "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609"),
        ("train-labels-idx1", 28_881, "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c"),
        ("t10k-images-idx3", 1_648_877, "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6"),
        ("t10k-labels-idx1", 4_542, "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6"),
    )
)
IMAGE = (28, 28)
CLASSES = 10


def load(data_dir: Path | None) -> Dataset:
    """Load MNIST, x = pixel / 255 of shape (n, 784).

    Parameters
    ----------
    data_dir
        Folder with the four files, in it or in its sub-folder mnist, as they are or with .gz. They are
        judged by their structure alone, so subsets of any size will do. None downloads the official
        ones, which must have the official checksums.

    Raises
    ------
    BadInput
        A file is missing, unreadable, damaged or not what its name says, or could not be downloaded.
    """
    if data_dir is None:
        folder = files.cache_folder() / "mnist"
        paths = [files.fetch(remote, MIRRORS, folder) for remote in FILES]
    else:
        folders = (data_dir / "mnist", data_dir)
        paths = [files.find(remote.name.removesuffix(".gz"), folders) for remote in FILES]
    return MNIST.dataset(_split(*paths[:2]), _split(*paths[2:]))


MNIST = Source("mnist", (1, *IMAGE), CLASSES, load, radius=1.0)


def _split(images_path: Path, labels_path: Path) -> Split:
    labels = _read_idx(labels_path, ())
    files.check_labels(labels_path, labels, CLASSES)
    images = _read_idx(images_path, IMAGE)
    if len(images) != len(labels):
        raise BadInput(
            f"{images_path} has {len(images)} images and {labels_path} has {len(labels)} labels, expected "
            "as many of each: take both from the same source"
        )
    x = np.divide(images.reshape(len(images), -1), 255, dtype=np.float32)
    return Split(x, labels.astype(np.int64))


def _read_idx(path: Path, example: tuple[int, ...]) -> NDArray[np.uint8]:
    """Return the file's array, of shape (n, *example) with n >= 1."""
    magic = bytes((0, 0, 8, 1 + len(example)))
    header_size = len(magic) + 4 * magic[3]
    with files.reading(path) as stream:
        header = files.read_at_most(stream, header_size)
        if not header.startswith(magic):
            raise BadInput(
                f"{path} starts with the bytes {header[:4].hex(' ') or '(none)'}, expected {magic.hex(' ')} "
                f"(an IDX file of unsigned bytes with {magic[3]} dimensions): {REMEDY}"
            )
        if len(header) < header_size:
            raise BadInput(
                f"{path} ends within its header: {len(header)} bytes, expected {header_size}: {REMEDY}"
            )
        shape = tuple(np.frombuffer(header, ">u4", offset=len(magic)).tolist())
        if shape[1:] != example:
            raise BadInput(
                f"{path} holds images of {_times(shape[1:])} pixels, expected {_times(example)}: {REMEDY}"
            )
        if shape[0] == 0:
            raise BadInput(f"{path} holds no examples, expected at least one: {REMEDY}")
        size = math.prod(shape)
        # One byte more than announced, no more: it shows a file that is too long, and reaching the end
        # makes gzip compare its checksum.
        content = files.read_at_most(stream, size + 1)
    if len(content) != size:
        found = f"only {len(content)}" if len(content) < size else "more"
        raise BadInput(
            f"{path} has {found} bytes after its header, expected {size} ({_times(shape)}, as the header "
            f"says): {REMEDY}"
        )
    return np.frombuffer(content, np.uint8).reshape(shape)


def _times(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
