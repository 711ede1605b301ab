"""CIFAR-10: the right records from good files, whitened as defined; one line that names what is bad."""

import errno
import gzip
import hashlib
import io
import os
import sys
import tarfile
import threading
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.linalg
from numpy.typing import NDArray

from helpers.data_files import Mirror, assert_same, flipped, listing, write
from lpfamily.training import data
from lpfamily.training.data import cifar10, files
from lpfamily.training.data.preprocessing import global_contrast_normalise, zca
from lpfamily.training.errors import BadInput

COUNTS = (3, 1, 2, 5, 4, 6)
NAMES = [remote.name for remote in cifar10.FILES]
ARCHIVE = cifar10.ARCHIVE.name
FIRST = NAMES[0]
USUAL_ZCA = zca


def example_records() -> list[NDArray[np.uint8]]:
    """Return the records of a small CIFAR-10, file by file."""
    rng = np.random.default_rng(5)
    records = [rng.integers(0, 256, (count, 3073), dtype=np.uint8) for count in COUNTS]
    for values in records:
        values[:, 0] %= 10
    return records


def example_files() -> dict[str, bytes]:
    """Return a small CIFAR-10 by file name, not compressed."""
    return {name: values.tobytes() for name, values in zip(NAMES, example_records(), strict=True)}


def assert_refused(folder: Path | None, *parts: str) -> None:
    """Raise unless loading CIFAR-10 from the folder is refused in one line that holds all the parts."""
    with pytest.raises(BadInput) as caught:
        data.load("cifar10", folder)
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


class Fit:
    """A fit that costs nothing, in place of ZCA's, and how often it was made."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, x: NDArray[np.float32]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        self.count += 1
        return x.mean(axis=0, dtype=np.float64), np.diag(1 / (1 + x.var(axis=0, dtype=np.float64)))


@pytest.fixture(autouse=True)
def fit(monkeypatch: pytest.MonkeyPatch) -> Fit:
    """Spare the tests of files the decomposition of a matrix with 3,072 rows."""
    made = Fit()
    monkeypatch.setattr(cifar10, "zca", made)
    return made


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder that is the cache for a test."""
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "lpfamily" / "cifar10"


@pytest.fixture
def local(tmp_path: Path) -> Path:
    """Return a folder with a small CIFAR-10."""
    return write(tmp_path / "local", example_files())


# Local files


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("layout", [".", "cifar10", "cifar-10-batches-bin"])
def test_local_files_are_read_in_every_layout_plain_and_compressed(
    tmp_path: Path, layout: str, suffix: str
) -> None:
    """Files in order, any count of records; normalised, then whitened by what the training images gave."""
    contents = example_files()
    write(tmp_path / layout, {name + suffix: content for name, content in contents.items()})
    loaded = data.load("cifar10", tmp_path)
    assert (loaded.name, loaded.classes, loaded.shape) == ("cifar10", 10, (3, 32, 32))
    *train, test = example_records()
    for split, records in ((loaded.train, np.concatenate(train)), (loaded.test, test)):
        assert (split.x.dtype.name, split.labels.dtype.name) == ("float32", "int64")
        np.testing.assert_array_equal(split.labels, records[:, 0])
        mean, matrix = Fit()(global_contrast_normalise(np.concatenate(train)[:, 1:]))
        expected = (global_contrast_normalise(records[:, 1:]) - mean) * np.diag(matrix)
        np.testing.assert_allclose(split.x, expected, rtol=1e-5, atol=1e-6)


def test_one_record_per_file_is_enough(tmp_path: Path) -> None:
    """The smallest data set there is."""
    write(tmp_path, {name: content[:3073] for name, content in example_files().items()})
    loaded = data.load("cifar10", tmp_path)
    assert (loaded.train.x.shape, loaded.test.x.shape) == ((5, 3072), (1, 3072))


