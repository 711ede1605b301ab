"""CIFAR-10 from the six files of its binary version, whitened as in the maxout paper.

A file is a sequence of records: one byte for the label, then 32 x 32 bytes each for red, green and blue, row
by row.
"""

import gzip
import math
import sys
import tarfile
import tempfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lpfamily.training.data import files
from lpfamily.training.data.datasets import Dataset, Source, Split
from lpfamily.training.data.files import OTHER_SOURCE, REMEDY
from lpfamily.training.data.preprocessing import NORM, REGULARISER, global_contrast_normalise, whiten, zca
from lpfamily.training.errors import BadInput, refusing
from lpfamily.training.files import sha256

# Both addresses are the publisher's; the old one redirects to the new one.
MIRRORS = ("https://www.cs.toronto.edu/~kriz/", "https://cave.cs.toronto.edu/kriz/")
ARCHIVE = files.Remote(
    "cifar-10-binary.tar.gz", 170_052_171, "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"
)
FOLDER = "cifar-10-batches-bin"
PICKLED = ("cifar-10-batches-py", "cifar-10-python.tar.gz", "data_batch_1")
"""Names of the Python version: its folder, its archive, and one of its files."""
SHAPE = (3, 32, 32)
INPUTS = math.prod(SHAPE)
CLASSES = 10
FILES = tuple(
    files.Remote(name, 10_000 * (1 + INPUTS), sha256)
    for name, sha256 in (
        ("data_batch_1.bin", "cee916563c9f80d84e3cc88e17fdc0941787f1244f00a67874d45b261883ada5"),
        ("data_batch_2.bin", "a591ca11fa1708a91ee40f54b3da4784ccd871ecf2137de63f51ada8b3fa57ed"),
        ("data_batch_3.bin", "bbe8596564c0f86427f876058170b84dac6670ddf06d79402899d93ceea26f67"),
        ("data_batch_4.bin", "014e562d6e23c72197cc727519169a60359f5eccd8945ad5a09d710285ff4e48"),
        ("data_batch_5.bin", "755304fc0b379caeae8c14f0dac912fbc7d6cd469eb67a1029a08a39453a9add"),
        ("test_batch.bin", "8e2eb146ae340b09e24670f29cabc6326dba54da8789dab6768acf480273f65b"),
    )
)
PREPROCESSING = f"norm {NORM}, ZCA + {REGULARISER}".encode()


def load(data_dir: Path | None) -> Dataset:
    """Load CIFAR-10, x of shape (n, 3072): contrast normalised, then whitened by ZCA.

    ZCA is fitted to all training images, which takes seconds to a minute. The fit is saved in the user's
    cache. If the cache cannot be written, it is fitted every time.

    Parameters
    ----------
    data_dir
        Folder with the six files, in it or in its subfolder cifar10 or cifar-10-batches-bin, with or without
        .gz. Only their structure is checked, so subsets of any size are accepted. None downloads the official
        files and checks their checksums.

    Raises
    ------
    BadInput
        A file is missing, unreadable, damaged or not what its name says, or could not be downloaded.
    """
    pixels, labels, test_pixels, test_labels = images(data_dir)
    x, test_x = global_contrast_normalise(pixels), global_contrast_normalise(test_pixels)
    fit = _whitening(pixels, x)
    for values in x, test_x:
        whiten(values, mean=fit[0], matrix=fit[1:])
    source = sha256([PREPROCESSING, pixels.data, labels.data, test_pixels.data, test_labels.data]).hexdigest()
    return CIFAR10.dataset(Split(x, labels), Split(test_x, test_labels), source)


def images(
    data_dir: Path | None,
) -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.uint8], NDArray[np.int64]]:
    """Return the pixels, (n, 3072), and classes of the training images, then those of the test images."""
    if data_dir is None:
        paths = _official(files.cache_folder() / "cifar10")
    else:
        folders = (data_dir / "cifar10", data_dir / FOLDER, data_dir)
        try:
            paths = [files.find(remote.name, folders) for remote in FILES]
        except BadInput:
            for folder in folders:
                refuse_pickles(folder)
            raise
    labels, pixels = _read(paths[:-1])
    test_labels, test_pixels = _read(paths[-1:])
    return pixels, labels, test_pixels, test_labels


