"""The run folder: config, metrics, checkpoint and result.

A checkpoint is one safetensors file, replaced atomically: at any instant the folder holds a whole
one. Nothing is unpickled. `metrics.jsonl` is written first, so that after a crash it may be ahead of
the checkpoint, never behind; resuming cuts it back.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from lpfamily.training.errors import BadInput
from lpfamily.training.networks import State

Json = dict[str, Any]
Shapes = dict[str, tuple[int, ...]]
Position = TypeVar("Position")

CONFIG, METRICS, CHECKPOINT, RESULT = (
    "config.json",
    "metrics.jsonl",
    "checkpoint.safetensors",
    "result.json",
)
CURVES = "curves.png"
HEALTHY = "healthy.safetensors"
"""The last checkpoint before one step ceased to measure robustness, if it did."""

# What a file holds that is no JSON, no JSON of ours, or a line of brackets without end.
_DAMAGES = (AttributeError, KeyError, TypeError, ValueError, RecursionError)


@dataclass(frozen=True)
class Run:
    """A run folder that is known to hold a config."""

    folder: Path

    @property
    def config(self) -> Json:
        """What the run was started with."""
        return self.read(CONFIG)

    @property
    def result(self) -> Json | None:
        """The result, or None while the run is not finished."""
        return self.read(RESULT) if (self.folder / RESULT).exists() else None

    @property
    def has_begun(self) -> bool:
        """Whether there is a checkpoint, or was one."""
        return (self.folder / CHECKPOINT).exists() or bool(self.metrics())

    def metrics(self) -> list[Json]:
        """Return the lines of `metrics.jsonl`; an unfinished last line is left out."""
        path = self.folder / METRICS
        if not path.exists():
            return []
        try:
            whole = path.read_bytes().rpartition(b"\n")[0]
            lines = [json.loads(line) for line in whole.splitlines()]
            if [line["epoch"] for line in lines] != list(range(1, len(lines) + 1)):
                raise ValueError("its epochs do not count up from 1")
            for line in lines:
                if odd := [name for name, value in line.items() if not isinstance(value, int | float)]:
                    raise ValueError(f"{odd[0]} is {line[odd[0]]!r}, no number, in epoch {line['epoch']}")
        except (OSError, *_DAMAGES) as cause:
            raise BadInput(
                f"{path}: not one JSON object an epoch ({cause!r}); restore it from a copy"
            ) from cause
        return lines

    def cut_metrics(self, epochs: int, needed: Iterable[str] = ()) -> list[Json]:
        """Drop what `metrics.jsonl` says of epochs after the first `epochs`; return the rest.

        Each line of it must have what is needed.
        """
        kept, path = self.metrics()[:epochs], self.folder / METRICS
        if len(kept) < epochs:
            raise BadInput(f"{path}: ends before the checkpoint, epoch {epochs}; restore it from a copy")
        for name in needed:
            if any(name not in line for line in kept):
                raise BadInput(f"{path}: has epochs without {name}; restore it from a copy")
        with self.writing(METRICS) as path:
            replace(path, "".join(_line(line) for line in kept).encode())
        return kept

    def log(self, metrics: Json) -> None:
        """Append a line to `metrics.jsonl`."""
        with self.writing(METRICS) as path, path.open("a") as file:
            file.write(_line(metrics))
            file.flush()
            os.fsync(file.fileno())

    def save(self, arrays: State, position: Json) -> None:
        """Replace the checkpoint by named arrays and where in the run they belong, its `epoch` among it."""
        from safetensors.numpy import save

        with self.writing(CHECKPOINT) as path:
            replace(path, save(arrays, {"lpfamily": json.dumps(position)}))

    def keep_healthy(self) -> None:
        """Keep the checkpoint, as it is, beside those to come."""
        with self.writing(HEALTHY) as path:
            replace(path, (self.folder / CHECKPOINT).read_bytes())

    def load(self, read: Callable[[Json], tuple[Position, Shapes]], dtype: str) -> tuple[State, Position]:
        """Return the arrays of the checkpoint, and the position that `read` makes of the rest of it.

        `read` also says which arrays there must be, and raises if no run can be there.
        """
        path = self.folder / CHECKPOINT
        remedy = "restore the file from a copy, or start a new run"
        state, metadata = _read_tensors(path, remedy)
        try:
            position, shapes = read(json.loads(metadata["lpfamily"]))
        except _DAMAGES as cause:
            raise BadInput(f"{path}: not a checkpoint of this run ({cause!r}); {remedy}") from cause
        if state.keys() != shapes.keys():
            odd = min(state.keys() ^ shapes.keys())
            where = "has" if odd in state else "lacks"
            raise BadInput(f"{path}: a checkpoint of another network, it {where} the array {odd}; {remedy}")
        for name, array in state.items():
            if array.shape != shapes[name] or array.dtype != dtype:
                raise BadInput(
                    f"{path}: a checkpoint of another network, {name} is {array.dtype} {array.shape} "
                    f"and should be {dtype} {shapes[name]}; {remedy}"
                )
            if not np.isfinite(array).all():
                raise BadInput(f"{path}: {name} holds values that are not finite; {remedy}")
        return state, position

    def take_over(self, other: Run) -> None:
        """Begin where another run is: with what it has and then, as what decides, its checkpoint."""
        for name in (METRICS, HEALTHY, CHECKPOINT):
            if name != HEALTHY or (other.folder / HEALTHY).exists():
                with self.writing(name) as path:
                    replace(path, (other.folder / name).read_bytes())

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep other processes from training the run too; raise `BadInput` if one does.

        The lock is on the folder, as files in it are replaced. The system lets it go where the process
        ends, however it does. Windows, and some network file systems, lock no folder: there nothing is
        held.
        """
        if sys.platform == "win32":
            yield
            return
        import fcntl

        descriptor = os.open(self.folder, os.O_RDONLY)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as cause:
                raise BadInput(
                    f"{self.folder}: another process trains this run; wait for its end, or end it"
                ) from cause
            except OSError:  # such a file system
                pass
            yield
        finally:
            os.close(descriptor)

    def finish(self, result: Json) -> None:
        """Write the result, which makes the run a finished one."""
        self.write(RESULT, result)

    def read(self, name: str) -> Json:
        """Return a JSON file of the run."""
        return _read_json(self.folder / name)

    def write(self, name: str, values: Json) -> None:
        """Replace a JSON file of the run."""
        with self.writing(name) as path:
            replace(path, _json(values))

    @contextmanager
    def writing(self, name: str) -> Iterator[Path]:
        """Give a file's path; a failure to write it then says which file, what is kept, and how to go on."""
        path = self.folder / name
        try:
            yield path
        except OSError as cause:
            raise OSError(
                f"{path}: cannot be written ({cause.strerror or cause}); {self.kept}; "
                f"make room, or remove that cause, then go on with --resume {self.folder}"
            ) from cause

    @property
    def kept(self) -> str:
        """What an error leaves intact, in words."""
        path, remedy = self.folder / CHECKPOINT, "start a new run"
        if not path.exists():
            return "there is no checkpoint yet"
        _, metadata = _read_tensors(path, remedy)
        try:
            epoch = json.loads(metadata["lpfamily"])["epoch"]
        except _DAMAGES as cause:
            raise BadInput(f"{path}: not a checkpoint ({cause!r}); {remedy}") from cause
        return f"the checkpoint after epoch {epoch} is intact"