@pytest.mark.parametrize("missing", NAMES)
def test_a_missing_file_names_the_paths_and_nothing_is_downloaded(
    local: Path, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    """A folder that was named is the only source."""
    monkeypatch.setattr(files, "fetch", None)
    (local / missing).unlink()
    assert_refused(
        local,
        str(local / "cifar10" / missing),
        str(local / "cifar-10-batches-bin" / missing),
        str(local / missing),
        ".gz",
        "--data-dir",
    )


RECORDS = bytes(3 * 3073)
BAD_FILES = {
    "empty": (b"", ["0 bytes", "one or more records of 3073"]),
    "without labels": (bytes(2 * 3072), ["6144 bytes", "records of 3073"]),
    "truncated": (RECORDS[:-1], ["9218 bytes", "records of 3073"]),
    "too long": (RECORDS + b"\0", ["9220 bytes", "records of 3073"]),
    "label 10": (
        RECORDS[:3073] + b"\x0a" + RECORDS[:3072] + b"\xff" + RECORDS[:3072],
        ["label 10 at index 1", "expected 0 to 9"],
    ),
}


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("name", [NAMES[1], NAMES[-1]])
@pytest.mark.parametrize(("content", "parts"), [pytest.param(*BAD_FILES[key], id=key) for key in BAD_FILES])
def test_a_bad_file_is_named_with_what_was_expected(
    local: Path, name: str, content: bytes, parts: list[str], suffix: str, fit: Fit
) -> None:
    """Every defect has its words, compressed or not, before any time is spent on fitting."""
    (local / name).unlink()
    write(local, {name + suffix: content})
    assert_refused(local, str(local / (name + suffix)), "copy or download it again", *parts)
    assert fit.count == 0


def test_a_damaged_gzip_file_and_a_folder_are_named(local: Path) -> None:
    """Neither is a traceback."""
    (local / FIRST).unlink()
    (local / f"{FIRST}.gz").write_bytes(gzip.compress(RECORDS)[:-1])
    assert_refused(local, f"{FIRST}.gz is damaged", "download it again")
    (local / FIRST).mkdir()
    assert_refused(local, str(local / FIRST), "is a folder", "expected a file")


def test_the_checksum_depends_on_the_files_and_not_on_rounding(local: Path, fit: Fit) -> None:
    """Another machine computes other last bits from the same data, and must know it as the same."""
    loaded = data.load("cifar10", local)
    nudged = np.nextafter(loaded.train.x, np.float32(np.inf))
    train = data.Split(nudged, loaded.train.labels)
    again = data.Dataset("cifar10", train, loaded.test, 10, loaded.shape, loaded.source_sha256)
    assert again.sha256() == loaded.sha256()
    found = {loaded.sha256()}
    for name in FIRST, NAMES[-1]:
        for index in 0, 1, -1:
            content = bytearray(example_files()[name])
            content[index] ^= 1
            write(local, {**example_files(), name: bytes(content)})
            found.add(data.load("cifar10", local).sha256())
    assert len(found) == 7


# The official archive


def archive_of(
    contents: dict[str, bytes], *others: tarfile.TarInfo, folder: str = "cifar-10-batches-bin"
) -> bytes:
    """Return a compressed tar file of members without contents, then files in a folder."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as tar:
        for member in others:
            tar.addfile(member, io.BytesIO(bytes(member.size)))
        for name, content in contents.items():
            member = tarfile.TarInfo(f"{folder}/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return stream.getvalue()


def linked(name: str, kind: bytes, target: str) -> tarfile.TarInfo:
    """Return a member that is no file with contents."""
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member


def publish(mirror: Mirror, monkeypatch: pytest.MonkeyPatch, archive: bytes) -> None:
    """Make an archive the official one, served by /first/ and /second/."""
    monkeypatch.setattr(
        cifar10, "ARCHIVE", files.Remote(ARCHIVE, len(archive), hashlib.sha256(archive).hexdigest())
    )
    mirror.pages[f"/first/{ARCHIVE}"] = mirror.pages[f"/second/{ARCHIVE}"] = archive


@pytest.fixture
def official(mirror: Mirror, monkeypatch: pytest.MonkeyPatch) -> Mirror:
    """Serve a small CIFAR-10 as the official one."""
    contents = example_files()
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.delenv("LPFAMILY_DATA", raising=False)
    monkeypatch.setattr(cifar10, "MIRRORS", (f"{mirror.url}/first/", f"{mirror.url}/second/"))
    monkeypatch.setattr(
        cifar10,
        "FILES",
        [
            files.Remote(name, len(content), hashlib.sha256(content).hexdigest())
            for name, content in contents.items()
        ],
    )
    publish(mirror, monkeypatch, archive_of({**contents, "batches.meta.txt": b"airplane\n"}))
    return mirror


def official_files(cache: Path) -> list[str]:
    """Return the names in the cache, except ZCA's."""
    return [name for name in listing(cache) if not name.startswith("zca-")]


def test_the_archive_is_downloaded_and_unpacked_once(
    official: Mirror, cache: Path, local: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The second load needs neither the network nor the archive, and says nothing."""
    loaded = data.load("cifar10")
    assert official.asked == [f"/first/{ARCHIVE}"]
    assert official_files(cache) == sorted([ARCHIVE, *NAMES])
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.splitlines() == [
        f"downloading {official.url}/first/{ARCHIVE}",
        "fitting ZCA to 15 training images",
    ]
    assert_same(loaded, data.load("cifar10", local))
    (cache / ARCHIVE).unlink()
    assert_same(loaded, data.load("cifar10"))
    assert len(official.asked) == 1
    assert capsys.readouterr() == ("", "")


def test_an_altered_archive_is_refused_and_the_next_mirror_is_asked(official: Mirror, cache: Path) -> None:
    """The checksum decides; with no good mirror left there is a line and nothing in the cache."""
    good = official.pages[f"/first/{ARCHIVE}"]
    assert isinstance(good, bytes)
    official.pages[f"/first/{ARCHIVE}"] = flipped(good, -1)
    data.load("cifar10")
    assert official.asked == [f"/first/{ARCHIVE}", f"/second/{ARCHIVE}"]
    for path in cache.iterdir():
        path.unlink()
    del official.pages[f"/second/{ARCHIVE}"]
    assert_refused(None, ARCHIVE, "/first/", "wrong checksum", "/second/", "404", "--data-dir")
    assert listing(cache) == []


@pytest.mark.parametrize("damage", [lambda content: flipped(content, 5), lambda content: content[:-1], None])
def test_an_unpacked_file_that_changed_is_unpacked_again(
    official: Mirror, cache: Path, damage: Callable[[bytes], bytes] | None
) -> None:
    """From the archive that is there: what was unpacked is used by its checksum, not its name."""
    loaded = data.load("cifar10")
    path = cache / NAMES[2]
    if damage is None:
        path.unlink()
    else:
        path.write_bytes(damage(path.read_bytes()))
    assert_same(loaded, data.load("cifar10"))
    assert len(official.asked) == 1


@pytest.mark.parametrize("moved", range(len(NAMES)))
def test_unpacking_may_stop_at_any_instant(
    official: Mirror, cache: Path, local: Path, monkeypatch: pytest.MonkeyPatch, moved: int
) -> None:
    """Only whole files are left then, and the next load adds the missing ones."""
    count = 0
    usual = Path.replace

    def stop(self: Path, target: Path) -> Path:
        nonlocal count
        if self.suffix == ".bin":
            count += 1
            if count > moved:
                raise KeyboardInterrupt
        return usual(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", stop)
        with pytest.raises(KeyboardInterrupt):
            data.load("cifar10")
    assert official_files(cache) == sorted([ARCHIVE, *NAMES[:moved]])
    # A kill leaves the folder that was unpacked into.
    write(cache / "tmpkilled" / "cifar-10-batches-bin", {FIRST: b"half"})
    assert_same(data.load("cifar10"), data.load("cifar10", local))
    assert len(official.asked) == 1


def test_unpacking_onto_a_full_disk_is_refused_in_one_line(
    official: Mirror, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says what to do, and no file is left half."""

    def fail(*_args: object, **_kwargs: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tarfile, "copyfileobj", fail)
    assert_refused(None, ARCHIVE, str(cache), "No space left on device", "--data-dir")
    assert listing(cache) == [ARCHIVE]


FILE = f"cifar-10-batches-bin/{FIRST}"
REST = {name: content for name, content in example_files().items() if name != FIRST}
BAD_ARCHIVES = {
    "no archive": (b"<html>", "is damaged"),
    "truncated": (archive_of(example_files())[:9_000], "is damaged"),
    "damaged": (flipped(archive_of(example_files()), 9_000), f"official {FIRST}"),
    "other bytes": (archive_of({**REST, FIRST: b"other"}), f"official {FIRST}"),
    "a file less": (archive_of(REST), f"official {FIRST}"),
    "in another folder": (archive_of(example_files(), folder="../cifar-10-batches-bin"), f"official {FIRST}"),
    "absolute": (archive_of(example_files(), folder="/cifar-10-batches-bin"), f"official {FIRST}"),
    "folder": (archive_of(REST, linked(FILE, tarfile.DIRTYPE, "")), f"official {FIRST}"),
    "pipe": (archive_of(REST, linked(FILE, tarfile.FIFOTYPE, "")), f"official {FIRST}"),
    "device": (archive_of(REST, linked(FILE, tarfile.CHRTYPE, "")), f"official {FIRST}"),
}


@pytest.mark.parametrize(
    ("archive", "cause"), [pytest.param(*case, id=name) for name, case in BAD_ARCHIVES.items()]
)
def test_a_bad_archive_is_named(
    official: Mirror, cache: Path, monkeypatch: pytest.MonkeyPatch, archive: bytes, cause: str
) -> None:
    """Even one with the right checksum is not taken at its word, and nothing of it stays."""
    publish(official, monkeypatch, archive)
    assert_refused(None, str(cache / ARCHIVE), cause, "--data-dir")
    assert listing(cache) == [ARCHIVE]


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE])
def test_a_link_in_place_of_a_file_is_not_followed(
    official: Mirror, cache: Path, local: Path, monkeypatch: pytest.MonkeyPatch, kind: bytes
) -> None:
    """Not even to the right bytes."""
    for target in (str(local / FIRST), f"cifar-10-batches-bin/{NAMES[1]}"):
        publish(official, monkeypatch, archive_of(REST, linked(FILE, kind, target)))
        assert_refused(None, f"official {FIRST}", "--data-dir")
        assert listing(cache) == [ARCHIVE]


