"""The run folder: config, metrics, checkpoint and result.

A checkpoint is one safetensors file, replaced atomically, so that the folder has a whole one at any instant.
Nothing is unpickled. `metrics.jsonl` is written before the checkpoint: after a crash it may be ahead, never
behind, and resuming cuts it back.

Config, result and checkpoint contain the version of their format, `format`, and a checksum of everything else
in them, `sha256`. The checksums of result and checkpoint (with its arrays) also cover the settings of the
config that decide the training, so a file of another run is detected. A checkpoint also contains a checksum
of the metrics up to it, and a result that of its checkpoint.
"""

from __future__ import annotations

import errno
import functools
import hashlib
import itertools
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lpfamily import __version__
from lpfamily.training import files
from lpfamily.training.errors import BadInput, refusing
from lpfamily.training.files import REMEDY, Json
from lpfamily.training.files import replace as replace
from lpfamily.training.networks import Network, State
from lpfamily.training.progress import Progress
from lpfamily.training.recipes import Recipe
from lpfamily.training.runs import checkpoints
from lpfamily.training.runs.checkpoints import Kinds
from lpfamily.training.runs.positions import Position, expected_arrays

FORMAT = 1
"""The version of the file format that this lpfamily writes; it refuses files of a higher version."""

CONFIG, METRICS, RESULT = "config.json", "metrics.jsonl", "result.json"
CHECKPOINT, CURVES = "checkpoint.safetensors", "curves.png"
HEALTHY = "healthy.safetensors"
"""The last checkpoint before catastrophic overfitting, if there was any."""

_CIRCUMSTANCES = ("data_dir", "grid", "init_from", "raised", "versions")
"""The entries of a config on which training does not depend.

`data_sha256` and `init_sha256` identify the data and the initial weights.
"""

RAISED = ("epochs", "second_epochs", "monitor")
"""The fields of a recipe that change when a run is given more epochs."""

_SEAL = ("format", "sha256")

_RESTART = f"{REMEDY}, or start a new run"

