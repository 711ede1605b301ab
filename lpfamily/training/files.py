"""Files that others may have changed: read within limits, written atomically, and never through links."""

from __future__ import annotations

import hashlib
import json
import math
import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import Any

from lpfamily.training.errors import BadInput, refusing

Json = dict[str, Any]

REMEDY = "restore it from a copy"

LARGEST_TEXT = 1 << 28
"""The largest text file that is read, in bytes; the metrics of half a million epochs are smaller."""

LONGEST_NAME = 255
"""The largest number of bytes in the name of a file."""

# missing on Windows
_NONBLOCK = getattr(os, "O_NONBLOCK", 0)
_NOFOLLOW = getattr(os, "O_NOFOLLOW", 0)


@contextmanager
def reading(path: Path) -> Iterator[tuple[BufferedReader, int]]:
    """Open a regular file, and yield it with its size in bytes.

    Raises
    ------
    BadInput
        There is no such file, or it is a folder, a pipe or a device; or the system cannot read it, at the
        start or later. Then the message says why, and the cause is the `OSError`.
    """
    try:
        # opening a pipe would block until a writer opens it
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | _NONBLOCK)) as stream:
            status = os.fstat(stream.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise BadInput(f"{path}: is a pipe or a device, not a file; {REMEDY}")
            yield stream, status.st_size
    except FileNotFoundError as cause:
        raise BadInput(f"{path}: there is no such file; {REMEDY}") from cause
    except IsADirectoryError as cause:
        raise BadInput(f"{path}: is a folder, not a file; {REMEDY}") from cause
    except OSError as cause:
        raise BadInput(
            f"{path}: cannot be read ({cause.strerror or cause}); remove the cause and try again"
        ) from cause


@contextmanager
def understanding(path: Path, problem: str, remedy: str = REMEDY) -> Iterator[None]:
    """Turn exceptions caused by unexpected values in a file into `BadInput`."""
    try:
        yield
    except BadInput:
        raise
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as cause:
        raise BadInput(f"{path}: {problem} ({cause!r}); {remedy}") from cause


def read(path: Path) -> bytes:
    """Return the bytes of a text file, at most `LARGEST_TEXT`; raise `BadInput` as `reading` does."""
    with reading(path) as (stream, size):
        if size > LARGEST_TEXT:
            raise BadInput(f"{path}: has {size} bytes, too many for such a file; {REMEDY}")
        return stream.read(size)


def read_json(path: Path) -> Json:
    """Return the JSON object of a file; raise `BadInput` if there is none, or a number is not finite."""
    with refusing(f"{path}: cannot be read as JSON", f"; {REMEDY}", ValueError):
        values = parse_json(read(path))
    if not isinstance(values, dict):
        raise BadInput(f"{path}: must hold a JSON object; {REMEDY}")
    return values


def parse_json(text: str | bytes) -> Any:
    """Return the JSON value of a text.

    Raise `ValueError` for other text, deep nesting, and numbers that are not finite.
    """
    try:
        return json.loads(text, parse_int=_integer, parse_float=_finite, parse_constant=_finite)
    except RecursionError as cause:
        raise ValueError("it is nested too deeply") from cause


def _integer(text: str) -> int:
    _finite(text)
    return int(text)


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text[:20]} is not finite as a float")
    return value


def sha256(blocks: Iterable[bytes | memoryview]) -> hashlib._Hash:
    """Return the hash of the concatenated blocks."""
    digest = hashlib.sha256()
    for block in blocks:
        digest.update(block)
    return digest


def replace(path: Path, *blocks: bytes | memoryview, new: Path | None = None) -> None:
    """Replace a file by blocks atomically: at every instant it has its old or its new content, complete.

    A link at the path is replaced, and its target is not touched. The blocks are first written to `new`, by
    default `beside(path)`. Processes that write the same path at the same time need different `new`.
    """
    new = new or beside(path)
    new.unlink(missing_ok=True)
    try:
        with new.open("xb") as file:  # with O_EXCL, so a link that appears meanwhile is not followed
            for block in blocks:
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
    except BaseException:
        new.unlink(missing_ok=True)
        raise


def append(path: Path, content: bytes) -> None:
    """Append to a file, which is made if it does not exist; a link is refused."""
    with open(path, "ab", opener=lambda name, flags: os.open(name, flags | _NOFOLLOW, 0o666)) as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def beside(path: Path) -> Path:
    """Return the path at which `replace` first writes a file; a kill may leave a file there."""
    return path.with_name(f".{path.name}.new")
