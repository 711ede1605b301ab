"""Data sets: the right arrays from good files, and one line that names the file from bad ones."""

import errno
import gzip
import hashlib
import importlib
import os
import re
import socket
import socketserver
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from io import BufferedIOBase
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import lpfamily.training
from helpers.data_files import Mirror, assert_same, flipped, listing, write
from lpfamily import evaluate
from lpfamily.train import main
from lpfamily.training import data
from lpfamily.training.data import files, mnist
from lpfamily.training.errors import BadInput

COUNTS = {"train": 5, "t10k": 3}
NAMES = [remote.name.removesuffix(".gz") for remote in mnist.FILES]
TRAIN_IMAGES, TRAIN_LABELS = NAMES[:2]


def idx(array: NDArray[np.uint8], magic: bytes | None = None) -> bytes:
    """Write an array as the IDX format describes it, optionally with another magic number."""
    magic = bytes((0, 0, 8, array.ndim)) if magic is None else magic
    return magic + b"".join(size.to_bytes(4, "big") for size in array.shape) + array.tobytes()


def example_files() -> dict[str, bytes]:
    """Return a small MNIST by file name, not compressed."""
    rng = np.random.default_rng(7)
    contents = {}
    for prefix, count in COUNTS.items():
        images = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        contents[f"{prefix}-images-idx3-ubyte"] = idx(images)
        contents[f"{prefix}-labels-idx1-ubyte"] = idx(rng.integers(0, 10, count, dtype=np.uint8))
    return contents


def assert_refused(folder: Path, *parts: str) -> None:
    """Raise unless loading MNIST from the folder is refused in one line that holds all the parts."""
    with pytest.raises(BadInput) as caught:
        data.load("mnist", folder)
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


def test_names_cost_no_import_of_scikit_learn() -> None:
    """The names are there before any loader is."""
    code = "import sys; from lpfamily.training.data import NAMES; print(*NAMES, 'sklearn' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["digits", "mnist", "cifar10", "False"]


def test_an_unknown_name_is_answered_with_the_known_ones() -> None:
    """The refusal holds what was given and what to choose from."""
    with pytest.raises(BadInput, match=r"'svhn'.*digits, mnist, cifar10"):
        data.load("svhn")


# Digits


def test_digits_are_split_the_same_way_every_time() -> None:
    """1,797 real digits, 300 of them for testing; a change of the split changes the pinned labels."""
    digits = data.load("digits")
    assert (digits.name, digits.classes, digits.shape) == ("digits", 10, (1, 8, 8))
    assert digits.train.x.shape == (1497, 64)
    assert digits.test.x.shape == (300, 64)
    assert_same(digits, data.load("digits"))
    assert digits.test.labels[:10].tolist() == [6, 6, 6, 2, 5, 6, 6, 2, 2, 1]
    for split in (digits.train, digits.test):
        assert (split.x.dtype.name, split.labels.dtype.name) == ("float32", "int64")
        assert (split.x.min(), split.x.max()) == (0, 1)
        assert set(split.labels.tolist()) == set(range(10))


def test_digits_splits_are_disjoint_and_complete() -> None:
    """Together the splits are scikit-learn's examples, each once with its label."""
    digits = data.load("digits")
    x = np.concatenate([digits.train.x, digits.test.x])
    labels = np.concatenate([digits.train.labels, digits.test.labels])
    pixels, targets = importlib.import_module("sklearn.datasets").load_digits(return_X_y=True)

    def rows(values: NDArray[np.float64], names: NDArray[np.int64]) -> list[list[float]]:
        return sorted(np.column_stack([values, names]).tolist())

    assert len(np.unique(x, axis=0)) == len(x)
    assert rows(16.0 * x, labels) == rows(pixels, targets)


def test_digits_without_scikit_learn_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """The refusal is an install line."""
    monkeypatch.setitem(sys.modules, "sklearn", None)
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(BadInput, match=re.escape('pip install "lpfamily[train]"')):
        data.load("digits")


# MNIST from local files


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("layout", [".", "mnist"])
def test_local_files_are_read_in_both_layouts_plain_and_compressed(
    tmp_path: Path, layout: str, suffix: str
) -> None:
    """Pixels are divided by 255, images become rows, any count of examples will do."""
    contents = example_files()
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
    here = write(tmp_path / "here", example_files())
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
    (write(tmp_path, example_files()) / missing).unlink()
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
    contents = example_files()
    del contents[name]
    write(tmp_path, {**contents, name + suffix: content})
    assert_refused(tmp_path, str(tmp_path / (name + suffix)), "download it again", *parts)


