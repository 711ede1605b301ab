"""A folder of images by class, read with Pillow."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lpfamily.training import files
from lpfamily.training.data.files import HIDDEN, check_memory, walk
from lpfamily.training.errors import BadInput, refusing

FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM")
"""The accepted formats. For some others, Pillow starts other programs."""
TRAINING, TESTS = ("train", "training"), ("test", "testing", "val", "valid", "validation")
ONE_IN, SPLIT_SEED = 5, 0
"""Without a folder of test images, one image in five of each class is for testing."""
_GREY, _COLOUR = ("1", "L", "LA"), ("RGB", "RGBA", "RGBX", "P", "PA", "CMYK", "YCbCr")
_BYTES_OF_A_NUMBER = 1 + 4
"""One as a byte, and four as float32."""

Bytes = NDArray[np.uint8]
Labelled = list[tuple[Path, int]]
"""Image files with their classes."""


def read(folder: Path, size: Sequence[int]) -> tuple[list[NDArray[np.integer]], str]:
    """Return training images, (n, channels, height, width), their classes, both for testing, and a checksum.

    The folder has subfolders `train` and `test` (or `val`, `valid`), each with a folder per class. Or it has
    one folder per class, and a fifth of each is for testing, always the same. Classes are numbered in the
    order of their names. There is one channel if all images are grey, else three. Transparency is dropped,
    and only the first frame of several is used. The checksum covers the files and names, not the pixels, as
    versions of Pillow differ.

    Parameters
    ----------
    size
        Height and width, or one number for both, to which all images are resized without keeping their
        proportions (bilinear, antialiased). Without it they must have one size.

    Raises
    ------
    BadInput
        Pillow is missing; a folder has no images; a file is not an image, or has another size than the
        others.
    """
    if len(size) > 2:
        raise BadInput(f"--size {','.join(map(str, size))}: must be height,width or one number for both")
    splits = _splits(folder)
    count = sum(map(len, splits))
    if size:
        check_memory(f"{count} images of --size", count * size[0] * size[-1] * _BYTES_OF_A_NUMBER)
    digest = files.sha256([repr(tuple(size)).encode()])
    images: list[list[Bytes]] = []
    first: tuple[Path, Bytes] | None = None
    for labelled in splits:
        images.append([])
        for path, _ in labelled:
            content, name = files.read(path), os.fsencode(path.relative_to(folder).as_posix())
            for block in name, content:
                digest.update(len(block).to_bytes(8, "big"))
                digest.update(block)
            image = _image(path, content, size)
            if first is None:
                first = path, image
                check_memory(f"{count} images like {path}", count * image.size * _BYTES_OF_A_NUMBER)
            if image.shape[:2] != first[1].shape[:2]:
                raise BadInput(
                    f"{path}: is of {_times(image)} pixels, and {first[0]} of {_times(first[1])}; give --size"
                )
            images[-1].append(image)
    channels = max(image.shape[2] for split in images for image in split)
    arrays: list[NDArray[np.integer]] = []
    for labelled, split in zip(splits, images, strict=True):
        colours = [np.broadcast_to(image, (*image.shape[:2], channels)) for image in split]
        arrays += [np.stack(colours).transpose(0, 3, 1, 2), np.array([label for _, label in labelled])]
    return arrays, digest.hexdigest()


def _splits(folder: Path) -> tuple[Labelled, Labelled]:
    subfolders = {path.name.lower(): path for path in _folders(folder)}
    train, test = (
        next((subfolders[name] for name in names if name in subfolders), None) for names in (TRAINING, TESTS)
    )
    if train and (test or _folders(train)):
        if test is None:
            raise BadInput(f"{folder}: has {train.name} and no folder of test images; name it test")
        classes, tested = _classes(train), _classes(test, 1)
        if unknown := tested.keys() - classes.keys():
            raise BadInput(f"{test / min(unknown)}: is a class that {train} has no images of")
        numbers = {name: number for number, name in enumerate(classes)}
        return _numbered(classes, numbers), _numbered(tested, numbers)
    classes, rng = _classes(folder), np.random.default_rng(SPLIT_SEED)
    numbers = {name: number for number, name in enumerate(classes)}
    training, testing = {}, {}
    for name, paths in classes.items():
        if len(paths) < 2:
            raise BadInput(f"{folder / name}: has one image, and none is left to test by; give two or more")
        order, count = rng.permutation(len(paths)), max(1, round(len(paths) / ONE_IN))
        testing[name], training[name] = (
            [paths[i] for i in sorted(indices)] for indices in (order[:count], order[count:])
        )
    return _numbered(training, numbers), _numbered(testing, numbers)


def _numbered(classes: dict[str, list[Path]], numbers: dict[str, int]) -> Labelled:
    return [(path, numbers[name]) for name, paths in classes.items() for path in paths]


def _classes(folder: Path, least: int = 2) -> dict[str, list[Path]]:
    """Return the files of each class, both in the order of their names."""
    classes = {path.name: list(walk(path)) for path in _folders(folder)}
    if len(classes) < least:
        raise BadInput(
            f"{folder}: has {len(classes) or 'no'} folder of images; give {least} or more, each with the "
            "images of a class"
        )
    for name, paths in classes.items():
        if not paths:
            raise BadInput(f"{folder / name}: has no images; put some there, or remove the folder")
    return classes


def _folders(folder: Path) -> list[Path]:
    with refusing(f"{folder}: cannot be read", "; check its permissions", OSError):
        return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(HIDDEN))


def _image(path: Path, content: bytes, size: Sequence[int]) -> Bytes:
    """Return the bytes of an image, (height, width, 1 or 3)."""
    problem = "images are read with Pillow, which cannot be imported"
    with refusing(problem, ': pip install "lpfamily[train]"', ImportError):
        from PIL import Image, UnidentifiedImageError
    Image.init()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            formats = [name for name in FORMATS if name in Image.OPEN]
            with Image.open(io.BytesIO(content), formats=formats) as opened:
                if opened.mode not in _GREY + _COLOUR:
                    raise ValueError(f"it is of mode {opened.mode}, which does not have 8 bits per number")
                image = opened.convert("L" if opened.mode in _GREY else "RGB")
            if size:
                image = image.resize((size[-1], size[0]), Image.Resampling.BILINEAR)
        except Exception as cause:  # a damaged image may fail in any way
            reason = (
                "none that Pillow knows" if isinstance(cause, UnidentifiedImageError) else str(cause)[:200]
            )
            raise BadInput(
                f"{path}: cannot be read as an image ({reason}); remove it, or make it one of "
                f"{', '.join(FORMATS)}"
            ) from cause
    return np.asarray(image).reshape(image.height, image.width, -1)


def _times(image: Bytes) -> str:
    return f"{image.shape[0]} x {image.shape[1]}"
