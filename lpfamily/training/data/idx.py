"""IDX files, the format of MNIST. Headers are checked before the data are read.

An IDX file has two zero bytes, the type of an entry (8 = unsigned byte), the number of dimensions, each
dimension as a big-endian 32-bit integer, and then the entries, with the last dimension varying fastest.
"""

import itertools
import math
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lpfamily.training.data import files
from lpfamily.training.data.files import REMEDY
from lpfamily.training.errors import BadInput

Bytes = NDArray[np.uint8]

# train-images-idx3-ubyte.gz, train-images.idx3-ubyte, emnist-letters-test-labels-idx1-ubyte
_NAME = re.compile(r"(.*-)?(train|t10k|test)-(images|labels)[.-]idx[13]-ubyte(\.gz)?", re.IGNORECASE)


def find(folder: Path) -> dict[tuple[str, str], Path]:
    """Return the IDX files at any depth of a folder, by "train" or "test" and by "images" or "labels".

    Files are recognised by their usual names. The result is empty if there are none.

    Raises
    ------
    BadInput
        The folder has the files of several sets, or only some of one set.
    """
    result: dict[tuple[str, str], Path] = {}
    for path in files.walk(folder):
        if (match := _NAME.fullmatch(path.name)) is None:
            continue
        key = "train" if match[2].lower() == "train" else "test", match[3].lower()
        other = result.setdefault(key, path)
        if path not in (other, other.with_name(f"{other.name}.gz")):
            raise BadInput(f"{folder} has {other} and {path}: give the folder of one set alone")
    if result and len(result) < 4:
        lacking = next(
            key for key in itertools.product(("train", "test"), ("images", "labels")) if key not in result
        )
        raise BadInput(
            f"{folder} has {next(iter(result.values()))}, and lacks an IDX file of {' '.join(lacking)}"
        )
    return result


def pair(images_path: Path, labels_path: Path, image: Sequence[int] | None = None) -> tuple[Bytes, Bytes]:
    """Return n images, (n, height, width), and n labels; `image` is the expected size."""
    labels = read(labels_path, 0)
    images = read(images_path, 2, image)
    if len(images) != len(labels):
        raise BadInput(
            f"{images_path} has {len(images)} images and {labels_path} has {len(labels)} labels, expected "
            "as many of each: take both from the same source"
        )
    return images, labels


def read(path: Path, axes: int, example: Sequence[int] | None = None) -> Bytes:
    """Return the array of a file, (n, ...) with n >= 1; an example has `axes` axes and shape `example`."""
    magic = bytes((0, 0, 8, 1 + axes))
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
        if example is not None and shape[1:] != tuple(example):
            raise BadInput(
                f"{path} holds images of {_times(shape[1:])} pixels, expected {_times(example)}: {REMEDY}"
            )
        size = math.prod(shape)
        if size == 0:
            raise BadInput(f"{path} holds no examples, expected at least one: {REMEDY}")
        # One byte more than announced: it reveals a file that is too long, and reaching the end makes gzip
        # compare its checksum.
        content = files.read_at_most(stream, size + 1)
    if len(content) != size:
        count = f"only {len(content)}" if len(content) < size else "more"
        raise BadInput(
            f"{path} has {count} bytes after its header, expected {size} ({_times(shape)}, as the header "
            f"says): {REMEDY}"
        )
    return np.frombuffer(content, np.uint8).reshape(shape)


def _times(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))
