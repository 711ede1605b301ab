"""MNIST from local files: the right arrays, and one line that names the file that is bad."""

import errno
import gzip
import os
import re
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from helpers.data_files import COUNTS, assert_same, flipped, idx, mnist_files, write
from lpfamily.training import data
from lpfamily.training.data import files, mnist
from lpfamily.training.errors import BadInput

NAMES = [remote.name.removesuffix(".gz") for remote in mnist.FILES]
TRAIN_IMAGES, TRAIN_LABELS = NAMES[:2]


def assert_refused(folder: Path, *parts: str) -> None:
    """Raise unless loading MNIST from the folder is refused in one line that holds all the parts."""
    with pytest.raises(BadInput) as caught:
        data.load("mnist", folder)
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("layout", [".", "mnist"])
def test_local_files_are_read_in_both_layouts_plain_and_compressed(
    tmp_path: Path, layout: str, suffix: str
) -> None:
    """Pixels are divided by 255, images become rows, any count of examples will do."""
    contents = mnist_files()
    write(tmp_path / layout, {name + suffix: content for name, content in contents.items()})
    loaded = data.load("mnist", tmp_path)
    assert (loaded.name, loaded.classes, loaded.shape) == ("mnist", 10, (1, 28, 28))
    for prefix, split in (("train", loaded.train), ("t10k", loaded.test)):
        count = COUNTS[prefix]
        pixels = np.frombuffer(contents[f"{prefix}-images-idx3-ubyte"][16:], np.uint8)
        labels = np.frombuffer(contents[f"{prefix}-labels-idx1-ubyte"][8:], np.uint8)
        assert (split.x.dtype.name, split.labels.dtype.name) == ("float32", "int64")
        np.testing.assert_array_equal(split.x, (pixels.reshape(count, 784) / 255).astype(np.float32))
        np.testing.assert_array_equal(split.labels, labels)


def test_the_environment_names_the_folder_and_an_argument_overrides_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """LPFAMILY_DATA serves where no folder is given."""
    here = write(tmp_path / "here", mnist_files())
    monkeypatch.setenv("LPFAMILY_DATA", str(here))
    assert_same(data.load("mnist"), data.load("mnist", here))
    with pytest.raises(BadInput, match="elsewhere"):
        data.load("mnist", tmp_path / "elsewhere")


@pytest.mark.parametrize("missing", NAMES)
def test_a_missing_file_names_both_paths_and_nothing_is_downloaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    """A folder that was named is the only source."""
    monkeypatch.setattr(files, "fetch", None)
    (write(tmp_path, mnist_files()) / missing).unlink()
    assert_refused(tmp_path, str(tmp_path / missing), str(tmp_path / "mnist" / missing), ".gz", "--data-dir")


def test_a_folder_that_is_a_file_holds_nothing(tmp_path: Path) -> None:
    """It is an answer, not a traceback."""
    (tmp_path / "file").touch()
    assert_refused(tmp_path / "file", str(tmp_path / "file" / TRAIN_IMAGES), "put the file there")


ONES = np.ones((2, 28, 28), np.uint8)
HEADER = idx(ONES)[:16]
BAD_IMAGES = {
    "empty": (b"", ["(none)", "00 00 08 03"]),
    "short magic": (b"\0\0\x08", ["00 00 08,", "00 00 08 03"]),
    "short header": (HEADER[:11], ["ends within its header: 11 bytes", "expected 16"]),
    "truncated": (idx(ONES)[:-1], ["only 1567 bytes", "expected 1568 (2 x 28 x 28"]),
    "no data": (HEADER, ["only 0 bytes", "expected 1568"]),
    "too long": (idx(ONES) + b"\0", ["more bytes", "expected 1568"]),
    "not IDX": (b"PK\3\4" + idx(ONES), ["50 4b 03 04", "expected 00 00 08 03"]),
    "float entries": (idx(ONES, b"\0\0\x0d\3"), ["00 00 0d 03", "unsigned bytes"]),
    "labels": (idx(ONES[:, 0, 0]), ["00 00 08 01", "3 dimensions"]),
    "four dimensions": (idx(ONES[..., None]), ["00 00 08 04", "3 dimensions"]),
    "not 28 x 28": (idx(ONES[:, 1:]), ["27 x 28", "expected 28 x 28"]),
    "not square": (idx(ONES.reshape(2, 14, 56)), ["14 x 56", "expected 28 x 28"]),
    "no examples": (idx(ONES[:0]), ["no examples", "at least one"]),
    "terabytes announced": (
        HEADER[:4] + b"\xff" * 4 + HEADER[8:] + b"\0",
        ["only 1 bytes", "4294967295 x 28"],
    ),
}
ZEROS = np.zeros(COUNTS["train"], np.uint8)
BAD_LABELS = {
    "empty": (b"", ["(none)", "00 00 08 01"]),
    "short header": (idx(ZEROS)[:7], ["ends within its header: 7 bytes", "expected 8"]),
    "truncated": (idx(ZEROS)[:-2], ["only 3 bytes", "expected 5"]),
    "too long": (idx(ZEROS) + b"\0\0", ["more bytes", "expected 5"]),
    "images": (idx(ONES), ["00 00 08 03", "1 dimensions"]),
    "no examples": (idx(ZEROS[:0]), ["no examples", "at least one"]),
    "label 10": (idx(np.array([0, 9, 10, 0, 255], np.uint8)), ["label 10 at index 2", "expected 0 to 9"]),
}


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize(
    ("name", "content", "parts"),
    [pytest.param(TRAIN_IMAGES, *case, id=f"images {defect}") for defect, case in BAD_IMAGES.items()]
    + [pytest.param(TRAIN_LABELS, *case, id=f"labels {defect}") for defect, case in BAD_LABELS.items()],
)
def test_a_bad_file_is_named_with_what_was_expected(
    tmp_path: Path, name: str, content: bytes, parts: list[str], suffix: str
) -> None:
    """Every defect of an IDX file has its words, compressed or not."""
    contents = mnist_files()
    del contents[name]
    write(tmp_path, {**contents, name + suffix: content})
    assert_refused(tmp_path, str(tmp_path / (name + suffix)), "download it again", *parts)