# the errors of a path at which there can be no run, the last because a name is too long
_NOT_THERE = (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG)


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A checkpoint whose checksum has been verified."""

    arrays: State
    values: Json
    """The position of the arrays in the run, as JSON."""
    sha256: str

    @property
    def position(self) -> Position:
        """The position of the arrays in the run; `Run.load` has checked that it is possible."""
        return Position(**self.values)


Snapshot = tuple[list[Json], dict[str, Checkpoint]]
"""The progress of a run: its lines of metrics, and its checkpoints by the names of their files."""


@dataclass(frozen=True)
class Run:
    """A run folder that is known to contain a config."""

    folder: Path

    @property
    def config(self) -> Json:
        """The config that the run was started with."""
        return self.read(CONFIG)

    @property
    def is_sealed(self) -> bool:
        """Whether the config has a checksum; the first versions wrote none."""
        return _is_sealed(files.read_json(self.folder / CONFIG))

    @property
    def decisive(self) -> Json:
        """The entries of the config that decide the training, as whichever version wrote them."""
        return {name: value for name, value in self.config.items() if name not in _CIRCUMSTANCES}

    def _all_decisive(self) -> list[Json]:
        """Return `decisive`, then its values before each raise of the number of epochs, latest first."""
        decisive, raised = self.decisive, self.config.get("raised", ())
        fixed = {name: value for name, value in decisive.get("recipe", {}).items() if name not in RAISED}
        return [decisive, *(decisive | {"recipe": fixed | before} for before in reversed(raised))]

    @property
    def result(self) -> Json | None:
        """The result, or None while the run is not finished."""
        return self.read(RESULT, self.decisive) if self.has(RESULT) else None

    @property
    def has_begun(self) -> bool:
        """Whether there is a checkpoint, or has been one."""
        return self.has(CHECKPOINT) or bool(self.metrics())

    def has(self, name: str) -> bool:
        """Return whether there is a file of this name."""
        return (self.folder / name).exists()

    def metrics(self, epochs: int | None = None) -> list[Json]:
        """Return the first lines of `metrics.jsonl`; an incomplete last line is ignored."""
        path = self.folder / METRICS
        if not self.has(METRICS):
            return []
        with files.understanding(path, "not one JSON object per epoch"):
            complete = files.read(path).rpartition(b"\n")[0]
            lines = [files.parse_json(line) for line in complete.splitlines()[:epochs]]
            if [line["epoch"] for line in lines] != list(range(1, len(lines) + 1)):
                raise ValueError("its epochs do not count up from 1")
            for line in lines:
                if odd := [name for name, value in line.items() if type(value) not in (int, float)]:
                    raise ValueError(f"{odd[0]} is {line[odd[0]]!r}, no number, in epoch {line['epoch']}")
        return lines

    def read_metrics(self, epochs: int, sha256: str | None, needed: Iterable[str] = ()) -> list[Json]:
        """Return the metrics of the first epochs, checked against the checksum in a checkpoint.

        `sha256` is that of `metrics_digest`, or None if the checkpoint has none. Each line must have the
        needed entries.
        """
        lines, path = self.metrics(epochs), self.folder / METRICS
        if len(lines) < epochs:
            raise BadInput(f"{path}: ends before the checkpoint, epoch {epochs}; {REMEDY}")
        for name in needed:
            if any(name not in line for line in lines):
                raise BadInput(f"{path}: has epochs without {name}; {REMEDY}")
        if sha256 is not None and metrics_digest(lines).hexdigest() != sha256:
            raise BadInput(
                f"{path}: is damaged, or of another run: {CHECKPOINT} has another checksum; {REMEDY}"
            )
        return lines

    def cut_metrics(self, epochs: int, sha256: str | None = None, needed: Iterable[str] = ()) -> list[Json]:
        """Remove later epochs from `metrics.jsonl`; return the others, as `read_metrics` does."""
        lines = self.read_metrics(epochs, sha256, needed)
        self._write_metrics(lines)
        return lines

    def log(self, metrics: Json) -> None:
        """Append a line to `metrics.jsonl`."""
        with self.writing(METRICS) as path:
            files.append(path, _line(metrics))

    def save(self, arrays: State, position: Json, decisive: Json, name: str = CHECKPOINT) -> str:
        """Replace the checkpoint by named arrays and their position in the run; return its checksum.

        `position` contains `epoch`, and `decisive` is that of the run.
        """
        values = sealed(position, decisive, arrays)
        with self.writing(name) as path:
            checkpoints.write(path, arrays, values)
        sha256: str = values["sha256"]
        return sha256

    def keep_healthy(self) -> None:
        """Save a copy of the current checkpoint as `HEALTHY`."""
        checkpoint = self._checkpoint(CHECKPOINT)
        self.save(checkpoint.arrays, checkpoint.values, self.decisive, HEALTHY)

    def raise_limits(self, limits: Json) -> None:
        """Give the run more epochs by fields of its recipe; the config records their earlier values.

        The result is removed first, so that the run looks as if it had been stopped before its test.
        `seal_anew` must follow, now or after a kill.
        """
        config = self.config
        before = {name: config["recipe"][name] for name in RAISED if name in config["recipe"]}
        config["recipe"] |= limits
        (self.folder / RESULT).unlink(missing_ok=True)
        self.write(CONFIG, config | {"raised": [*config.get("raised", ()), before]})

    def seal_anew(self) -> None:
        """Save the checkpoints with new checksums after `raise_limits`, as if the run had begun like this."""
        for name in (HEALTHY, CHECKPOINT):
            if self.has(name):
                checkpoint = self._checkpoint(name)
                self.save(checkpoint.arrays, checkpoint.values, self.decisive, name)

    def forget_healthy(self) -> None:
        """Remove the copy that `keep_healthy` has saved, if there is one."""
        (self.folder / HEALTHY).unlink(missing_ok=True)

    def load(self, recipe: Recipe, network: Network, name: str = CHECKPOINT) -> Checkpoint:
        """Return the checkpoint; raise `BadInput` if it does not fit the recipe and its network.

        The checkpoint of a finished run must be the one that its result names.
        """
        path = self.folder / name

        def check(values: Json, kinds: Kinds) -> None:
            shapes = expected_arrays(values, recipe, network)
            expected = {array: (recipe.dtype, shape) for array, shape in shapes.items()}
            if kinds == expected:
                return
            if odd := kinds.keys() ^ expected.keys():
                problem = f"it {'has' if min(odd) in kinds else 'lacks'} the array {min(odd)}"
            else:
                array = next(array for array, kind in kinds.items() if kind != expected[array])
                (dtype, shape), (right_dtype, right_shape) = kinds[array], expected[array]
                problem = f"{array} is {dtype} {shape} and should be {right_dtype} {right_shape}"
            raise BadInput(f"{path}: a checkpoint of another network, {problem}; {_RESTART}")

        checkpoint = self._checkpoint(name, check)
        for array, values in checkpoint.arrays.items():
            if not np.isfinite(values).all():
                raise BadInput(f"{path}: {array} has values that are not finite; {_RESTART}")
        result = self.result if name == CHECKPOINT else None
        if result is not None and result.get("checkpoint", checkpoint.sha256) != checkpoint.sha256:
            raise BadInput(
                f"{path}: is of another epoch or run than {RESULT}, which has another checksum; {REMEDY}"
            )
        return checkpoint

    def snapshot(self, recipe: Recipe, network: Network) -> Snapshot:
        """Return the progress of this run, checked, so that another run can continue from it."""
        names = [name for name in (HEALTHY, CHECKPOINT) if name == CHECKPOINT or self.has(name)]
        loaded = {name: self.load(recipe, network, name) for name in names}
        position = loaded[CHECKPOINT].position
        return self.read_metrics(position.epoch, position.metrics), loaded

    def restore(self, snapshot: Snapshot) -> None:
        """Continue from the progress of another run; the checkpoint, which makes it final, comes last."""
        decisive, (lines, loaded) = self.decisive, snapshot
        self._write_metrics(lines)
        for name, checkpoint in loaded.items():
            self.save(checkpoint.arrays, checkpoint.values, decisive, name)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Lock the run, so that no other process trains it; raise `BadInput` if one does.

        The lock is on the folder, as files in it are replaced. The system releases it when the process ends,
        in whatever way. Windows and some network file systems cannot lock a folder: there nothing is locked.
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
            except OSError:  # the file system cannot lock a folder
                pass
            yield
        finally:
            os.close(descriptor)

    def is_locked(self) -> bool:
        """Return whether a process trains the run; False where folders cannot be locked."""
        try:
            with self.locked():
                return False
        except BadInput:
            return True

    def finish(self, result: Json) -> None:
        """Write the result, which marks the run as finished."""
        self.write(RESULT, result, self.decisive)

    def read(self, name: str, of: Json | None = None) -> Json:
        """Return a JSON file of the run; `of` must be what `write` was given."""
        path = self.folder / name
        values = files.read_json(path)
        self._check_seal(path, values, [of])
        return _unsealed(values)

    def write(self, name: str, values: Json, of: Json | None = None) -> None:
        """Replace a JSON file of the run; its checksum also covers `of`."""
        with self.writing(name) as path:
            replace(path, _json(sealed(values, of)))

    @contextmanager
    def writing(self, name: str) -> Iterator[Path]:
        """Yield the path of a file; an `OSError` then names the file, what is kept, and how to go on."""
        path = self.folder / name
        try:
            yield path
        except OSError as cause:
            raise OSError(
                f"{path}: cannot be written ({cause.strerror or cause}); {self.checkpoint_in_words}; "
                f"make room, or remove that cause, then go on with --resume {self.folder}"
            ) from cause

    @property
    def checkpoint_in_words(self) -> str:
        """The state of the checkpoint, for an error message; raises `BadInput` if it is damaged."""
        if not self.has(CHECKPOINT):
            return "there is no checkpoint yet"
        try:
            epoch = self._checkpoint(CHECKPOINT).values.get("epoch")
        except BadInput as problem:
            if isinstance(problem.__cause__, OSError):  # e.g. too many open files; the checkpoint may be fine
                return "the checkpoint is as it was"
            raise
        return f"the checkpoint after epoch {epoch} is intact"

    def _write_metrics(self, lines: list[Json]) -> None:
        with self.writing(METRICS) as path:
            replace(path, b"".join(map(_line, lines)))

    def _checkpoint(
        self, name: str, check: Callable[[Json, Kinds], None] = lambda values, kinds: None
    ) -> Checkpoint:
        """Return a checkpoint after checking its checksum; `check` is called before the arrays are read."""
        path, all_decisive = self.folder / name, self._all_decisive()

        def check_all(values: Json, kinds: Kinds) -> None:
            _check_format(path, values)
            check(_unsealed(values), kinds)

        with files.understanding(path, "not a checkpoint of this run", _RESTART):
            arrays, values = checkpoints.read(path, check_all)
        sha256 = self._check_seal(path, values, all_decisive, arrays)
        return Checkpoint(arrays, _unsealed(values), sha256)

    def _check_seal(
        self, path: Path, values: Json, of: Sequence[Json | None], arrays: State | None = None
    ) -> str:
        """Return the checksum of a file of the run that covers the first of `of`.

        Raise `BadInput` unless the file has that checksum, or the one that covers another of `of`.
        """
        _check_format(path, values)
        content = {name: value for name, value in values.items() if name != "sha256"}
        sums = (_sha256({"format": FORMAT} | content, each, arrays) for each in of)
        expected, given = next(sums), values.get("sha256")
        if _is_sealed(values):
            if given != expected and all(given != other for other in sums):
                other = "" if path.name == CONFIG else f", or of another run than the {CONFIG} beside it"
                raise BadInput(
                    f"{path}: is damaged{other}: its checksum is not that of its content; {REMEDY}"
                )
        elif path.name == CONFIG:
            _warn_unsealed(path)
        elif self.is_sealed:
            raise BadInput(
                f"{path}: lacks a checksum, which the {CONFIG} beside it has, so it is damaged or of "
                f"another run; {REMEDY}"
            )
        return expected


def create(folder: Path, config: Json) -> Run:
    """Make a run folder with its config; a folder that is not empty is refused."""
    with refusing(f"--out {folder}: cannot be written", "; choose another", OSError):
        folder.mkdir(parents=True, exist_ok=True)
        if set(folder.iterdir()) - {files.beside(folder / CONFIG)}:
            raise BadInput(
                f"--out {folder}: not empty; choose another folder, or go on with --resume {folder}"
            )
        replace(folder / CONFIG, _json(sealed(config)))
    return Run(folder)


def find(folder: Path, option: str = "--resume ") -> Run:
    """Return the run in a folder that an option names."""
    try:
        (folder / CONFIG).stat()
    except (OSError, ValueError) as cause:
        if isinstance(cause, OSError) and cause.errno not in _NOT_THERE:
            raise BadInput(
                f"{option}{folder}: cannot be read ({cause.strerror}); remove that cause and try again"
            ) from cause
        raise BadInput(
            f"{option}{folder}: holds no {CONFIG}, so it is not a run; give the folder of one"
        ) from cause
    return Run(folder)


def metrics_digest(lines: Iterable[Json]) -> hashlib._Hash:
    """Return a hash of lines of metrics; `add_metrics` adds more lines."""
    digest = hashlib.sha256()
    for line in lines:
        add_metrics(digest, line)
    return digest


def add_metrics(digest: hashlib._Hash, line: Json) -> None:
    """Add a line of metrics to a hash, without the time, so that equal trajectories have equal checksums."""
    digest.update(_line({name: value for name, value in line.items() if name != "seconds"}))


def sealed(values: Json, of: Json | None = None, arrays: State | None = None) -> Json:
    """Return JSON values with their format version and a checksum, which also covers `of` and the arrays."""
    values = values | {"format": FORMAT}
    return values | {"sha256": _sha256(values, of, arrays)}


def _unsealed(values: Json) -> Json:
    return {name: value for name, value in values.items() if name not in _SEAL}


def _is_sealed(values: Json) -> bool:
    return not values.keys().isdisjoint(_SEAL)


def _check_format(path: Path, values: Json) -> None:
    number = values.get("format", FORMAT)
    if type(number) is int and number > FORMAT:
        raise BadInput(
            f"{path}: is of format {number}, and lpfamily {__version__} reads up to {FORMAT}; go on with the "
            f"version that wrote it, or, if it is damaged, {REMEDY}"
        )


@functools.cache  # once per process
def _warn_unsealed(path: Path) -> None:
    Progress().warn(
        f"{path}: an earlier version began this run and wrote no checksums; "
        "damage to its files may go unnoticed"
    )


def _sha256(values: Json, of: Json | None, arrays: State | None) -> str:
    arrays = arrays or {}
    kinds = {name: (str(array.dtype), array.shape) for name, array in arrays.items()}
    text = json.dumps((values, of, kinds), sort_keys=True).encode()
    return files.sha256(itertools.chain([text], checkpoints.content(arrays))).hexdigest()


def _json(values: Json) -> bytes:
    return (json.dumps(values, indent=2, allow_nan=False) + "\n").encode()


def _line(metrics: Json) -> bytes:
    return (json.dumps(metrics, allow_nan=False) + "\n").encode()
