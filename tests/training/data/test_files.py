"""Data sets from a mirror: downloaded once, checked, and one line for what goes wrong."""

import errno
import gzip
import hashlib
import os
import re
import socket
import socketserver
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from io import BufferedIOBase
from pathlib import Path

import pytest

from helpers.data_files import Mirror, assert_same, flipped, listing, mnist_files, write
from lpfamily.training import data
from lpfamily.training.data import files, mnist
from lpfamily.training.errors import BadInput

NAMES = [remote.name.removesuffix(".gz") for remote in mnist.FILES]


@pytest.fixture
def cache(tmp_path: Path, mirror: Mirror, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make the small MNIST the official one, served by /first/ and /second/; return the cache folder."""
    contents = {f"{name}.gz": gzip.compress(content) for name, content in mnist_files().items()}
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


def test_downloaded_files_are_kept(
    tmp_path: Path, mirror: Mirror, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first mirror serves all; the second load needs no network and says nothing."""
    loaded = data.load("mnist")
    assert_same(loaded, data.load("mnist", write(tmp_path / "local", mnist_files())))
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
    """Return the message of a download that cannot succeed, after its URL."""
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
def test_a_slow_download_is_given_up_after_the_time_limit(
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


def test_a_slow_address_lookup_is_given_up_after_the_time_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lookup has no timeout of its own."""
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
def test_control_characters_of_a_server_are_escaped(
    raw: RawMirror, tmp_path: Path, answer: bytes, said: str
) -> None:
    """No control character reaches a terminal, and no page of text."""
    raw.beginning = answer + b"\r\n\r\n"
    message = refusal(tmp_path, f"http://{raw.address}")
    assert said in message
    assert message.isprintable()
    assert len(message) < 500


@pytest.mark.parametrize("name", ["\x1b[2J", "\x9b", "\n", "\u202etxt", "\udc80"])
def test_control_characters_in_a_file_name_are_escaped(tmp_path: Path, name: str) -> None:
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


def test_another_process_may_write_the_same_file_meanwhile(
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
    """The error is one line that names it."""
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
def test_the_cache_is_in_the_cache_folder_of_the_platform(
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


def test_a_missing_home_folder_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """An account without a home directory is told what to do."""

    def fail() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", fail)
    with pytest.raises(BadInput, match=r"home directory.*--data-dir"):
        files.cache_folder()
