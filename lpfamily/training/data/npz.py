"""Arrays from an .npz file of unknown origin: nothing is unpickled, and no header is trusted."""

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
"""The largest accepted ratio of decompressed to compressed size. That of zeros is 1000, of data seldom 10."""
SMALL = 1 << 28
"""Below this decompressed size, in bytes, any ratio is accepted."""

_HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


def read(path: Path, names: Sequence[str], known_as: str) -> dict[str, NDArray[Any]]:
    """Return arrays of a file; messages call the file `known_as`.

    Raises
    ------
    BadInput
        The file cannot be read, or is not an archive of plain arrays; it lacks one of the arrays; the arrays
        do not fit into this machine's memory, or are so much larger than the file that they cannot be data.
    """
    try:
        with reading(path) as (stream, size):
            if stream.read(len(npy.MAGIC_PREFIX)) == npy.MAGIC_PREFIX:
                raise BadInput(f"{known_as}: is one array; save {_list(names)} with numpy.savez")
            stream.seek(0)
            with zipfile.ZipFile(stream) as archive:
                members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
                if missing := set(names) - members.keys():
                    existing = ", ".join(members)[:100] or "nothing"
                    raise BadInput(f"{known_as}: has no array {min(missing)!r}, only {existing}")
                expanded = sum(members[name].file_size for name in names)
                check_memory(known_as, expanded)
                if expanded > max(SMALL, MOST_EXPANDED * size):
                    raise BadInput(
                        f"{known_as}: expands to {expanded / size:.0f} times its size, more than real data do"
                    )
                return {name: _array(archive, members[name]) for name in names}
    except BadInput as problem:
        if isinstance(cause := problem.__cause__, OSError):
            raise BadInput(f"{known_as}: cannot be read ({cause.strerror or cause})") from cause
        raise
    except MemoryError as cause:
        raise BadInput(f"{known_as}: does not fit into the free memory; give less") from cause
    except Exception as cause:  # a damaged archive may fail in any way
        raise BadInput(
            f"{known_as}: cannot be read (not an .npz file of plain arrays, or damaged): {str(cause)[:200]}"
        ) from cause


def _array(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> NDArray[Any]:
    if info.compress_type not in _METHODS:
        raise ValueError(f"{info.filename} is not compressed as by numpy.savez_compressed")
    with archive.open(info) as stream:
        if (version := npy.read_magic(stream)) not in _HEADERS:
            raise ValueError(f"{info.filename} is of the .npy version {version}")
        shape, _, dtype = _HEADERS[version](stream)
        if dtype.hasobject:
            raise ValueError(f"{info.filename} has Python objects, which are pickled")
        if stream.tell() + math.prod(shape) * dtype.itemsize != info.file_size:
            raise ValueError(
                f"{info.filename} has {info.file_size} bytes, but its header says {shape} {dtype}"
            )
    with archive.open(info) as stream:
        return np.asarray(npy.read_array(stream, allow_pickle=False))


def _list(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} and {names[-1]}"
