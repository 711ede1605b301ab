"""Data files: where they are, how they are downloaded, and how they are read without trusting them."""

import errno
import gzip
import http.client
import os
import secrets
import stat
import sys
import threading
import urllib.error
import urllib.request
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedIOBase
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lpfamily.training.errors import BadInput, printable, refusing
from lpfamily.training.files import replace, sha256

SECONDS_OF_SILENCE = 30.0
SECONDS_IN_ALL = 600.0
BLOCK_BYTES = 1 << 20
LONGEST_REASON = 200
HIDDEN = (".", "__MACOSX", "Thumbs.db", "desktop.ini")
"""Prefixes of the names of hidden files, and of files that operating systems leave in folders."""

REMEDY = "copy or download it again"
OTHER_SOURCE = "name a folder that holds the files with --data-dir"


@dataclass(frozen=True)
class Remote:
    """A published file: its name, its size in bytes and its SHA-256 checksum in hexadecimal."""

    name: str
    size: int
    sha256: str


def cache_folder() -> Path:
    """Return the user's cache folder on this platform.

    Raises
    ------
    BadInput
        The user has no home directory.
    """
    problem = "there is no home directory to keep downloads in"
    with refusing(problem, f": set HOME, or {OTHER_SOURCE}", RuntimeError):
        if sys.platform == "win32":
            base, usual = os.environ.get("LOCALAPPDATA"), Path.home() / "AppData" / "Local"
        elif sys.platform == "darwin":
            base, usual = None, Path.home() / "Library" / "Caches"
        else:
            base, usual = os.environ.get("XDG_CACHE_HOME"), Path.home() / ".cache"
    # the XDG specification says that relative paths must be ignored
    return (Path(base) if base and Path(base).is_absolute() else usual) / "lpfamily"


def find(name: str, folders: Sequence[Path], *other_names: str) -> Path:
    """Return the first of folder/name and folder/name.gz that exists, folder by folder.

    The other names of the file are tried in the same way. If the path is a folder, the file of the same name
    in it is returned, as some archives unpack like that.

    Raises
    ------
    BadInput
        There is no such file, or a folder cannot be searched.
    """
    names = [each + suffix for each in (name, *other_names) for suffix in ("", ".gz")]
    for path in (folder / each for folder in folders for each in names):
        try:
            path.stat()
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            raise _unreadable(path, error) from error
        inside = path / path.name
        return inside if inside.is_file() else path
    raise BadInput(
        f"no {name} or {name}.gz: looked for {' and '.join(str(folder / name) for folder in folders)}; "
        "put the file there, or download the official one by giving neither --data-dir nor LPFAMILY_DATA"
    )


def walk(folder: Path) -> Iterator[Path]:
    """Yield the files at any depth of a folder in the order of their names, without hidden ones.

    A folder that does not exist has none.

    Raises
    ------
    BadInput
        A folder cannot be searched.
    """

    def refuse(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError | NotADirectoryError):
            raise _unreadable(Path(error.filename), error) from error

    for parent, subfolders, names in os.walk(folder, onerror=refuse):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith(HIDDEN))
        yield from (Path(parent, name) for name in sorted(names) if not name.startswith(HIDDEN))


def check_memory(what: str, size: int) -> None:
    """Raise `BadInput` for data with more bytes than this machine's memory, where its size is known."""
    if not hasattr(os, "sysconf"):
        return
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if size > memory:
        raise BadInput(
            f"{what} would take {size / 1e9:.1f} GB, and this machine has {memory / 1e9:.1f} GB of memory: "
            "give less"
        )


def check_labels(path: Path, labels: NDArray[np.integer], classes: int) -> None:
    """Raise `BadInput` if a label of a file is not a class."""
    wrong = np.flatnonzero(labels >= classes)
    if wrong.size:
        label = f"the label {labels[wrong[0]]} at index {wrong[0]}"
        raise BadInput(f"{path} has {label}, expected 0 to {classes - 1}: {REMEDY}")


@contextmanager
def reading(path: Path) -> Iterator[BufferedIOBase]:
    """Open a file for reading, through gzip if its name ends in .gz.

    Raises
    ------
    BadInput
        At the start or while reading: not a regular file, no permission, damaged gzip data.
    """
    try:
        # opening a pipe would block until a writer opens it
        if path.exists() and not path.is_file():
            raise BadInput(f"{path} is a folder or a device, expected a file: put the file in its place")
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as stream:
            yield stream
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise BadInput(f"{path} is damaged ({error}), expected a whole gzip file: {REMEDY}") from error
    except OSError as error:
        raise _unreadable(path, error) from error


