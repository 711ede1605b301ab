"""The run folder: config, metrics, checkpoint and result.

A checkpoint is one safetensors file, replaced atomically: at any instant the folder holds a whole
one. Nothing is unpickled. `metrics.jsonl` is written first, so that after a crash it may be ahead of
the checkpoint, never behind; resuming cuts it back.

Config, result and checkpoint carry the version of their format, `format`, and a checksum of all else in
them, `sha256`. The checksums of a checkpoint, arrays included, and of a result cover what the config decides
too, so that a file of another run does not fit. A checkpoint also knows a checksum of the metrics before it,
and a result that of its checkpoint.
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
"""The version of the files that this lpfamily writes; it refuses those of a higher one."""

CONFIG, METRICS, RESULT = "config.json", "metrics.jsonl", "result.json"
CHECKPOINT, CURVES = "checkpoint.safetensors", "curves.png"
HEALTHY = "healthy.safetensors"
"""The last checkpoint before one step ceased to measure robustness, if it did."""

_CIRCUMSTANCES = ("data_dir", "grid", "init_from", "raised", "versions")
"""What a config says without that training depends on it.

`data_sha256` and `init_sha256` say which data and first weights there were.
"""

RAISED = ("epochs", "second_epochs", "monitor")
"""The numbers of a recipe that change where a run is given more epochs."""

_SEAL = ("format", "sha256")

_RESTART = f"{REMEDY}, or start a new run"

# Of a name that is too long too: no run can be there.
_NOT_THERE = (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG)


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A checkpoint whose checksum is right."""

    arrays: State
    values: Json
    """Where in the run they belong."""
    sha256: str

    @property
    def position(self) -> Position:
        """Where in the run they belong; `Run.load` has looked whether a run can be there."""
        return Position(**self.values)


Beginning = tuple[list[Json], dict[str, Checkpoint]]
"""What another run may begin with: lines of metrics, and checkpoints by the names of their files."""


