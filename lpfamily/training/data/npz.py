"""Arrays from an .npz file that somebody else has made: nothing is unpickled, and no header is believed."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from lpfamily.training.data.files import check_memory
from lpfamily.training.errors import BadInput
from lpfamily.training.files import reading

MOST_EXPANDED = 500
"""Deflate makes zeros a thousand times smaller, and data seldom ten times."""
SMALL = 1 << 28
"""So many bytes may be expanded by more."""

_HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


def read(path: Path, names: Sequence[str], known_as: str) -> dict[str, NDArray[Any]]:
    """Return arrays of a file, `path`, which messages know by another name.

    Raises
    ------
    BadInput
        The file cannot be read, or is no archive of plain arrays; it lacks one of the arrays; the arrays do
        not fit into this machine's memory, or are so much larger than the file that they cannot be data.
    """
    try:
        with reading(path) as (stream, size):
            if stream.read(len(npy.MAGIC_PREFIX)) == npy.MAGIC_PREFIX:
                raise BadInput(f"{known_as}: is one array; save {_list(names)} with numpy.savez")
            stream.seek(0)
            with zipfile.ZipFile(stream) as archive:
                found = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
                if missing := set(names) - found.keys():
                    there = ", ".join(found)[:100] or "nothing"
                    raise BadInput(f"{known_as}: has no array {min(missing)!r}, only {there}")
                expanded = sum(found[name].file_size for name in names)
                check_memory(known_as, expanded)
                if expanded > max(SMALL, MOST_EXPANDED * size):
                    raise BadInput(
                        f"{known_as}: expands to {expanded / size:.0f} times its size, as no data do"
                    )
                return {name: _array(archive, found[name]) for name in names}
    except BadInput as problem:
        if isinstance(cause := problem.__cause__, OSError):
            raise BadInput(f"{known_as}: cannot be read ({cause.strerror or cause})") from cause
        raise
    except MemoryError as cause:
        raise BadInput(f"{known_as}: does not fit into the memory that is free; give less") from cause
    except Exception as cause:  # a damaged archive fails in any way
        raise BadInput(
            f"{known_as}: cannot be read (not an .npz file of plain arrays, or damaged): {str(cause)[:200]}"
        ) from cause


def _array(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> NDArray[Any]:
    if info.compress_type not in _METHODS:
        raise ValueError(f"{info.filename} is not compressed as numpy.savez_compressed does it")
    with archive.open(info) as stream:
        if (version := npy.read_magic(stream)) not in _HEADERS:
            raise ValueError(f"{info.filename} is of the .npy version {version}")
        shape, _, dtype = _HEADERS[version](stream)
        if dtype.hasobject:
            raise ValueError(f"{info.filename} has Python objects, which are pickled")
        if stream.tell() + math.prod(shape) * dtype.itemsize != info.file_size:
            raise ValueError(
                f"{info.filename} has {info.file_size} bytes, and its header says {shape} {dtype}"
            )
    with archive.open(info) as stream:
        return np.asarray(npy.read_array(stream, allow_pickle=False))


def _list(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} and {names[-1]}"