def test_a_linked_folder_and_foreign_members_are_left_in_the_archive(
    official: Mirror, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the six files are taken out, into a folder of our own."""
    outside = tmp_path / "outside"
    outside.mkdir()
    names = ["../escaped", str(outside / "absolute"), "cifar-10-batches-bin/../../../escaped", "extra"]
    others = [linked("cifar-10-batches-bin", tarfile.SYMTYPE, str(outside)), *map(tarfile.TarInfo, names)]
    publish(official, monkeypatch, archive_of(example_files(), *others))
    data.load("cifar10")
    assert official_files(cache) == sorted([ARCHIVE, *NAMES])
    assert listing(outside) == []
    assert not list(tmp_path.rglob("e[sx]*"))


def test_a_cache_that_is_no_folder_stops_a_download(official: Mirror, cache: Path) -> None:
    """The error is one line that names it."""
    cache.parent.mkdir(parents=True)
    cache.touch()
    assert_refused(None, ARCHIVE, "cannot be kept", "--data-dir")


def test_the_official_archive() -> None:
    """Checksums are SHA-256, the mirrors are prefixes of URLs."""
    assert [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"] == NAMES
    for checksum in (remote.sha256 for remote in (cifar10.ARCHIVE, *cifar10.FILES)):
        assert len(bytes.fromhex(checksum)) == 32
    assert all(url.startswith("https://") and url.endswith("/") for url in cifar10.MIRRORS)


# Preprocessing


def test_whitening_is_fitted_to_the_training_images_alone(
    local: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With few images C has few directions, found by an SVD; the rest of an image is divided by 0.1^1/2."""
    monkeypatch.setattr(cifar10, "zca", USUAL_ZCA)
    loaded = data.load("cifar10", local)
    *train, test = (global_contrast_normalise(values[:, 1:]).astype(float) for values in example_records())
    x = np.concatenate(train)
    _, sizes, rows = np.linalg.svd(x - x.mean(axis=0), full_matrices=False)
    for found, values in ((loaded.train.x, x), (loaded.test.x, test)):
        centred = values - x.mean(axis=0)
        inside = centred @ rows.T
        expected = (inside / np.sqrt(sizes**2 / len(x) + 0.1)) @ rows
        expected += (centred - inside @ rows) / np.sqrt(0.1)
        np.testing.assert_allclose(found, expected, atol=1e-4)


# The cache of the fit


def the_file(cache: Path) -> Path:
    """Return the one file in the cache."""
    (path,) = cache.iterdir()
    return path


def test_whitening_is_fitted_once(
    local: Path, cache: Path, fit: Fit, capsys: pytest.CaptureFixture[str]
) -> None:
    """The saved fit gives the same bytes, and nothing is printed."""
    loaded = data.load("cifar10", local)
    content = the_file(cache).read_bytes()
    assert capsys.readouterr() == ("", "fitting ZCA to 15 training images\n")
    assert_same(loaded, data.load("cifar10", local))
    assert fit.count == 1
    assert the_file(cache).read_bytes() == content
    assert capsys.readouterr() == ("", "")


def test_a_fit_belongs_to_its_training_images(local: Path, cache: Path, fit: Fit) -> None:
    """Neither other labels nor other test images change it; another pixel of training does."""
    data.load("cifar10", local)
    contents = example_files()
    last = contents[NAMES[-1]]
    relabelled = bytes([(contents[FIRST][0] + 1) % 10]) + contents[FIRST][1:]
    write(local, {**contents, FIRST: relabelled, NAMES[-1]: flipped(last, -1)})
    data.load("cifar10", local)
    assert fit.count == 1
    write(local, {NAMES[4]: flipped(contents[NAMES[4]], -1)})
    data.load("cifar10", local)
    assert fit.count == 2
    assert len(listing(cache)) == 2


DAMAGES = {
    "checksum": lambda content: flipped(content, 0),
    "mean": lambda content: flipped(content, 40),
    "matrix": lambda content: flipped(content, -1),
    "truncated": lambda content: content[:-1],
    "extended": lambda content: content + b"\0",
    "short": lambda content: content[:20],
    "empty": lambda _: b"",
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_fit_is_made_again_and_replaced(
    local: Path,
    cache: Path,
    fit: Fit,
    capsys: pytest.CaptureFixture[str],
    damage: Callable[[bytes], bytes],
) -> None:
    """With one line that names the file."""
    loaded = data.load("cifar10", local)
    path = the_file(cache)
    content = path.read_bytes()
    path.write_bytes(damage(content))
    capsys.readouterr()
    assert_same(loaded, data.load("cifar10", local))
    assert capsys.readouterr() == ("", f"{path} is damaged: fitting ZCA to 15 training images\n")
    assert fit.count == 2
    assert the_file(cache).read_bytes() == content


def test_the_fit_to_other_images_is_not_used(local: Path, cache: Path, fit: Fit) -> None:
    """Nor by another file's name."""
    loaded = data.load("cifar10", local)
    path = the_file(cache)
    content = path.read_bytes()
    write(local, {FIRST: flipped(example_files()[FIRST], -1)})
    data.load("cifar10", local)
    (other,) = set(cache.iterdir()) - {path}
    path.write_bytes(other.read_bytes())
    write(local, example_files())
    assert_same(loaded, data.load("cifar10", local))
    assert fit.count == 3
    assert path.read_bytes() == content


@pytest.mark.parametrize("obstacle", ["lpfamily", "lpfamily/cifar10"])
def test_a_cache_that_is_no_folder_gives_a_notice(
    local: Path, cache: Path, fit: Fit, capsys: pytest.CaptureFixture[str], obstacle: str
) -> None:
    """The data are there all the same."""
    loaded = data.load("cifar10", local)
    (path,) = cache.iterdir()
    path.unlink()
    cache.rmdir()
    if obstacle == "lpfamily":
        cache.parent.rmdir()
    (cache.parent.parent / obstacle).touch()
    capsys.readouterr()
    assert_same(loaded, data.load("cifar10", local))
    assert fit.count == 2
    fitting, kept = capsys.readouterr().err.splitlines()
    assert fitting == "fitting ZCA to 15 training images"
    assert f"{path} cannot be kept" in kept


@pytest.mark.parametrize("error", [OSError(errno.EROFS, "Read-only file system"), KeyboardInterrupt()])
def test_a_fit_that_cannot_be_written_leaves_nothing(
    local: Path,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
) -> None:
    """A file system's refusal is a line; an interrupt is one, and neither leaves a half file."""

    def fail(*_args: object) -> None:
        raise error

    monkeypatch.setattr(Path, "replace", fail)
    if isinstance(error, OSError):
        assert data.load("cifar10", local).train.x.any()
        assert "cannot be kept (Read-only file system)" in capsys.readouterr().err
    else:
        with pytest.raises(KeyboardInterrupt):
            data.load("cifar10", local)
    assert listing(cache) == []


def test_a_fit_that_may_not_be_read_is_made_again(
    local: Path, cache: Path, fit: Fit, capsys: pytest.CaptureFixture[str]
) -> None:
    """A folder in its place stands for whatever cannot be read, nor replaced."""
    loaded = data.load("cifar10", local)
    path = the_file(cache)
    path.unlink()
    path.mkdir()
    capsys.readouterr()
    assert_same(loaded, data.load("cifar10", local))
    read, kept = capsys.readouterr().err.splitlines()
    assert read.startswith(f"{path} cannot be read (")
    assert kept.startswith(f"{path} cannot be kept (")


def test_a_fit_that_is_a_pipe_is_not_waited_for(
    local: Path, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is replaced. A writer that waits for a reader ends the test if there is one."""
    loaded = data.load("cifar10", local)
    path = the_file(cache)
    path.unlink()
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    path.symlink_to(pipe)
    writer = threading.Thread(target=lambda: pipe.open("wb").close())
    writer.start()
    capsys.readouterr()
    try:
        assert_same(loaded, data.load("cifar10", local))
    finally:
        os.close(os.open(pipe, os.O_RDONLY | os.O_NONBLOCK))
        writer.join()
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith(f"{path} cannot be read (not a regular file)")
    assert not path.is_symlink()


def test_a_file_of_the_wrong_size_is_not_read(official: Mirror, cache: Path) -> None:
    """A file that was unpacked, the archive and the fit have grown to a gigabyte of zeros each."""
    loaded = data.load("cifar10")
    for path in (cache / FIRST, cache / ARCHIVE, *cache.glob("zca-*")):
        os.truncate(path, 1 << 30)
    tracemalloc.start()
    try:
        assert_same(loaded, data.load("cifar10"))
        assert tracemalloc.get_traced_memory()[1] < 1 << 29
    finally:
        tracemalloc.stop()
    assert all(path.stat().st_size < 1 << 29 for path in cache.iterdir())


def test_without_a_home_folder_local_files_load_with_a_notice(
    local: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Local files need no home folder."""

    def fail() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", fail)
    assert data.load("cifar10", local).train.x.any()
    assert (
        capsys.readouterr().err == "fitting ZCA, which cannot be kept: there is no home directory, set HOME\n"
    )


# The real data


needs_the_real_one = pytest.mark.skipif(
    not os.environ.get("LPFAMILY_DATA"), reason="needs the real CIFAR-10: set LPFAMILY_DATA to its folder"
)


@needs_the_real_one
def test_the_real_cifar10(monkeypatch: pytest.MonkeyPatch) -> None:
    """The images in order, normalised; whitening them is the next test's."""
    monkeypatch.setattr(cifar10, "_whitening", lambda images, x: np.zeros((1 + 3072, 0)))
    monkeypatch.setattr(cifar10, "whiten", lambda x, mean, matrix: None)
    loaded = data.load("cifar10")
    assert loaded.train.x.shape == (50_000, 3072)
    assert loaded.test.x.shape[1:] == (3072,)
    assert loaded.train.labels[:10].tolist() == [6, 9, 9, 4, 1, 1, 2, 7, 8, 3]
    assert loaded.test.labels[:10].tolist() == [3, 8, 8, 0, 6, 6, 1, 6, 3, 1]
    assert np.bincount(loaded.train.labels).tolist() == [5000] * 10
    np.testing.assert_allclose(np.linalg.norm(loaded.train.x, axis=1), 55, rtol=1e-5)


@needs_the_real_one
def test_the_real_cifar10_whitened(monkeypatch: pytest.MonkeyPatch, pytestconfig: pytest.Config) -> None:
    """Known statistics of the whitened images: deviation, norm, and how many directions are mostly noise."""
    if not pytestconfig.getoption("every_case"):
        pytest.skip("takes a minute and a half: run with --every-case")
    spectra = []

    def spy(*args: Any, **options: Any) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        values, vectors = usual_eigh(*args, **options)
        spectra.append(values.copy())
        return values, vectors

    usual_eigh = scipy.linalg.eigh
    monkeypatch.setattr(cifar10, "zca", USUAL_ZCA)
    monkeypatch.setattr(scipy.linalg, "eigh", spy)
    loaded = data.load("cifar10")
    deviations = loaded.train.x.std(axis=0)
    assert abs(deviations.mean() - 0.52) < 0.005
    assert abs(loaded.train.x.mean(axis=0, dtype=np.float64)).max() < 1e-4
    norms = np.linalg.norm(loaded.train.x, axis=1)
    assert abs(norms.mean() - 28.0) < 0.2
    assert abs(norms.std() - 7.5) < 0.2
    assert (spectra[0] < 0.1).sum() == 2313
