"""Records of measurements in OUT/measured/NAME.json, so that a second call measures only what is missing.

A file has a checksum, as a recorded result is never measured again. Files of the first format have none.
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

from lpfamily.experiments.definitions import Json, Measurement, Setting
from lpfamily.experiments.networks import checksum, flags, training_backends
from lpfamily.training import files
from lpfamily.training.errors import BadInput

FORMAT = 1


@dataclass(frozen=True)
class Record:
    """The result of a measurement, the setting that it was made with, and the seconds that it took."""

    setting: Mapping[str, object]
    seconds: float
    result: Json
    path: Path | None = field(default=None, compare=False)
    """Its file, if it was read from one."""


def path_of(setting: Setting, measurement: Measurement) -> Path:
    """Return the file of a measurement."""
    return setting.out / "measured" / f"{measurement.name}.json"


def depends(setting: Setting, measurement: Measurement) -> dict[str, object]:
    """Return everything that a result depends on; a record made with anything else is measured anew."""
    inputs: dict[str, object] = {name: getattr(setting, name) for name in measurement.depends}
    if measurement.seeds is not None:
        inputs["seeds"] = measurement.seeds(setting)
    for name in measurement.networks:
        inputs[name] = shlex.join(flags(name, setting.budget, 0))
    return inputs | {name: checksum(name, setting.data_dir) for name in measurement.data}


def read(setting: Setting, measurement: Measurement, note: Callable[[str], None]) -> Record | None:
    """Return the record of a measurement if it exists and has the same setting; `note` reports old files.

    Raises
    ------
    BadInput
        The file is damaged, or of a later version.
    """
    path = path_of(setting, measurement)
    if not os.path.lexists(path):
        return None
    try:
        content = files.read_json(path)
        kind, sha256 = content.pop("format", None), content.pop("sha256", None)
        if isinstance(kind, int) and kind > FORMAT:
            raise BadInput(f"{path}: has format {kind}; this version reads formats up to {FORMAT}")
        if (kind, sha256) not in ((None, None), (FORMAT, _checksum(content))):
            raise ValueError("its checksum does not match")
        record = Record(content["setting"], content["seconds"], content["result"], path)
        if not (type(record.seconds) in (int, float) and 0 <= record.seconds < math.inf):
            raise ValueError(f"it took {record.seconds!r} seconds")
        training_backends([record.result])
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as cause:
        reason = str(cause) if isinstance(cause, BadInput) else f"{path}: cannot be read ({cause!r})"
        raise BadInput(f"{reason}; or remove it, to measure anew") from cause
    try:
        if record.setting != depends(setting, measurement):
            return None
    except BadInput:  # its data are not there, and it was not asked for
        return None
    if sha256 is None:
        note(f"{path}: has no checksum, as an earlier version wrote it; it is used as it is")
    return record


def write(path: Path, record: Record) -> None:
    """Write a record; raise `ValueError` if a number in it is not finite."""
    body = {"setting": record.setting, "seconds": record.seconds, "result": record.result}
    content = {"format": FORMAT, "sha256": _checksum(body)} | body
    path.parent.mkdir(parents=True, exist_ok=True)
    files.replace(path, (json.dumps(content, allow_nan=False) + "\n").encode())


def _checksum(body: Mapping[str, object]) -> str:
    values = json.loads(
        json.dumps(body, allow_nan=False)
    )  # JSON makes all keys strings, which are then sorted
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