def test_as_many_labels_as_images(tmp_path: Path) -> None:
    """Both files are named, with what each holds."""
    write(tmp_path, {**example_files(), TRAIN_LABELS: idx(ZEROS[1:])})
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
    contents = example_files()
    path = tmp_path / f"{TRAIN_IMAGES}.gz"
    write(tmp_path, contents)
    (tmp_path / TRAIN_IMAGES).unlink()
    path.write_bytes(damage(gzip.compress(contents[TRAIN_IMAGES])))
    assert_refused(tmp_path, str(path), "is damaged", "expected a whole gzip file", "download it again")


def test_a_gzip_bomb_is_not_inflated(tmp_path: Path) -> None:
    """64 MB of zeros behind a header that announces one image cost little memory."""
    contents = example_files()
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
    write(tmp_path, example_files())
    (tmp_path / TRAIN_LABELS).unlink()
    (tmp_path / TRAIN_LABELS).mkdir()
    assert_refused(tmp_path, str(tmp_path / TRAIN_LABELS), "is a folder", "expected a file")


@pytest.mark.parametrize("call", ["stat", "open"])
def test_a_file_that_may_not_be_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """Permissions are simulated: they do not bind the superuser, whom tests may run as."""
    path = write(tmp_path, example_files()) / TRAIN_LABELS
    usual = getattr(Path, call)

    def deny(self: Path, *args: object, **kwargs: object) -> object:
        if self == path:
            raise PermissionError(errno.EACCES, "Permission denied")
        return usual(self, *args, **kwargs)

    monkeypatch.setattr(Path, call, deny)
    assert_refused(tmp_path, str(path), "cannot be read (Permission denied)", "check its permissions")


# MNIST from a mirror


