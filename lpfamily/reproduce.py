"""`python -m lpfamily.reproduce`: measure the paper's tables and figures anew and write them as a page."""

from __future__ import annotations

from lpfamily import _interrupts

if __name__ == "__main__":
    _interrupts.take_over("python -m lpfamily.reproduce")  # first, as the imports take seconds

# isort: split

import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

from lpfamily.experiments import catalogue, networks, records
from lpfamily.experiments.definitions import VERDICTS, Budget, Experiment, Setting, Verdict
from lpfamily.experiments.records import Record
from lpfamily.report import page
from lpfamily.report.contents import Item
from lpfamily.training import backends, commands
from lpfamily.training.choices import COUNT, PATH, TEXT, Names
from lpfamily.training.errors import BadInput, nearest
from lpfamily.training.progress import Progress

NAME = "python -m lpfamily.reproduce"
BUDGETS: dict[Budget, str] = {
    "quick": "short training on some of the images, so errors are larger than with the published recipes",
    "paper": "the published recipes",
}
"""The meaning of each budget, for readers of the page."""


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit code."""
    given = sys.argv[1:] if argv is None else argv
    return commands.run(NAME, lambda: _reproduce(_parser().parse(given), given))


def _parser() -> commands.Parser:
    commands.check_extra()
    listed = "; ".join(
        f"{each.title}: {' '.join(experiment.name for experiment in each.experiments)}"
        for each in catalogue.CHAPTERS
    )
    result = commands.Parser(
        prog=NAME,
        description="Measure the paper's tables and figures anew, and write them as one HTML page with CSV, "
        "PNG and SVG files. OUT keeps all measurements, so a second call measures only what is missing.",
        epilog=f"example: {NAME} table6 table8 figure5 --data-dir DATA",
    )
    result.add_argument("names", nargs="+", metavar="NAME", help=f"all, or any of these. {listed}")
    add = result.group("how it is measured")
    add(
        "--budget",
        "quick trains on fewer images for fewer epochs, and the page says so next to the numbers; paper "
        "takes the published recipes, which need days on two cores",
        Names(get_args(Budget)),
        default="quick",
    )
    add(
        "--seeds",
        "runs of each network, from seed 0",
        COUNT,
        default="3; with --budget quick 1 for convolutions and table-p",
    )
    add("--backend", f"one of {', '.join(backends.names())}", TEXT, default="torch, else jax, else numpy")
    add("--device", "as in lpfamily.train", TEXT, default="cpu")
    add("--data-dir", "local data files", PATH, default="LPFAMILY_DATA, or a download into the user's cache")
    result.add_argument(
        "--runs",
        type=Path,
        nargs="+",
        metavar="PATH",
        help="run folders, or folders of run folders; finished runs of the same recipe are used, not trained "
        "anew",
    )
    add("--jobs", "networks trained at the same time, each in one thread", COUNT, default="one per core")
    add = result.group("the result")
    add("--out", "the folder of the page, its files, measurements and runs", PATH, default="reproduction")
    add("--quiet", "show no progress")
    return result


def _reproduce(given: dict[str, Any], argv: list[str]) -> int:
    experiments = catalogue.EXPERIMENTS
    names = list(experiments) if "all" in given["names"] else given["names"]
    for name in names:
        if name not in experiments:
            hint = nearest(name, experiments, f"choose all, or any of {', '.join(experiments)}")
            raise BadInput(f"there is no table or figure {name!r}; {hint}")
    setting = Setting(
        out=given.get("out", Path("reproduction")),
        data_dir=given["data_dir"].resolve() if "data_dir" in given else None,
        backend=given.get("backend") or _backend(),
        device=given.get("device", "cpu"),
        budget=given.get("budget", "quick"),
        seeds=given.get("seeds"),
        jobs=given.get("jobs", commands.cores()),
        runs=networks.runs_in(given.get("runs", ())),
    )
    backends.find(setting.backend).check_device(setting.device)
    commands.check_out(setting.out, networks.longest_path(setting.out))
    progress = Progress(given.get("quiet", False))
    try:
        with _interrupts.interruptible():
            results = _measured(setting, names, progress)
    except KeyboardInterrupt:
        print(f"\nstopped; the same command resumes: {NAME} {shlex.join(argv)}", file=sys.stderr)
        raise
    print(_write(setting, results, argv, progress.warn), flush=True)
    return 0


def _backend() -> str:
    """Return the first installed of torch, jax and numpy; numpy comes last, as it trains no convolutions."""
    for name in ("torch", "jax"):
        try:
            backends.find(name)
        except BadInput:
            continue
        return name
    return "numpy"


def _measured(setting: Setting, names: list[str], progress: Progress) -> dict[str, Record]:
    """Return the records by the name of their measurement.

    These are all stored records, and those that the experiments `names` need, measured now if missing.
    """
    experiments = catalogue.EXPERIMENTS
    wanted = {m.name: m for name in names for m in experiments[name].measurements}
    for name in dict.fromkeys(name for m in wanted.values() for name in m.data):
        networks.checksum(name, setting.data_dir)  # fails here, before hours of training, if data are missing
    measurements = {m.name: m for experiment in experiments.values() for m in experiment.measurements}
    stored = {name: records.read(setting, m, progress.note) for name, m in measurements.items()}
    results = {name: record for name, record in stored.items() if record is not None}
    missing = [m for name, m in wanted.items() if name not in results]
    for measurement in missing:
        for seed in range(measurement.seeds(setting) if measurement.seeds else 1):
            for name in measurement.networks:
                networks.check_trainable(setting, name, seed)
    with progress.parts({m.name: m.cost for m in missing}) as part:
        for measurement in missing:
            start = time.perf_counter()
            with part(measurement.name) as tick:
                result = measurement.measure(setting, tick)
            record = Record(records.depends(setting, measurement), time.perf_counter() - start, result)
            records.write(records.path_of(setting, measurement), record)
            results[measurement.name] = record
    return results


def _against_the_paper(verdicts: Mapping[str, Verdict]) -> Iterator[tuple[str, str]]:
    """Yield the facts of the summary: which errors are ahead of the paper's, level with them or behind."""
    for verdict in VERDICTS:
        if names := [name for name, each in verdicts.items() if each == verdict]:
            yield f"{verdict} the paper", f"{len(names)} of {len(verdicts)}: {'; '.join(names)}"