@dataclass(frozen=True)
class Run:
    """A run folder that is known to hold a config."""

    folder: Path

    @property
    def config(self) -> Json:
        """What the run was started with."""
        return self.read(CONFIG)

    @property
    def is_sealed(self) -> bool:
        """Whether the config carries a checksum; the first versions wrote none."""
        return _is_sealed(files.read_json(self.folder / CONFIG))

    @property
    def decisive(self) -> Json:
        """What of the config decides how training goes, as it was written: of any version."""
        return {name: value for name, value in self.config.items() if name not in _CIRCUMSTANCES}

    def _decided(self) -> list[Json]:
        """Return what decides, and what did before the run was given more epochs, which came last first."""
        decisive, raised = self.decisive, self.config.get("raised", ())
        kept = {name: value for name, value in decisive.get("recipe", {}).items() if name not in RAISED}
        return [decisive, *(decisive | {"recipe": kept | before} for before in reversed(raised))]

    @property
    def result(self) -> Json | None:
        """The result, or None while the run is not finished."""
        return self.read(RESULT, self.decisive) if self.has(RESULT) else None

    @property
    def has_begun(self) -> bool:
        """Whether there is a checkpoint, or was one."""
        return self.has(CHECKPOINT) or bool(self.metrics())

    def has(self, name: str) -> bool:
        """Return whether there is a file of this name."""
        return (self.folder / name).exists()

    def metrics(self, epochs: int | None = None) -> list[Json]:
        """Return the first lines of `metrics.jsonl`; an unfinished last line is left out."""
        path = self.folder / METRICS
        if not self.has(METRICS):
            return []
        with files.understanding(path, "not one JSON object an epoch"):
            whole = files.read(path).rpartition(b"\n")[0]
            lines = [files.parse_json(line) for line in whole.splitlines()[:epochs]]
            if [line["epoch"] for line in lines] != list(range(1, len(lines) + 1)):
                raise ValueError("its epochs do not count up from 1")
            for line in lines:
                if odd := [name for name, value in line.items() if type(value) not in (int, float)]:
                    raise ValueError(f"{odd[0]} is {line[odd[0]]!r}, no number, in epoch {line['epoch']}")
        return lines

    def read_metrics(self, epochs: int, sha256: str | None, needed: Iterable[str] = ()) -> list[Json]:
        """Return what `metrics.jsonl` says of the first epochs, which must be what a checkpoint knows.

        `sha256` is that of `metrics_digest`, or None if the checkpoint knows none. Each line must have what
        is needed.
        """
        lines, path = self.metrics(epochs), self.folder / METRICS
        if len(lines) < epochs:
            raise BadInput(f"{path}: ends before the checkpoint, epoch {epochs}; {REMEDY}")
        for name in needed:
            if any(name not in line for line in lines):
                raise BadInput(f"{path}: has epochs without {name}; {REMEDY}")
        if sha256 is not None and metrics_digest(lines).hexdigest() != sha256:
            raise BadInput(
                f"{path}: is damaged, or of another run: {CHECKPOINT} knows another checksum; {REMEDY}"
            )
        return lines

    def cut_metrics(self, epochs: int, sha256: str | None = None, needed: Iterable[str] = ()) -> list[Json]:
        """Drop what `metrics.jsonl` says of later epochs; return the rest, as `read_metrics` does."""
        kept = self.read_metrics(epochs, sha256, needed)
        self._write_metrics(kept)
        return kept

    def log(self, metrics: Json) -> None:
        """Append a line to `metrics.jsonl`."""
        with self.writing(METRICS) as path:
            files.append(path, _line(metrics))

    def save(self, arrays: State, position: Json, decisive: Json, name: str = CHECKPOINT) -> str:
        """Replace the checkpoint by named arrays and where in the run they belong, its `epoch` among it.

        `decisive` is that of the run. Returns the checksum.
        """
        values = sealed(position, decisive, arrays)
        with self.writing(name) as path:
            checkpoints.write(path, arrays, values)
        sha256: str = values["sha256"]
        return sha256

    def keep_healthy(self) -> None:
        """Keep the checkpoint, as it is, beside those to come."""
        found = self._checkpoint(CHECKPOINT)
        self.save(found.arrays, found.values, self.decisive, HEALTHY)

    def raise_limits(self, limits: Json) -> None:
        """Give the run more epochs, by numbers of its recipe, and let the config say what it had before.

        The result goes first: without it the run is one that was stopped before it was tested. `seal_anew` is
        to follow, now or after a kill.
        """
        config = self.config
        before = {name: config["recipe"][name] for name in RAISED if name in config["recipe"]}
        config["recipe"] |= limits
        (self.folder / RESULT).unlink(missing_ok=True)
        self.write(CONFIG, config | {"raised": [*config.get("raised", ()), before]})

    def seal_anew(self) -> None:
        """Make checkpoints of before the run was given more epochs those of one that began with as many."""
        for name in (HEALTHY, CHECKPOINT):
            if self.has(name):
                found = self._checkpoint(name)
                self.save(found.arrays, found.values, self.decisive, name)

    def forget_healthy(self) -> None:
        """Remove what `keep_healthy` has kept, if anything."""
        (self.folder / HEALTHY).unlink(missing_ok=True)

    def load(self, recipe: Recipe, network: Network, name: str = CHECKPOINT) -> Checkpoint:
        """Return the checkpoint; raise `BadInput` unless a run of the recipe and its network can be there.

        Of a finished run it must be the checkpoint that the result belongs to.
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
                (found, shape), (dtype, due) = kinds[array], expected[array]
                problem = f"{array} is {found} {shape} and should be {dtype} {due}"
            raise BadInput(f"{path}: a checkpoint of another network, {problem}; {_RESTART}")

        checkpoint = self._checkpoint(name, check)
        for array, values in checkpoint.arrays.items():
            if not np.isfinite(values).all():
                raise BadInput(f"{path}: {array} holds values that are not finite; {_RESTART}")
        result = self.result if name == CHECKPOINT else None
        if result is not None and result.get("checkpoint", checkpoint.sha256) != checkpoint.sha256:
            raise BadInput(
                f"{path}: is of another epoch or run than {RESULT}, which knows another checksum; {REMEDY}"
            )
        return checkpoint

    def beginning(self, recipe: Recipe, network: Network) -> Beginning:
        """Return what another run needs to begin where this one is; all of it has been checked."""
        there = [name for name in (HEALTHY, CHECKPOINT) if name == CHECKPOINT or self.has(name)]
        found = {name: self.load(recipe, network, name) for name in there}
        position = found[CHECKPOINT].position
        return self.read_metrics(position.epoch, position.metrics), found

    def take_over(self, beginning: Beginning) -> None:
        """Begin where another run is: with what it has and then, as what decides, its checkpoint."""
        decisive, (lines, found) = self.decisive, beginning
        self._write_metrics(lines)
        for name, checkpoint in found.items():
            self.save(checkpoint.arrays, checkpoint.values, decisive, name)

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

    def is_held(self) -> bool:
        """Return whether a process trains the run; False where nothing is held."""
        try:
            with self.held():
                return False
        except BadInput:
            return True

    def finish(self, result: Json) -> None:
        """Write the result, which makes the run a finished one."""
        self.write(RESULT, result, self.decisive)

    def read(self, name: str, of: Json | None = None) -> Json:
        """Return a JSON file of the run, which was written with the same `of`."""
        path = self.folder / name
        values = files.read_json(path)
        self._check_seal(path, values, [of])
        return _unsealed(values)

    def write(self, name: str, values: Json, of: Json | None = None) -> None:
        """Replace a JSON file of the run; `of` is what its checksum is of too."""
        with self.writing(name) as path:
            replace(path, _json(sealed(values, of)))

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
        if not self.has(CHECKPOINT):
            return "there is no checkpoint yet"
        try:
            epoch = self._checkpoint(CHECKPOINT).values.get("epoch")
        except BadInput as problem:
            if isinstance(problem.__cause__, OSError):  # such as too many open files: that says nothing of it
                return "the checkpoint is as it was"
            raise
        return f"the checkpoint after epoch {epoch} is intact"

    def _write_metrics(self, lines: list[Json]) -> None:
        with self.writing(METRICS) as path:
            replace(path, b"".join(map(_line, lines)))

    def _checkpoint(
        self, name: str, check: Callable[[Json, Kinds], None] = lambda values, kinds: None
    ) -> Checkpoint:
        """Return a checkpoint whose checksum is right; `check` sees what it is before arrays are read."""
        path, decided = self.folder / name, self._decided()

        def check_all(values: Json, kinds: Kinds) -> None:
            _check_format(path, values)
            check(_unsealed(values), kinds)

        with files.understanding(path, "not a checkpoint of this run", _RESTART):
            arrays, values = checkpoints.read(path, check_all)
        sha256 = self._check_seal(path, values, decided, arrays)
        return Checkpoint(arrays, _unsealed(values), sha256)

    def _check_seal(
        self, path: Path, values: Json, of: Sequence[Json | None], arrays: State | None = None
    ) -> str:
        """Return the checksum of a file of the run, which the first of `of` goes into.

        Raise `BadInput` unless the file has that checksum, or one with another of them.
        """
        _check_format(path, values)
        content = {name: value for name, value in values.items() if name != "sha256"}
        sums = (_sha256({"format": FORMAT} | content, each, arrays) for each in of)
        expected, found = next(sums), values.get("sha256")
        if _is_sealed(values):
            if found != expected and all(found != other for other in sums):
                other = "" if path.name == CONFIG else f", or of another run than the {CONFIG} beside it"
                raise BadInput(
                    f"{path}: is damaged{other}: its checksum is not that of what it holds; {REMEDY}"
                )
        elif path.name == CONFIG:
            _say_unsealed(path)
        elif self.is_sealed:
            raise BadInput(
                f"{path}: lacks a checksum, which the {CONFIG} beside it has, so it is damaged or of "
                f"another run; {REMEDY}"
            )
        return expected


def create(folder: Path, config: Json) -> Run:
    """Make a run folder that holds its config; a folder with anything in it is left alone."""
    with refusing(f"--out {folder}: cannot be written", "; choose another", OSError):
        folder.mkdir(parents=True, exist_ok=True)
        if set(folder.iterdir()) - {files.beside(folder / CONFIG)}:
            raise BadInput(
                f"--out {folder}: not empty; choose another folder, or go on with --resume {folder}"
            )
        replace(folder / CONFIG, _json(sealed(config)))
    return Run(folder)


def find(folder: Path, option: str = "--resume ") -> Run:
    """Return the run in a folder, which an option has named."""
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
    """Return a hash of lines of metrics, which more lines can be added to by `add_metrics`."""
    digest = hashlib.sha256()
    for line in lines:
        add_metrics(digest, line)
    return digest


def add_metrics(digest: hashlib._Hash, line: Json) -> None:
    """Add a line of metrics to a hash: all but the time, as two runs of one trajectory have one checksum."""
    digest.update(_line({name: value for name, value in line.items() if name != "seconds"}))


def sealed(values: Json, of: Json | None = None, arrays: State | None = None) -> Json:
    """Return JSON values with the version of their format and a checksum, of `of` and of arrays too."""
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


@functools.cache  # once in a process
def _say_unsealed(path: Path) -> None:
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
