"""`python -m lpfamily.reproduce`: the paper's tables and figures, measured anew, as a page."""

from __future__ import annotations

from lpfamily import _interrupts

if __name__ == "__main__":
    _interrupts.take_over("python -m lpfamily.reproduce")  # first, as the imports take seconds

# isort: split

import hashlib
import json
import math
import os
import shlex
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from lpfamily.training import backends, commands, files
from lpfamily.training.choices import COUNT, PATH, TEXT, Names
from lpfamily.training.errors import BadInput, nearest
from lpfamily.training.progress import Progress

if TYPE_CHECKING:
    from lpfamily.experiments.pieces import Measurement, Piece, Setting
    from lpfamily.report.contents import Plot, Table

NAME = "python -m lpfamily.reproduce"
MEASURED = "measured"
FORMAT = 1
"""Of the kept measurements."""


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit code."""
    given = sys.argv[1:] if argv is None else argv
    return commands.run(NAME, lambda: _reproduce(_parser().parse(given), given))


def _parser() -> commands.Parser:
    commands.check_extra()
    from lpfamily.experiments.catalogue import CHAPTERS
    from lpfamily.experiments.pieces import Budget

    listed = "; ".join(
        f"{chapter.title}: {' '.join(piece.name for piece in chapter.pieces)}" for chapter in CHAPTERS
    )
    result = commands.Parser(
        prog=NAME,
        description="Measure the paper's tables and figures anew, and write them as one HTML page, with CSV, "
        "PNG and SVG files beside it. What is measured is kept in OUT: a second call does what is missing.",
        epilog=f"example: {NAME} table6 table8 figure5 --data-dir DATA",
    )
    result.add_argument("names", nargs="+", metavar="NAME", help=f"all, or of {listed}")
    add = result.group("what it is made with")
    add(
        "--budget",
        "quick: fewer epochs and images, and the page says so beside the numbers; paper: the published "
        "recipes, days on two cores",
        Names(get_args(Budget)),
        default="quick",
    )
    add("--seeds", "runs of each network, from seed 0", COUNT, default="3; quick convolutions 1")
    add("--backend", f"one of {', '.join(backends.names())}", TEXT, default="torch, else jax, else numpy")
    add("--device", "as in lpfamily.train", TEXT, default="cpu")
    add("--data-dir", "local data files", PATH, default="LPFAMILY_DATA, or a download into the user's cache")
    result.add_argument(
        "--runs",
        type=Path,
        nargs="+",
        metavar="PATH",
        help="run folders, or folders of them, to take finished runs of the same recipe from",
    )
    add("--jobs", "networks that are trained at once, one thread each", COUNT, default="one a core")
    add = result.group("the result")
    add("--out", "the folder of page, files, measurements and runs", PATH, default="reproduction")
    add("--quiet", "no progress")
    return result


def _reproduce(given: dict[str, Any], argv: list[str]) -> int:
    from lpfamily.experiments.catalogue import PIECES
    from lpfamily.experiments.networks import longest_path, runs_in
    from lpfamily.experiments.pieces import Setting

    names = list(PIECES) if "all" in given["names"] else given["names"]
    for name in names:
        if name not in PIECES:
            hint = nearest(name, PIECES, f"choose all, or of {', '.join(PIECES)}")
            raise BadInput(f"there is no {name!r}; {hint}")
    setting = Setting(
        out=given.get("out", Path("reproduction")),
        data_dir=given["data_dir"].resolve() if "data_dir" in given else None,
        backend=given.get("backend") or _backend(),
        device=given.get("device", "cpu"),
        budget=given.get("budget", "quick"),
        seeds=given.get("seeds"),
        jobs=given.get("jobs", commands.cores()),
        runs=runs_in(given.get("runs", ())),
    )
    backends.find(setting.backend).check_device(setting.device)
    commands.check_out(setting.out, longest_path(setting.out))
    progress = Progress(given.get("quiet", False))
    try:
        with _interrupts.interruptible():
            results = _measured(setting, names, progress)
    except KeyboardInterrupt:
        print(f"\nstopped; the same command goes on: {NAME} {shlex.join(argv)}", file=sys.stderr)
        raise
    page = _write(setting, results, argv, progress.warn)
    print(page, flush=True)
    return 0


def _backend() -> str:
    """Return the first of torch, jax and numpy that is there: numpy trains no convolutions."""
    for name in ("torch", "jax"):
        try:
            backends.find(name)
        except BadInput:
            continue
        return name
    return "numpy"


def _measured(setting: Setting, names: list[str], progress: Progress) -> dict[str, Any]:
    """Return what is kept and what was asked for, by measurement: measures what is missing."""
    from lpfamily.experiments.catalogue import PIECES
    from lpfamily.experiments.networks import check_trainable, checksum

    wanted = {m.name: m for name in names for m in PIECES[name].measurements}
    for name in dict.fromkeys(name for m in wanted.values() for name in m.data):
        checksum(name, setting.data_dir)  # what cannot be done is named before hours of training
    measurements = {m.name: m for name in PIECES for m in PIECES[name].measurements}
    kept = {name: _kept(setting, m, progress) for name, m in measurements.items()}
    results = {name: found for name, found in kept.items() if found is not None}
    missing = [m for name, m in wanted.items() if name not in results]
    for measurement in missing:
        for seed in range(measurement.seeds(setting) if measurement.seeds else 1):
            for name in measurement.networks:
                check_trainable(setting, name, seed)
    with progress.parts({m.name: m.cost for m in missing}) as part:
        for measurement in missing:
            begun = time.perf_counter()
            with part(measurement.name) as tick:
                result = measurement.measure(setting, tick)
            results[measurement.name] = {
                "setting": _depends(setting, measurement),
                "seconds": time.perf_counter() - begun,
                "result": result,
            }
            _keep(setting.out / MEASURED / f"{measurement.name}.json", results[measurement.name])
    return results


def _depends(setting: Setting, measurement: Measurement) -> dict[str, Any]:
    from lpfamily.experiments.networks import NETWORKS, checksum, flags

    found = {name: getattr(setting, name) for name in measurement.depends}
    if measurement.seeds is not None:
        found["seeds"] = measurement.seeds(setting)
    for name in measurement.networks:
        found[name] = shlex.join(flags(NETWORKS[name], setting.budget, 0))
    return found | {name: checksum(name, setting.data_dir) for name in measurement.data}


def _kept(setting: Setting, measurement: Measurement, progress: Progress) -> dict[str, Any] | None:
    """Return a measurement that is there, if it was made with the same setting.

    It has a checksum, since what is there is not measured again; those of the first format have none.
    """
    from lpfamily.experiments.networks import backends_of

    path = setting.out / MEASURED / f"{measurement.name}.json"
    if not os.path.lexists(path):
        return None
    try:
        found = files.read_json(path)
        kind, checksum = found.pop("format", None), found.pop("sha256", None)
        if isinstance(kind, int) and kind > FORMAT:
            raise BadInput(f"{path}: of format {kind}, and this version reads those up to {FORMAT}")
        if (kind, checksum) not in ((None, None), (FORMAT, _checksum(found))):
            raise ValueError("its checksum is another")
        made_with, seconds = found["setting"], found["seconds"]
        if not (type(seconds) in (int, float) and 0 <= seconds < math.inf):
            raise ValueError(f"it took {seconds!r} seconds")
        backends_of([found["result"]])
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as cause:
        reason = str(cause) if isinstance(cause, BadInput) else f"{path}: cannot be read ({cause!r})"
        raise BadInput(f"{reason}; or remove it, to measure anew") from cause
    try:
        if made_with != _depends(setting, measurement):
            return None
    except BadInput:  # it is of data that are not there, and was not asked for
        return None
    if checksum is None:
        progress.note(f"{path}: has no checksum, as it is of an earlier version; it is taken as it is")
    return found | {"path": path}


def _keep(path: Path, found: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"format": FORMAT, "sha256": _checksum(found)} | found
    files.replace(path, (json.dumps(content, allow_nan=False) + "\n").encode())


def _checksum(found: dict[str, Any]) -> str:
    read = json.loads(json.dumps(found, allow_nan=False))  # whose keys are strings, and sorted as such
    return hashlib.sha256(json.dumps(read, sort_keys=True).encode()).hexdigest()


def _reported(setting: Setting, piece: Piece, measured: list[dict[str, Any]]) -> list[Table | Plot]:
    """Return the items of a piece; raise `BadInput` if it fails on what was kept and not on what is new."""
    try:
        items: list[Table | Plot] = piece.report(setting, *(found["result"] for found in measured))
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as cause:
        if paths := [str(found["path"]) for found in measured if "path" in found]:
            raise BadInput(
                f"{' and '.join(paths)}: not what this version measures ({cause!r}); remove it, to measure "
                "anew"
            ) from cause
        raise
    return items


def _write(
    setting: Setting, results: dict[str, Any], argv: list[str], warn: Callable[[str], None] = warnings.warn
) -> Path:
    """Write the page of all pieces whose measurements are there, and return its path."""
    from lpfamily.experiments.catalogue import CHAPTERS, PIECES
    from lpfamily.experiments.networks import NETWORKS, backends_of, flags
    from lpfamily.report import page

    there = {name for name, piece in PIECES.items() if all(m.name in results for m in piece.measurements)}
    sections = []
    for chapter in CHAPTERS:
        items: list[Table | Plot] = []
        for piece in chapter.pieces:
            if piece.name in there and piece.within not in there:
                items += _reported(setting, piece, [results[m.name] for m in piece.measurements])
        if items:
            sections.append(page.Section(chapter.title, chapter.text, tuple(items)))
    facts = [("command", f"`{NAME} {shlex.join(argv)}`"), ("budget", setting.budget)]
    facts.append(("backend", f"{setting.backend} on {setting.device}"))
    facts.append(("seconds", ", ".join(f"{name} {found['seconds']:.0f}" for name, found in results.items())))
    facts.append(("versions", ", ".join(f"{name} {text}" for name, text in commands.versions().items())))
    for name, trained in backends_of(found["result"] for found in results.values()).items():
        first, *others = trained
        told = shlex.join(flags(NETWORKS[name], setting.budget, first))
        alike = f", and seeds {', '.join(map(str, others))}" if others else ""
        elsewhere = "".join(
            f"; seed {seed} was trained by {backend}"
            for seed, backend in trained.items()
            if backend not in ("", setting.backend)
        )
        facts.append((name, f"`python -m lpfamily.train {told}`{alike}{elsewhere}"))
    title = "A Unified Gradient Regularization Family for Adversarial Examples, measured anew"
    return page.write(setting.out, title, sections, facts, warn)


if __name__ == "__main__":
    commands.start(NAME, main)