def _reported(setting: Setting, experiment: Experiment, measured: list[Record]) -> tuple[list[Item], str]:
    """Return the tables and figures of an experiment, and its finding, "" if it has none.

    Raise `BadInput` if the report fails on records read from files.
    """
    results = [record.result for record in measured]
    try:
        items = [_with_command(setting, experiment, item) for item in experiment.report(setting, *results)]
        return items, experiment.finding(setting, *results) if experiment.finding else ""
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as cause:
        if paths := [str(record.path) for record in measured if record.path]:
            raise BadInput(
                f"{' and '.join(paths)}: not what this version measures ({cause!r}); remove it, to measure "
                "anew"
            ) from cause
        raise


def _with_command(setting: Setting, experiment: Experiment, item: Item) -> Item:
    """Return a table or figure with a note that names the command behind its numbers."""
    seeds = f" --seeds {setting.seeds}" if setting.seeds else ""
    note = (
        f"Measured by `{NAME} {experiment.name} --budget {setting.budget}{seeds} --backend "
        f"{setting.backend}`."
    )
    if any(m.networks for m in experiment.measurements):
        note += " The end of the page has the `lpfamily.train` command of each network."
    return replace(item, notes=(*item.notes, note))


def _write(
    setting: Setting, results: Mapping[str, Record], argv: list[str], warn: Callable[[str], None]
) -> Path:
    """Write the page of all experiments that have their records, and return its path."""
    complete = {
        name
        for name, experiment in catalogue.EXPERIMENTS.items()
        if all(m.name in results for m in experiment.measurements)
    }
    sections, findings, data_sets = [], dict[str, tuple[str, str]](), dict[str, None]()
    verdicts: dict[str, Verdict] = {}
    for chapter in catalogue.CHAPTERS:
        items: list[Item] = []
        for experiment in chapter.experiments:
            if experiment.name in complete and experiment.within not in complete:
                measured = [results[m.name] for m in experiment.measurements]
                new, finding = _reported(setting, experiment, measured)
                items += new
                if experiment.verdicts and setting.budget == "paper":
                    verdicts |= experiment.verdicts(setting, *(record.result for record in measured))
                if finding:
                    findings[experiment.name] = finding, new[0].name
                data_sets |= dict.fromkeys(name for m in experiment.measurements for name in m.data)
        if items:
            sections.append(page.Section(chapter.title, (chapter.text,), tuple(items)))
    facts = [
        ("command", f"`{NAME} {shlex.join(argv)}`"),
        ("budget", setting.budget),
        ("backend", f"{setting.backend} on {setting.device}"),
        ("seconds", ", ".join(f"{name} {record.seconds:.0f}" for name, record in results.items())),
        ("versions", ", ".join(f"{name} {text}" for name, text in commands.versions().items())),
    ]
    for name, trained in networks.training_backends(record.result for record in results.values()).items():
        first, *others = trained
        flags = shlex.join(networks.flags(name, setting.budget, first))
        seeds = f", and seeds {', '.join(map(str, others))}" if others else ""
        elsewhere = "".join(
            f"; seed {seed} was trained by {backend}"
            for seed, backend in trained.items()
            if backend not in ("", setting.backend)
        )
        label = f"{networks.NETWORKS[name].label} ({name})"
        facts.append((label, f"`python -m lpfamily.train {flags}`{seeds}{elsewhere}"))
    title = "A Unified Gradient Regularization Family for Adversarial Examples, measured anew"
    summary = page.Summary(
        (
            ("date", time.strftime("%Y-%m-%d")),
            ("data", ", ".join(data_sets) or "none"),
            ("budget", f"{setting.budget}: {BUDGETS[setting.budget]}"),
            *_against_the_paper(verdicts),
        ),
        tuple(findings[name] for name in catalogue.FINDINGS if name in findings)[:3],
    )
    return page.write(setting.out, title, sections, facts, warn, summary)


if __name__ == "__main__":
    commands.start(NAME, main)
