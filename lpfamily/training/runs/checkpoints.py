"""Named arrays and a JSON object in one file of the safetensors format.

Any safetensors library reads these files. The object is the text `lpfamily` in their metadata. This module
does not use the library of that name, which ends the process or prints a trace when memory is short, and
allocates the memory that a header announces before the header can be checked.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from io import BufferedReader
from pathlib import Path

import numpy as np

from lpfamily.training import files
from lpfamily.training.files import Json
from lpfamily.training.networks import State

Kinds = dict[str, tuple[str, tuple[int, ...]]]
"""The dtype and shape of each array, by name."""

_Entry = tuple[str, tuple[int, ...], int]
"""The dtype, the shape and the offset in bytes of an array."""

_DTYPES = {"F32": "float32", "F64": "float64"}
_NAMES = {name: code for code, name in _DTYPES.items()}
_LONGEST_HEADER = 1 << 24
_MOST_AXES = 8
_METADATA, _TEXT = "__metadata__", "lpfamily"


def write(path: Path, arrays: State, values: Json) -> None:
    """Replace a file by arrays of float32 or float64 and a JSON object."""
    header: Json = {_METADATA: {_TEXT: json.dumps(values, allow_nan=False)}}
    end = 0
    for name in sorted(arrays):
        begin, end = end, end + arrays[name].nbytes
        kind = _NAMES[str(arrays[name].dtype)]
        header[name] = {"dtype": kind, "shape": arrays[name].shape, "data_offsets": (begin, end)}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    files.replace(path, len(text).to_bytes(8, "little"), text, *content(arrays))


def content(arrays: State) -> Iterator[memoryview]:
    """Yield the bytes of arrays in the order of their names."""
    for name in sorted(arrays):
        yield np.ascontiguousarray(arrays[name]).reshape(-1).view(np.uint8).data


def read(path: Path, check: Callable[[Json, Kinds], None]) -> tuple[State, Json]:
    """Return the arrays and the JSON object of a file.

    `check(values, kinds)` is called before the arrays are read and raises for anything unexpected, so a wrong
    header cannot make this function allocate memory. Raises `ValueError` if the file does not have this
    format, and `BadInput` as `lpfamily.training.files.reading` does.
    """
    with files.reading(path) as (stream, size):
        values, entries, data = _header(stream, size)
        check(values, {name: (dtype, shape) for name, (dtype, shape, _) in entries.items()})
        arrays = {}
        for name, (dtype, shape, begin) in entries.items():
            array = np.empty(shape, dtype)
            stream.seek(data + begin)
            if stream.readinto(array.reshape(-1).view(np.uint8).data) != array.nbytes:
                raise ValueError("it ends too early")
            arrays[name] = array
    return arrays, values


def _header(stream: BufferedReader, size: int) -> tuple[Json, dict[str, _Entry], int]:
    """Return the JSON object, the arrays' entries by name, and the offset of their bytes."""
    length = int.from_bytes(stream.read(8), "little")
    data = 8 + length
    if size < data or length > _LONGEST_HEADER:
        raise ValueError("it has no complete header")
    header = files.parse_json(stream.read(length))
    values = files.parse_json(header.pop(_METADATA)[_TEXT])
    if not isinstance(values, dict):
        raise TypeError("its metadata is not a JSON object")
    entries: dict[str, _Entry] = {}
    ends = 0
    for name, entry in sorted(header.items(), key=lambda each: each[1]["data_offsets"]):
        dtype, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
        if dtype not in _DTYPES:
            raise ValueError(f"the array {name} is of type {dtype}, and must be of {' or '.join(_DTYPES)}")
        if len(shape) > _MOST_AXES or any(type(side) is not int or not 0 <= side <= size for side in shape):
            raise ValueError(f"the array {name} has a shape that is not valid")
        nbytes = math.prod(shape) * np.dtype(_DTYPES[dtype]).itemsize
        if begin != ends or end != begin + nbytes:
            raise ValueError(f"the array {name} is not where it must be")
        entries[name], ends = (_DTYPES[dtype], shape, begin), end
    if ends != size - data:
        raise ValueError("it ends too early or too late")
    return values, entries, data