def test_there_must_be_as_many_labels_as_images(tmp_path: Path) -> None:
    """Both files are named, with what each holds."""
    write(tmp_path, {**mnist_files(), TRAIN_LABELS: idx(ZEROS[1:])})
    assert_refused(tmp_path, TRAIN_IMAGES, "5 images", TRAIN_LABELS, "4 labels", "expected as many")


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda content: flipped(content, 0), id="magic"),
        pytest.param(lambda content: flipped(content, len(content) // 2), id="body"),
        pytest.param(lambda content: flipped(content, -6), id="CRC"),
        pytest.param(lambda content: flipped(content, -1), id="length"),
        pytest.param(lambda content: content[: len(content) // 2], id="truncated"),
        pytest.param(lambda content: content[:5], id="truncated in its header"),
        pytest.param(lambda content: content[:-1], id="truncated in its trailer"),
        pytest.param(lambda content: content + b"more", id="followed by something else"),
        pytest.param(gzip.decompress, id="not compressed"),
    ],
)
def test_damaged_gzip_data_are_named(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    """Whatever gzip finds wrong is one line, not a traceback."""
    contents = mnist_files()
    path = tmp_path / f"{TRAIN_IMAGES}.gz"
    write(tmp_path, contents)
    (tmp_path / TRAIN_IMAGES).unlink()
    path.write_bytes(damage(gzip.compress(contents[TRAIN_IMAGES])))
    assert_refused(tmp_path, str(path), "is damaged", "expected a whole gzip file", "download it again")


def test_a_gzip_bomb_is_not_decompressed(tmp_path: Path) -> None:
    """64 MB of zeros behind a header that announces one image cost little memory."""
    contents = mnist_files()
    del contents[TRAIN_IMAGES]
    bomb = idx(ONES[:1])[:16] + bytes(64_000_000)
    write(tmp_path, {**contents, f"{TRAIN_IMAGES}.gz": bomb})
    tracemalloc.start()
    try:
        assert_refused(tmp_path, f"{TRAIN_IMAGES}.gz", "more bytes", "expected 784")
        assert tracemalloc.get_traced_memory()[1] < 4_000_000
    finally:
        tracemalloc.stop()


def test_a_folder_in_place_of_a_file_is_named(tmp_path: Path) -> None:
    """A folder by the file's name is not a file."""
    write(tmp_path, mnist_files())
    (tmp_path / TRAIN_LABELS).unlink()
    (tmp_path / TRAIN_LABELS).mkdir()
    assert_refused(tmp_path, str(tmp_path / TRAIN_LABELS), "is a folder", "expected a file")


@pytest.mark.parametrize("call", ["stat", "open"])
def test_a_file_that_may_not_be_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """Permissions are simulated: they do not bind the superuser, whom tests may run as."""
    path = write(tmp_path, mnist_files()) / TRAIN_LABELS
    usual = getattr(Path, call)

    def deny(self: Path, *args: object, **kwargs: object) -> object:
        if self == path:
            raise PermissionError(errno.EACCES, "Permission denied")
        return usual(self, *args, **kwargs)

    monkeypatch.setattr(Path, call, deny)
    assert_refused(tmp_path, str(path), "cannot be read (Permission denied)", "check its permissions")


# The official checksums and the real data


def test_the_official_files_are_four() -> None:
    """Each has a SHA-256 checksum; the mirrors are prefixes of URLs."""
    assert NAMES == [
        "train-images-idx3-ubyte",
        "train-labels-idx1-ubyte",
        "t10k-images-idx3-ubyte",
        "t10k-labels-idx1-ubyte",
    ]
    assert all(re.fullmatch("[0-9a-f]{64}", remote.sha256) for remote in mnist.FILES)
    assert all(url.startswith("https://") and url.endswith("/") for url in mnist.MIRRORS)


@pytest.mark.skipif(
    not os.environ.get("LPFAMILY_DATA"), reason="needs the real MNIST: set LPFAMILY_DATA to its folder"
)
def test_the_real_mnist() -> None:
    """Known sizes, known first labels, and the whole range of values."""
    loaded = data.load("mnist")
    assert loaded.train.x.shape == (60_000, 784)
    assert loaded.test.x.shape == (10_000, 784)
    assert loaded.train.labels[:3].tolist() == [5, 0, 4]
    assert loaded.test.labels[:3].tolist() == [7, 2, 1]
    for split in (loaded.train, loaded.test):
        assert (split.x.min(), split.x.max()) == (0, 1)
        assert set(split.labels.tolist()) == set(range(10))
