"""Measurements that are kept in OUT/measured/NAME.json, so that a second call does what is missing.

A file has a checksum, since what is there is not measured again; those of the first format have none.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from lpfamily.experiments.networks import checksum, flags, trained_by
from lpfamily.experiments.pieces import Json, Measurement, Setting
from lpfamily.training import files
from lpfamily.training.errors import BadInput

FORMAT = 1


@dataclass(frozen=True)
class Kept:
    """A result, what it was made with, and how many seconds it took."""

    setting: Mapping[str, object]
    seconds: float
    result: Json
    path: Path | None = field(default=None, compare=False)
    """Of its file, where it was measured before."""


def path_of(setting: Setting, measurement: Measurement) -> Path:
    """Return where a measurement is kept."""
    return setting.out / "measured" / f"{measurement.name}.json"


def depends(setting: Setting, measurement: Measurement) -> dict[str, object]:
    """Return what a measurement is made with: if that is another, it is measured anew."""
    found: dict[str, object] = {name: getattr(setting, name) for name in measurement.depends}
    if measurement.seeds is not None:
        found["seeds"] = measurement.seeds(setting)
    for name in measurement.networks:
        found[name] = shlex.join(flags(name, setting.budget, 0))
    return found | {name: checksum(name, setting.data_dir) for name in measurement.data}


def read(setting: Setting, measurement: Measurement, note: Callable[[str], None]) -> Kept | None:
    """Return a measurement that is there, if it was made with the same setting; `note` is told of old files.

    Raises
    ------
    BadInput
        The file is damaged, or of a later version.
    """
    path = path_of(setting, measurement)
    if not os.path.lexists(path):
        return None
    try:
        found = files.read_json(path)
        kind, sha256 = found.pop("format", None), found.pop("sha256", None)
        if isinstance(kind, int) and kind > FORMAT:
            raise BadInput(f"{path}: of format {kind}, and this version reads those up to {FORMAT}")
        if (kind, sha256) not in ((None, None), (FORMAT, _checksum(found))):
            raise ValueError("its checksum is another")
        kept = Kept(found["setting"], found["seconds"], found["result"], path)
        if not (type(kept.seconds) in (int, float) and 0 <= kept.seconds < math.inf):
            raise ValueError(f"it took {kept.seconds!r} seconds")
        trained_by([kept.result])
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as cause:
        reason = str(cause) if isinstance(cause, BadInput) else f"{path}: cannot be read ({cause!r})"
        raise BadInput(f"{reason}; or remove it, to measure anew") from cause
    try:
        if kept.setting != depends(setting, measurement):
            return None
    except BadInput:  # it is of data that are not there, and was not asked for
        return None
    if sha256 is None:
        note(f"{path}: has no checksum, as it is of an earlier version; it is taken as it is")
    return kept


def write(path: Path, kept: Kept) -> None:
    """Write a measurement; raise `ValueError` if a number in it is not finite."""
    found = {"setting": kept.setting, "seconds": kept.seconds, "result": kept.result}
    content = {"format": FORMAT, "sha256": _checksum(found)} | found
    path.parent.mkdir(parents=True, exist_ok=True)
    files.replace(path, (json.dumps(content, allow_nan=False) + "\n").encode())


def _checksum(found: Mapping[str, object]) -> str:
    read = json.loads(json.dumps(found, allow_nan=False))  # whose keys are strings, and sorted as such
    return hashlib.sha256(json.dumps(read, sort_keys=True).encode()).hexdigest()