def create(folder: Path, config: Json) -> Run:
    """Make a run folder that holds its config; a folder with anything in it is left alone."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if set(folder.iterdir()) - {_beside(folder / CONFIG)}:
            raise BadInput(
                f"--out {folder}: not empty; choose another folder, or go on with --resume {folder}"
            )
        replace(folder / CONFIG, _json(config))
    except OSError as cause:
        raise BadInput(f"--out {folder}: cannot be written ({cause.strerror}); choose another") from cause
    return Run(folder)


def find(folder: Path, option: str = "--resume ") -> Run:
    """Return the run in a folder, which an option has named."""
    try:
        there = (folder / CONFIG).is_file()
    except OSError:  # such as a name that is too long
        there = False
    if not there:
        raise BadInput(f"{option}{folder}: holds no {CONFIG}, so it is not a run; give the folder of one")
    return Run(folder)


def _read_tensors(path: Path, remedy: str) -> tuple[State, dict[str, str]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118 (no mapping)
    except (OSError, SafetensorError, TypeError, AttributeError) as cause:  # the latter: not NumPy's dtypes
        raise BadInput(f"{path}: cannot be read as a checkpoint ({cause}); {remedy}") from cause


def _read_json(path: Path) -> Json:
    try:
        values = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as cause:
        raise BadInput(f"{path}: cannot be read as JSON ({cause}); restore it from a copy") from cause
    if not isinstance(values, dict):
        raise BadInput(f"{path}: must hold a JSON object; restore it from a copy")
    return values


def _json(values: Json) -> bytes:
    return (json.dumps(values, indent=2) + "\n").encode()


def _line(metrics: Json) -> str:
    return json.dumps(metrics) + "\n"


def replace(path: Path, content: bytes) -> None:
    """Write a file so that at every instant the old or the new content is there, whole."""
    new = _beside(path)
    try:
        with new.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
    except BaseException:
        new.unlink(missing_ok=True)
        raise


def _beside(path: Path) -> Path:
    """Return where a file is written before it takes its place; a kill may leave it there."""
    return path.with_name(f".{path.name}.new")