@pytest.fixture
def cache(tmp_path: Path, mirror: Mirror, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make the small MNIST the official one, served by /first/ and /second/; return the cache folder."""
    contents = {f"{name}.gz": gzip.compress(content) for name, content in example_files().items()}
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.delenv("LPFAMILY_DATA", raising=False)
    monkeypatch.setattr(mnist, "MIRRORS", (f"{mirror.url}/first/", f"{mirror.url}/second/"))
    official = [
        files.Remote(
            f"{name}.gz", len(contents[f"{name}.gz"]), hashlib.sha256(contents[f"{name}.gz"]).hexdigest()
        )
        for name in NAMES
    ]
    monkeypatch.setattr(mnist, "FILES", official)
    for name, content in contents.items():
        mirror.pages[f"/first/{name}"] = mirror.pages[f"/second/{name}"] = content
    return tmp_path / "lpfamily" / "mnist"


ARCHIVES = [f"{name}.gz" for name in NAMES]


def test_what_was_downloaded_is_kept(
    tmp_path: Path, mirror: Mirror, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first mirror serves all; the second load needs no network and says nothing."""
    loaded = data.load("mnist")
    assert_same(loaded, data.load("mnist", write(tmp_path / "local", example_files())))
    assert mirror.asked == [f"/first/{name}" for name in ARCHIVES]
    assert listing(cache) == sorted(ARCHIVES)
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.splitlines() == [f"downloading {mirror.url}/first/{name}" for name in ARCHIVES]
    mirror.pages.clear()
    assert_same(loaded, data.load("mnist"))
    assert len(mirror.asked) == len(ARCHIVES)
    assert capsys.readouterr() == ("", "")


def test_a_cached_file_that_changed_is_downloaded_again(mirror: Mirror, cache: Path) -> None:
    """The checksum decides, not the name."""
    loaded = data.load("mnist")
    path = cache / ARCHIVES[0]
    path.write_bytes(flipped(path.read_bytes(), -1))
    mirror.asked.clear()
    assert_same(loaded, data.load("mnist"))
    assert mirror.asked == [f"/first/{ARCHIVES[0]}"]


def test_a_cached_file_of_the_wrong_size_is_not_read(mirror: Mirror, cache: Path) -> None:
    """It has grown to 64 MB of zeros, and is downloaded again with little memory."""
    loaded = data.load("mnist")
    os.truncate(cache / ARCHIVES[0], 64_000_000)
    mirror.asked.clear()
    tracemalloc.start()
    try:
        assert_same(loaded, data.load("mnist"))
        assert tracemalloc.get_traced_memory()[1] < 4_000_000
    finally:
        tracemalloc.stop()
    assert mirror.asked == [f"/first/{ARCHIVES[0]}"]


def hang(stream: BufferedIOBase) -> None:
    """Begin an answer and never go on."""
    stream.write(b"\x1f")
    stream.flush()
    threading.Event().wait(1)


def drip(stream: BufferedIOBase) -> None:
    """Send a byte now and then, so that there is never a long silence."""
    try:
        for _ in range(100):
            stream.write(b"\x1f")
            stream.flush()
            threading.Event().wait(0.02)
    except OSError:
        return


FAILURES = {
    "absent": (None, "404", {}),
    "altered": (lambda content: flipped(content, -1), "wrong checksum", {}),
    "cut off": (lambda content: content[:-1], "wrong checksum", {}),
    "a page of text": (lambda _: b"<html>", "6 bytes with the wrong checksum", {}),
    "too long": (lambda content: content + b"\0", "more than the expected", {}),
    "hanging": (lambda _: hang, "timed out", {"SECONDS_OF_SILENCE": 0.2}),
    "slow": (lambda _: drip, "not finished after 0.3 s", {"SECONDS_IN_ALL": 0.3}),
}


@pytest.mark.parametrize(
    ("alter", "cause", "patience"), [pytest.param(*case, id=name) for name, case in FAILURES.items()]
)
def test_a_bad_mirror_is_followed_by_the_next(
    mirror: Mirror,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    alter: Callable[[bytes], bytes | Callable[[BufferedIOBase], None]] | None,
    cause: str,
    patience: dict[str, float],
) -> None:
    """With a good mirror left the file arrives; with none, the refusal lists both and nothing is left."""
    name, get = ARCHIVES[1], files._get

    def impatient(url: str, limit: int) -> bytes:
        # with the bad mirror alone: a busy machine may be long about a good one
        with pytest.MonkeyPatch.context() as patch:
            for limit_of_time, seconds in patience.items() if url == f"{mirror.url}/first/{name}" else ():
                patch.setattr(files, limit_of_time, seconds)
            return get(url, limit)

    monkeypatch.setattr(files, "_get", impatient)
    good = mirror.pages.pop(f"/first/{name}")
    assert isinstance(good, bytes)
    if alter is not None:
        mirror.pages[f"/first/{name}"] = alter(good)
    data.load("mnist")
    assert mirror.asked.count(f"/second/{name}") == 1
    assert listing(cache) == sorted(ARCHIVES)

    (cache / name).unlink()
    del mirror.pages[f"/second/{name}"]
    with pytest.raises(BadInput) as caught:
        data.load("mnist")
    message = str(caught.value)
    assert "\n" not in message
    assert f"{mirror.url}/first/{name}: " in message
    assert f"{mirror.url}/second/{name}: HTTP Error 404" in message
    assert cause in message
    assert "--data-dir" in message
    assert listing(cache) == sorted(set(ARCHIVES) - {name})


class RawMirror:
    """A server on this machine that answers every connection with some bytes, then others again and again."""

    def __init__(self) -> None:
        self.beginning = self.dripping = b""
        stopped = self.stopped = threading.Event()
        mirror = self

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                try:
                    self.request.recv(1 << 16)
                    self.request.sendall(mirror.beginning)
                    for _ in range(200 if mirror.dripping else 0):
                        if stopped.wait(0.02):
                            return
                        self.request.sendall(mirror.dripping)
                except OSError:
                    return

        self.server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
        self.address = f"127.0.0.1:{self.server.server_address[1]}"


@pytest.fixture
def raw(monkeypatch: pytest.MonkeyPatch) -> Iterator[RawMirror]:
    """Serve in a thread for as long as a test runs."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    made = RawMirror()
    thread = threading.Thread(target=made.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield made
    made.stopped.set()
    made.server.shutdown()
    made.server.server_close()
    thread.join()


def refusal(folder: Path, url: str) -> str:
    """Return what a download that cannot succeed says after its URL."""
    with pytest.raises(BadInput) as caught:
        files.fetch(files.Remote("file", 1000, "0" * 64), [f"{url}/"], folder)
    return str(caught.value).removeprefix(f"file could not be downloaded ({url}/file: ")


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
TRICKLES = {
    "handshake": ("https", b"\x16\x03\x03\x40\x00", b"\0"),
    "status line": ("http", b"HTTP/1.1 200 O", b"K"),
    "interim answers": ("http", b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "header": ("http", b"HTTP/1.1 200 OK\r\nX: ", b"x"),
    "headers": ("http", b"HTTP/1.1 200 OK\r\n", b"X: x\r\n"),
    "location": ("http", b"HTTP/1.1 302 Found\r\nLocation: /", b"x"),
    "chunk size": ("http", CHUNKED + b"1;", b"x"),
    "chunks": ("http", CHUNKED, b"1\r\nx\r\n"),
    "trailers": ("http", CHUNKED + b"1\r\nx\r\n0\r\n", b"X: x\r\n"),
}


@pytest.mark.parametrize(
    ("scheme", "beginning", "dripping"), [pytest.param(*case, id=name) for name, case in TRICKLES.items()]
)
def test_time_is_up_whatever_trickles(
    raw: RawMirror,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    scheme: str,
    beginning: bytes,
    dripping: bytes,
) -> None:
    """Four seconds of drops, none of them late, are given up after 0.3."""
    monkeypatch.setattr(files, "SECONDS_IN_ALL", 0.3)
    raw.beginning, raw.dripping = beginning, dripping
    begun = time.monotonic()
    assert refusal(tmp_path, f"{scheme}://{raw.address}").startswith("not finished after 0.3 s)")
    assert time.monotonic() - begun < 3


def test_time_is_up_while_an_address_is_looked_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That has no timeout of its own."""
    over = threading.Event()

    def getaddrinfo(*_args: object, **_kwargs: object) -> object:
        over.wait(4)
        raise socket.gaierror("too late")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    monkeypatch.setattr(files, "SECONDS_IN_ALL", 0.3)
    monkeypatch.setenv("no_proxy", "*")
    try:
        assert refusal(tmp_path, "http://lpfamily.invalid").startswith("not finished after 0.3 s)")
    finally:
        over.set()


def test_the_page_of_a_redirect_is_not_read(
    raw: RawMirror, mirror: Mirror, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has no end; the file is where it points."""
    loaded = data.load("mnist")
    (cache / ARCHIVES[0]).unlink()
    target = f"{mirror.url}/first/{ARCHIVES[0]}".encode()
    raw.beginning, raw.dripping = b"HTTP/1.1 302 Found\r\nLocation: " + target + b"\r\n\r\n", b"x"
    monkeypatch.setattr(mnist, "MIRRORS", (f"http://{raw.address}/",))
    monkeypatch.setattr(files, "SECONDS_IN_ALL", 2)
    assert_same(loaded, data.load("mnist"))


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        pytest.param(b"HTTP/1.1 404 \x1b[2J\x1b]0;title\x07", r"404: \x1b[2J\x1b]0;title\x07)", id="reason"),
        pytest.param(b"HTTP/1.1 404 \x9b2J\xad", r"404: \x9b2J\xad)", id="reason of 8 bits"),
        pytest.param(b"\x1b[31mHTTP\0", r"\x1b[31mHTTP\x00)", id="status line"),
        pytest.param(b"HTTP/1.1 302 Found\r\nLocation: x:\x1b[2J", r"x:\x1b[2J' is not", id="location"),
        pytest.param(b"HTTP/1.1 404 " + b"x" * 60_000, "404: xxx", id="long"),
    ],
)
def test_what_a_server_says_is_shown_and_not_obeyed(
    raw: RawMirror, tmp_path: Path, answer: bytes, said: str
) -> None:
    """No control character reaches a terminal, and no page of text."""
    raw.beginning = answer + b"\r\n\r\n"
    message = refusal(tmp_path, f"http://{raw.address}")
    assert said in message
    assert message.isprintable()
    assert len(message) < 500


@pytest.mark.parametrize("name", ["\x1b[2J", "\x9b", "\n", "\u202etxt", "\udc80"])
def test_a_file_name_is_shown_and_not_obeyed(tmp_path: Path, name: str) -> None:
    """Control characters, those that turn the direction of writing, and bytes that are no text."""
    with pytest.raises(BadInput, match=r"no train-images-idx3-ubyte") as caught:
        data.load("mnist", tmp_path / f"a{name}z")
    assert str(caught.value).isprintable()


def test_without_a_network_the_refusal_names_every_mirror(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A port that nobody listens on stands for a network that is down."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        monkeypatch.setattr(mnist, "MIRRORS", (f"{url}/first/", f"{url}/second/"))
        with pytest.raises(BadInput, match=r"/first/.*refused.*/second/.*refused.*--data-dir"):
            data.load("mnist")
    assert listing(cache) == []


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_write_that_fails_leaves_nothing(
    cache: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    """Neither the file nor its beginnings."""

    def fail(*_args: object) -> None:
        raise error

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(BadInput if isinstance(error, OSError) else KeyboardInterrupt) as caught:
        data.load("mnist")
    assert listing(cache) == []
    if isinstance(error, OSError):
        assert re.search(r"ubyte\.gz cannot be kept \(No space left.*--data-dir", str(caught.value))


def test_who_writes_the_same_file_meanwhile_is_not_in_the_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when several runs that begin together download the same data: each leaves a whole file."""
    path, sync, seen = tmp_path / "file", os.fsync, []

    def meanwhile(descriptor: int) -> None:
        monkeypatch.setattr(os, "fsync", sync)
        files.write(path, b"of another")
        seen.append(path.read_bytes())
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", meanwhile)
    files.write(path, b"mine")
    assert seen == [b"of another"]
    assert path.read_bytes() == b"mine"
    assert listing(tmp_path) == ["file"]


def test_a_cache_that_is_no_folder_is_named(cache: Path) -> None:
    """What stands in the way is one line."""
    cache.parent.touch()
    with pytest.raises(BadInput, match=r"lpfamily.*cannot be kept.*--data-dir"):
        data.load("mnist")


@pytest.mark.parametrize(
    ("platform", "variables", "expected"),
    [
        ("linux", {}, "home/.cache"),
        ("linux", {"XDG_CACHE_HOME": "cache"}, "cache"),
        ("linux", {"XDG_CACHE_HOME": ""}, "home/.cache"),
        ("darwin", {"XDG_CACHE_HOME": "cache"}, "home/Library/Caches"),
        ("win32", {"LOCALAPPDATA": "local"}, "local"),
        ("win32", {}, "home/AppData/Local"),
    ],
)
def test_the_cache_lies_where_the_platform_puts_it(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    platform: str,
    variables: dict[str, str],
    expected: str,
) -> None:
    """Paths are below a home and absolute; an empty variable is one that is not set."""
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "home")
    for name in ("XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, str(tmp_path / value) if value else "")
    assert files.cache_folder() == tmp_path / expected / "lpfamily"


def test_a_relative_xdg_folder_is_ignored(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As its specification has it."""
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert files.cache_folder() == tmp_path / ".cache" / "lpfamily"


def test_no_home_is_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """An account without a home directory is told what to do."""

    def fail() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", fail)
    with pytest.raises(BadInput, match=r"home directory.*--data-dir"):
        files.cache_folder()


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


def test_a_data_set_is_one_entry_of_the_table(tmp_path, monkeypatch):
    """Its own shape and number of classes, its radius and recipe; commands take it like any other."""
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 3
    x = (rng.random((60, 6)) + np.repeat(np.eye(3), 2, axis=1)[labels]).astype(np.float32)

    def read(folder):
        assert folder is None  # it has no files
        return toy.dataset(data.Split(x[:40], labels[:40]), data.Split(x[40:], labels[40:]))

    chosen = {"epochs": 5, "validation": 6, "patience": 0, "second_stage": "none", "batch_size": 7}
    toy = data.Source("toy", (1, 2, 3), 3, read, radius=0.25, has_files=False, recipe=chosen)
    monkeypatch.setitem(data.SOURCES, "toy", toy)
    assert main(["--data", "toy", "--units", "5", "--out", str(tmp_path / "run"), "--quiet"]) == 0
    trained = lpfamily.training.load(tmp_path / "run")
    assert (trained.network.inputs, trained.network.classes, trained.recipe.sigma) == (6, 3, 0.25)
    assert {name: getattr(trained.recipe, name) for name in chosen} == chosen
    assert trained.result["tested_on"] == "toy, 20 test examples"
    assert evaluate.main([str(tmp_path / "run"), "--quiet", "--examples", "20", "--steps", "2"]) == 0