def refuse_pickles(path: Path) -> None:
    """Raise `BadInput` for a folder or file with the Python version of CIFAR-10, which only pickle reads."""
    for each in path, *(path / name for name in PICKLED):
        if each.name in PICKLED and each.exists():
            raise BadInput(
                f"{each} is CIFAR-10 as Python pickles, which can run any code and are not read: unpack "
                f"{ARCHIVE.name} of {MIRRORS[0]} in its place"
            )


CIFAR10 = Source("cifar10", SHAPE, CLASSES, load, radius=2.0, refuse=refuse_pickles)


def _official(folder: Path) -> list[Path]:
    """Return the paths of the official files, after downloading and unpacking them if necessary."""
    paths = [folder / remote.name for remote in FILES]
    remedy = f": make the folder writable, or {OTHER_SOURCE}"
    with refusing(f"{ARCHIVE.name} cannot be unpacked in {folder}", remedy, OSError):
        if not all(map(files.matches, paths, FILES)):
            _unpack(files.fetch(ARCHIVE, MIRRORS, folder), folder)
    return paths


def _unpack(archive: Path, folder: Path) -> None:
    """Unpack the six files, and no others, from the archive into the folder.

    A kill does no harm at any instant: files are moved atomically, and existing ones are used only if their
    checksum is right.
    """
    inside = [f"{FOLDER}/{remote.name}" for remote in FILES]
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        damage = tarfile.TarError, gzip.BadGzipFile, EOFError, zlib.error
        remedy = f", expected a .tar.gz file: {OTHER_SOURCE}"
        with refusing(f"{archive} is damaged", remedy, *damage), tarfile.open(archive, "r:gz") as tar:
            for member in tar:
                if member.name in inside and member.isreg():
                    tar.extract(member, temporary, filter="data")
        unpacked = [Path(temporary, name) for name in inside]
        for path, remote in zip(unpacked, FILES, strict=True):
            if not files.matches(path, remote):
                raise BadInput(f"{archive} does not hold the official {path.name}: {OTHER_SOURCE}")
        for path in unpacked:
            path.replace(folder / path.name)


def _read(paths: Sequence[Path]) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    """Return the labels and the images, one row per image, of all files."""
    records = np.concatenate([_records(path) for path in paths])
    return records[:, 0].astype(np.int64), np.ascontiguousarray(records[:, 1:])


def _records(path: Path) -> NDArray[np.uint8]:
    with files.reading(path) as stream:
        content = stream.read()
    if not content or len(content) % (1 + INPUTS):
        raise BadInput(
            f"{path} has {len(content)} bytes, expected one or more records of {1 + INPUTS} (a label and "
            f"3 x 32 x 32 pixels): {REMEDY}"
        )
    records = np.frombuffer(content, np.uint8).reshape(-1, 1 + INPUTS)
    files.check_labels(path, records[:, 0], CLASSES)
    return records


def _whitening(images: NDArray[np.uint8], x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the ZCA of x, the normalised images: its mean as the first row, then its matrix.

    The cache file has a SHA-256, which also covers the images, and then the float32 values.
    """
    key = sha256([PREPROCESSING, images.data]).digest()
    try:
        path = files.cache_folder() / "cifar10" / f"zca-{key.hex()}.f32"
    except BadInput:
        sys.stderr.write("fitting ZCA, which cannot be kept: there is no home directory, set HOME\n")
        return _fit(x)
    cause = ""
    try:
        content = files.read_sized(path, len(key) + (1 + INPUTS) * INPUTS * np.dtype("<f4").itemsize)
        if content[: len(key)] == sha256([key, content[len(key) :]]).digest():
            return np.frombuffer(content, "<f4", offset=len(key)).reshape(1 + INPUTS, INPUTS)
        cause = f"{path} is damaged: "
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as error:
        cause = f"{path} cannot be read ({error.strerror or error}): "
    sys.stderr.write(f"{cause}fitting ZCA to {len(x)} training images\n")
    fit = _fit(x)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write(path, sha256([key, fit.data]).digest() + fit.tobytes())
    except OSError as error:
        sys.stderr.write(
            f"{path} cannot be kept ({error.strerror or error}): ZCA will be fitted every time, until its "
            "folder is writable\n"
        )
    return fit


def _fit(x: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.vstack(zca(x)).astype("<f4")
