"""MNIST from its four IDX files."""

from pathlib import Path

import numpy as np

from lpfamily.training.data import files, idx
from lpfamily.training.data.datasets import Dataset, Source, Split

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
        Folder with the four files, in it or at any depth of its subfolder mnist or MNIST (torchvision has
        MNIST/raw), with or without .gz, named as published or as in train-images.idx3-ubyte. Only their
        structure is checked, so subsets of any size are accepted. None downloads the official files and
        checks their checksums.

    Raises
    ------
    BadInput
        A file is missing, unreadable, damaged or not what its name says, or could not be downloaded.
    """
    if data_dir is None:
        folder = files.cache_folder() / "mnist"
        paths = [files.fetch(remote, MIRRORS, folder) for remote in FILES]
    else:
        folders, names = _folders(data_dir), [remote.name.removesuffix(".gz") for remote in FILES]
        paths = [files.find(name, folders, name.replace("-idx", ".idx")) for name in names]
    return MNIST.dataset(_split(*paths[:2]), _split(*paths[2:]))


MNIST = Source("mnist", (1, *IMAGE), CLASSES, load, radius=1.0)


def _split(images_path: Path, labels_path: Path) -> Split:
    images, labels = idx.pair(images_path, labels_path, IMAGE)
    files.check_labels(labels_path, labels, CLASSES)
    x = np.divide(images.reshape(len(images), -1), 255, dtype=np.float32)
    return Split(x, labels.astype(np.int64))


def _folders(data_dir: Path) -> list[Path]:
    """Return the folders to search: first the usual ones, then all below a folder named mnist."""
    named = [data_dir / "mnist", data_dir / "MNIST"] + [data_dir] * (data_dir.name.lower() == "mnist")
    below = {path.parent: None for folder in named for path in files.walk(folder)}
    return list(dict.fromkeys([data_dir / "mnist", data_dir / "MNIST" / "raw", data_dir, *below]))