def read_at_most(stream: BufferedIOBase, size: int) -> bytes:
    """Read `size` bytes, or fewer if the stream ends before.

    It reads blocks, so that memory grows with the content of the stream: a single read(size) would allocate
    all of `size`, which a wrong header may put at terabytes.
    """
    blocks = []
    while block := stream.read(min(size, BLOCK_BYTES)):
        blocks.append(block)
        size -= len(block)
    return b"".join(blocks)


def read_sized(path: Path, size: int) -> bytes:
    """Return the content of a file, or b"" if its size is not `size`.

    Raises
    ------
    OSError
        The file does not exist, is not a regular file (a pipe, a device), or cannot be read.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "not a regular file")
    return path.read_bytes() if status.st_size == size else b""


def matches(path: Path, remote: Remote) -> bool:
    """Return whether a path is a file with the size and the checksum of `remote`."""
    return path.is_file() and sha256([read_sized(path, remote.size)]).hexdigest() == remote.sha256


def fetch(remote: Remote, mirrors: Sequence[str], folder: Path) -> Path:
    """Return folder/name, downloaded from the first mirror that serves the right bytes.

    An existing file is used if its size and checksum are right, and replaced otherwise. The new file is
    written atomically.

    Parameters
    ----------
    mirrors
        The URLs to put before the name, the preferred one first.

    Raises
    ------
    BadInput
        Every mirror failed, or `folder` cannot be written.
    """
    path, remedy = folder / remote.name, f": make its folder writable, or {OTHER_SOURCE}"
    with refusing(f"the download {path} cannot be kept", remedy, OSError):
        if not matches(path, remote):
            folder.mkdir(parents=True, exist_ok=True)
            write(path, _download(remote, mirrors))
    return path


def write(path: Path, content: bytes) -> None:
    """Write or replace a file atomically, even if other processes write it at the same time."""
    replace(path, content, new=path.with_name(f".{path.name}.{secrets.token_hex(4)}.new"))


def _download(remote: Remote, mirrors: Sequence[str]) -> bytes:
    failures = []
    for url in (mirror + remote.name for mirror in mirrors):
        sys.stderr.write(f"downloading {url}\n")
        try:
            content = _get(url, remote.size)
        except (OSError, http.client.HTTPException, ValueError) as error:
            failures.append(f"{url}: {printable(str(error))[:LONGEST_REASON]}")
            continue
        if sha256([content]).hexdigest() == remote.sha256:
            return content
        failures.append(f"{url}: {len(content)} bytes with the wrong checksum, expected {remote.size}")
    raise BadInput(
        f"{remote.name} could not be downloaded ({'; '.join(failures)}): try again later, or {OTHER_SOURCE}"
    )


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follow redirects without reading their pages, which may never end."""

    def redirect_request(self, req: Any, fp: Any, *rest: Any) -> Any:
        fp.close()
        return super().redirect_request(req, fp, *rest)


def _get(url: str, limit: int) -> bytes:
    """Return the content of a URL, within SECONDS_IN_ALL from the address look-up to the last byte.

    A thread receives it and is abandoned when the time is up, because the timeout of a socket restarts with
    every byte, and the address look-up has none.
    """
    outcome: list[bytes | Exception] = []
    abandoned = threading.Event()

    def receive() -> None:
        try:
            outcome.append(_receive(url, limit, abandoned))
        except Exception as error:
            outcome.append(error)

    thread = threading.Thread(target=receive, daemon=True)
    thread.start()
    try:
        thread.join(SECONDS_IN_ALL)
        if not outcome:
            raise TimeoutError(f"not finished after {SECONDS_IN_ALL:g} s")
    finally:
        abandoned.set()
    if isinstance(outcome[0], Exception):
        raise outcome[0]
    return outcome[0]


def _receive(url: str, limit: int, abandoned: threading.Event) -> bytes:
    content = bytearray()
    opener = urllib.request.build_opener(_Redirects)
    try:
        with opener.open(url, timeout=SECONDS_OF_SILENCE) as response:
            # read1 returns what has arrived; read would wait for a whole block, even when abandoned
            while not abandoned.is_set() and (block := response.read1(BLOCK_BYTES)):
                content += block
                if len(content) > limit:
                    raise ValueError(f"more than the expected {limit} bytes")
    except urllib.error.HTTPError as error:
        error.close()
        raise
    return bytes(content)


def _unreadable(path: Path, error: OSError) -> BadInput:
    return BadInput(
        f"{path} cannot be read ({error.strerror or error}), expected a readable file: check its "
        "permissions and those of its folder"
    )
