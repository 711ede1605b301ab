"""The networks of the tables: their flags of `python -m lpfamily.train`, and the results of their runs.

Each network is a run of that command in its own process, several at a time, in OUT/runs/NAME-SEED. A finished
run is not repeated, a stopped run is resumed, and a finished run of the same recipe elsewhere is used
instead.
"""

from __future__ import annotations

import functools
import math
import os
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from lpfamily.experiments.definitions import Budget, Json, Setting
from lpfamily.measured import is_chance
from lpfamily.training import backends, data, files, load, runs
from lpfamily.training.backends import Trainer
from lpfamily.training.commands import options
from lpfamily.training.data import Split
from lpfamily.training.errors import BadInput, refusing
from lpfamily.training.evaluation import ENOUGH, NOISE, ONE_STEP
from lpfamily.training.files import REMEDY
from lpfamily.training.progress import Tick
from lpfamily.training.recipes import Recipe, network_of
from lpfamily.training.runs import configs

THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NPROC")
"""The environment variables that set the number of threads of a library; NPROC is JAX's."""


@dataclass(frozen=True)
class PaperNetwork:
    """A network and its objective, as in one row of the tables."""

    name: str
    kind: str
    """A key of `QUICK`; networks of one kind have the same quick budget."""
    plain: str
    """The name of the network trained in the same way, but with the plain objective."""
    label: str
    data: str
    flags: tuple[str, ...]
    """The flags of the command, without budget, seed, backend and folders."""


class Outcome(TypedDict):
    """The outcome of a run, from its `result.json` and `config.json`; errors are fractions."""

    clean: float
    noise: dict[str, dict[str, float]]
    """`mean` and `standard_error`, by standard deviation."""
    one_step: dict[str, float]
    """Errors by p."""
    seed: int
    backend: str
    epochs: int
    seconds_per_epoch: float
    parameters: str
    tested_on: str
    """A sentence for readers."""
    test_examples: int


_PLAIN, _L2, _LINF = "--objective plain", " + gradient p = 2", " + gradient p = inf"
_40K, _50K = "--second-stage none", "--second-stage scratch"
_ROWS = {
    ("softmax", "Softmax", "mnist", "softmax"): (("softmax", "softmax", "", _PLAIN),),
    ("sigmoid", "Sigmoid MLP", "mnist", "sigmoid-mlp"): (
        ("sigmoid-plain", "sigmoid-plain", "", _PLAIN),
        ("sigmoid-p2", "sigmoid-plain", _L2, "--p 2 --sigma 1"),
    ),
    ("relu", "ReLU + dropout + Gaussian noise", "mnist", "relu-mlp"): (
        ("relu-plain", "relu-plain", "", _PLAIN),
    ),
    ("maxout", "Maxout + dropout", "mnist", "maxout"): (
        ("maxout-plain", "maxout-plain", "", _PLAIN),
        ("maxout-pinf", "maxout-plain", _LINF, "--p inf --sigma 0.25 --clean-weight 0.5"),
        ("maxout-p2", "maxout-plain", _L2, "--p 2 --sigma 1"),
    ),
    ("conv", "Conv. maxout + dropout", "mnist", "conv-maxout"): (
        ("conv-plain", "conv-plain", "", _PLAIN),
        ("conv-pinf-0.1", "conv-plain", f"{_LINF}, sigma 0.1", "--p inf --sigma 0.1"),
        ("conv-pinf-0.25", "conv-plain", f"{_LINF}, sigma 0.25", "--p inf --sigma 0.25"),
        ("conv-p2", "conv-plain", _L2, "--p 2 --sigma 1"),
    ),
    ("cifar", "Conv. maxout small + dropout", "cifar10", "cifar-maxout-small"): (
        ("cifar-plain-40k", "cifar-plain-40k", " (40K)", f"{_PLAIN} {_40K}"),
        ("cifar-p2-40k", "cifar-plain-40k", f"{_L2} (40K)", f"--p 2 --sigma 2 {_40K}"),
        ("cifar-plain-50k", "cifar-plain-50k", " (50K)", f"{_PLAIN} {_50K}"),
        ("cifar-p2-50k", "cifar-plain-50k", f"{_L2} (50K)", f"--p 2 --sigma 2 {_50K}"),
    ),
}
"""By kind, label, data set and model, the rows: name, plain network, addition to the label, other flags."""

RADII = {
    "mnist": {1.0: 7.7, 1.5: 3.1, 2.0: 1.3, 4.0: 0.31, math.inf: 0.065},
    "cifar10": {1.0: 7.9, 1.5: 1.8, 2.0: 0.54, 4.0: 0.083, math.inf: 0.012},
}
"""The radii of table-p by data set and p; the balls of all p are equally strong.

Each radius is 1.5 times the median of the smallest perturbations that fool the plain network (seed 0), over
the correctly classified images among the first 500 test images, by "standard" of `lpfamily.robustness`.
"""
_STDS = {"mnist": 0.2, "cifar10": 0.1}
_DENSE = "--model relu-mlp --units 400,400 --dropout none --layer-noise none --recipe quick --epochs 15"


def _trainings(source: str) -> Iterator[tuple[str, str, str]]:
    """Yield the rows of table-p: name, label and flags."""
    yield "plain", "plain", _PLAIN
    yield "noise", f"Gaussian noise, std {_STDS[source]:g}", f"--objective noise --sigma {_STDS[source]:g}"
    balls = {p: f"--p {p:g} --sigma {sigma:g}" for p, sigma in RADII[source].items()}
    for p, ball in balls.items():
        yield f"p{p:g}", f"one step, p = {p:g}", ball
    yield "penalty", "penalty, p = 2", f"--objective penalty {balls[2.0]}"
    for p in 2.0, math.inf:
        yield f"steps-p{p:g}", f"5 Frank-Wolfe steps, p = {p:g}", f"{balls[p]} --steps 5"
        pgd = f"{balls[p]} --steps 5 --method projected --random-start"
        yield f"pgd-p{p:g}", f"PGD training, 5 steps, p = {p:g}", pgd
        trades = f"--objective trades {balls[p]} --steps 4 --method projected"
        yield f"trades-p{p:g}", f"TRADES, 4 steps, p = {p:g}", trades


NETWORKS = {
    name: PaperNetwork(
        name, kind, plain, label + added, source, ("--data", source, "--model", model, *given.split())
    )
    for (kind, label, source, model), rows in _ROWS.items()
    for name, plain, added, given in rows
} | {
    f"{source}-{name}": PaperNetwork(
        *(f"{source}-{name}", f"exponents-{source}", f"{source}-plain", label, source),
        ("--data", source, *_DENSE.split(), *given.split()),
    )
    for source in RADII
    for name, label, given in _trainings(source)
}

_SHORT_CONVOLUTIONS = (
    *("--examples", "2500", "--validation", "500", "--epochs", "3", "--patience", "3"),
    *("--test-examples", "500", "--batch-size", "20", "--init", "0.05"),
)
QUICK = {
    "softmax": ("--examples", "10000", "--validation", "0", "--epochs", "10"),
    "sigmoid": ("--examples", "10000", "--validation", "0", "--epochs", "15"),
    "relu": ("--examples", "10000", "--validation", "0", "--epochs", "15"),
    "maxout": ("--examples", "10000", "--validation", "0", "--epochs", "15", "--init", "0.05"),
    "conv": (*_SHORT_CONVOLUTIONS, "--second-stage", "none"),
    "cifar": (*_SHORT_CONVOLUTIONS, "--second-epochs", "3"),
    **{f"exponents-{source}": ("--examples", "6000", "--validation", "1000") for source in RADII},
}
"""The flags that the quick budget adds.

Some have larger first weights, as from the published ones nothing is learned in so few epochs.
"""


def of_kinds(*kinds: str) -> tuple[str, ...]:
    """Return the names of the networks of these kinds."""
    return tuple(name for name, network in NETWORKS.items() if network.kind in kinds)


def flags(name: str, budget: Budget, seed: int) -> tuple[str, ...]:
    """Return the flags of the command that trains a network, without backend and folders."""
    network = NETWORKS[name]
    short = QUICK[network.kind] if budget == "quick" else ()
    return *network.flags, *short, "--seed", str(seed)


@functools.cache
def recipe_of(setting: Setting, name: str, seed: int = 0) -> Recipe:
    """Return the recipe of a network."""
    given = options.parser().parse(list(flags(name, setting.budget, seed)))
    return options.recipe_of(given, data.load(given["data"], setting.data_dir))


def all_finished(setting: Setting, wanted: Iterable[tuple[str, int]], tick: Tick) -> list[Path]:
    """Return the folders of the finished runs of networks and seeds, in this order; train missing runs."""
    jobs = [_Job(setting, name, seed) for name, seed in wanted]
    stop = threading.Event()
    with ThreadPoolExecutor(setting.jobs) as pool:
        futures = [pool.submit(job.finish, stop) for job in jobs]
        try:
            while (state := wait(futures, 0.2, FIRST_EXCEPTION)).not_done:
                if any(future.exception() for future in state.done):
                    break
                running = ", ".join(job.name for job in jobs if 0 < job.share < 1)
                tick(sum(job.share for job in jobs), len(jobs), running)
        finally:
            stop.set()
    return [future.result() for future in futures]


def check_trainable(setting: Setting, name: str, seed: int) -> None:
    """Raise `BadInput` if the backend cannot train a network that is missing, or if its result is invalid."""
    job = _Job(setting, name, seed)
    folder = job.existing_folder()
    if folder is None:
        recipe = recipe_of(setting, name, seed)
        source = data.source(recipe.data)
        network = network_of(recipe, source.shape, source.classes)
        backend = backends.find_for(setting.backend, network)
        backends.check_options(setting.backend, backend, recipe)
    elif (folder / runs.RESULT).exists():
        result(setting, name, folder)


def result(setting: Setting, name: str, folder: Path) -> Outcome:
    """Return the outcome of a finished run of a network; raise `BadInput` if its result is invalid."""
    run = runs.find(folder, option="")
    config, content = configs.read(run), run.result or {}
    examples = content["test_examples"] if "test_examples" in content else count_test_examples(setting, name)
    remedy = f"{REMEDY}, or remove it and resume with python -m lpfamily.train --resume {run.folder}"
    with files.understanding(run.folder / runs.RESULT, "not the result of a run", remedy):
        errors, texts = content["test_error"], (content["parameters"], content["tested_on"])
        outcome: Outcome = {
            "clean": errors["clean"],
            "noise": errors["noise"],
            "one_step": errors["one_step"],
            "seed": config.recipe.seed,
            "backend": config.backend,
            "epochs": content["epochs"],
            "seconds_per_epoch": content["seconds_per_epoch"],
            "parameters": texts[0],
            "tested_on": texts[1],
            "test_examples": examples,
        }
        fractions = [outcome["clean"], *(outcome["one_step"][f"{p:g}"] for p in ONE_STEP)]
        for std in NOISE:
            fractions += [outcome["noise"][f"{std:g}"][key] for key in ("mean", "standard_error")]
        numbers = [*fractions, outcome["epochs"], outcome["seconds_per_epoch"]]
        if any(type(number) not in (int, float) or not 0 <= number < math.inf for number in numbers):
            raise ValueError(f"not all of {numbers} are finite numbers, 0 or more")
        if max(fractions) > 1 or type(outcome["epochs"]) is not int:
            raise ValueError(f"errors of {fractions} after {outcome['epochs']} epochs")
        if type(examples) is not int or examples < 1:
            raise ValueError(f"tested on {examples!r} examples")
        if not all(isinstance(text, str) for text in texts):
            raise ValueError(f"parameters {texts[0]!r}, tested on {texts[1]!r}")
        return outcome


def count_test_examples(setting: Setting, name: str) -> int:
    """Return the number of test examples of a network, which results of earlier versions lack."""
    recipe = recipe_of(setting, name)
    return recipe.test_examples or len(data.load(recipe.data, setting.data_dir).test.x)


def training_backends(results: Iterable[Json]) -> dict[str, dict[int, str]]:
    """Return the backends that trained the runs of measurements, by network and seed; "" if unknown."""
    backend_of: dict[str, dict[int, str]] = {}
    for measured in results:
        by_network = measured.get("runs", measured)
        for name in NETWORKS.keys() & by_network.keys():
            outcomes = by_network[name] if isinstance(by_network[name], list) else [by_network[name]]
            for outcome in outcomes:
                seeds = backend_of.setdefault(name, {})
                seeds[outcome["seed"]] = outcome.get("backend") or seeds.get(outcome["seed"], "")
    return {name: dict(sorted(backend_of[name].items())) for name in NETWORKS if name in backend_of}


@functools.cache
def checksum(name: str, data_dir: Path | None) -> str:
    """Return the checksum of a data set."""
    return data.load(name, data_dir).sha256()


def budget_note(names: Iterable[str]) -> str:
    """Return the note of a page that says how the quick budget shortens the training of networks."""
    kinds = dict.fromkeys(NETWORKS[name].kind for name in names)
    added = "; ".join(f"{kind} networks with `{' '.join(QUICK[kind])}`" for kind in kinds)
    return (
        "Quick budget. The paper's recipe trains for hundreds of epochs on all images; here training is "
        f"shorter: {added}."
    )


class _Job:
    """A run to be finished, and the share of it that is done."""

    def __init__(self, setting: Setting, network: str, seed: int) -> None:
        self.setting, self.network, self.seed = setting, network, seed
        self.name = f"{network}-{seed}"
        self.folder = setting.out / "runs" / self.name
        self.share = 0.0

    def existing_folder(self) -> Path | None:
        """Return the folder of a finished run elsewhere, else that of a run begun here, else None."""
        return self._elsewhere() or (self.folder if (self.folder / runs.CONFIG).exists() else None)

    def finish(self, stop: threading.Event) -> Path:
        """Train the run and return its folder; once `stop` is set, do not begin it, or leave it to resume."""
        folder = self.existing_folder() or self.folder
        self._check(folder)
        if not (folder / runs.RESULT).exists() and not stop.is_set():
            self._train(folder, stop)
        self.share = 1.0
        return folder

    def command(self, folder: Path) -> list[str]:
        """Return the arguments of the command, which the report shows too."""
        if (folder / runs.CONFIG).exists():
            return ["--resume", str(folder), "--quiet"]
        setting = self.setting
        where = ["--backend", setting.backend, "--device", setting.device]
        if setting.data_dir is not None:
            where += ["--data-dir", str(setting.data_dir)]
        return [*flags(self.network, setting.budget, self.seed), *where, "--quiet", "--out", str(folder)]

    def _train(self, folder: Path, stop: threading.Event) -> None:
        folder.parent.mkdir(parents=True, exist_ok=True)
        process = subprocess.Popen(
            [sys.executable, "-m", "lpfamily.train", *self.command(folder)],
            env=os.environ | dict.fromkeys(THREADS, "1"),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        with process:
            while process.poll() is None:
                if stop.wait(0.5):
                    process.terminate()
                self.share = max(self.share, 0.01, _share(folder))
            message = process.stderr.read().strip() if process.stderr else ""
        if process.returncode and not stop.is_set():
            reason = message.splitlines()[-1] if message else "the command gave no reason"
            raise OSError(f"{self.name} was not trained: {reason}")

    def _check(self, folder: Path) -> None:
        """Raise `BadInput` if the folder holds a run other than this one."""
        if not (folder / runs.CONFIG).exists():
            return
        config = configs.read(runs.find(folder, option=""))
        if config.data_sha256 != checksum(config.recipe.data, self.setting.data_dir):
            raise BadInput(f"{folder} was trained on other data; give its --data-dir, or another --out")
        if config.recipe != recipe_of(self.setting, self.network, self.seed):
            raise BadInput(f"{folder} was trained by another recipe or budget; give another --out")
        if config.init_from:
            raise BadInput(f"{folder} began with the weights of another run; give another --out")

    def _elsewhere(self) -> Path | None:
        """Return the folder of a finished run of the same recipe among `Setting.runs`, if there is one."""
        for folder in self.setting.runs:
            run = runs.find(folder, option="")
            config = configs.read(run)
            recipe = recipe_of(self.setting, self.network, self.seed)
            wanted = recipe, checksum(recipe.data, self.setting.data_dir), None
            if (config.recipe, config.data_sha256, config.init_from) == wanted and run.result is not None:
                return folder
        return None


def _share(folder: Path) -> float:
    """Return a lower bound of the share of a run that is done, as early stopping may end the run sooner."""
    try:
        run = runs.find(folder, option="")
        recipe, epochs = configs.read(run).recipe, len(run.metrics())
    except BadInput:  # not there yet, or the command will report what is wrong with it
        return 0.0
    second = recipe.second_epochs if recipe.second_stage != "none" else 0
    return min(0.99, epochs / (recipe.epochs + second))


def runs_in(folders: Iterable[Path]) -> tuple[Path, ...]:
    """Return the run folders among these folders and their subfolders."""
    runs_found: list[Path] = []
    for folder in folders:
        with refusing(f"--runs {folder}: cannot be read", "; give a folder of runs", OSError):
            candidates = (folder, *sorted(folder.iterdir()))
            runs_found += [each for each in candidates if (each / runs.CONFIG).exists()]
    return tuple(runs_found)


def longest_path(out: Path) -> Path:
    """Return a path as long as the longest one in the folder of a reproduction."""
    return out / "runs" / f"{max(NETWORKS, key=len)}-{10**9}" / f".{runs.CHECKPOINT}.new"


def open_networks(
    setting: Setting, names: Sequence[str], tick: Tick
) -> tuple[dict[str, Trainer], dict[str, Outcome], Split]:
    """Return trainers of finished networks with seed 0, the outcomes of their runs, and their test set."""
    folders = dict(zip(names, all_finished(setting, [(name, 0) for name in names], tick), strict=True))
    trainers = {
        name: load(folder).trainer(setting.backend, setting.device) for name, folder in folders.items()
    }
    outcomes = {name: result(setting, name, folder) for name, folder in folders.items()}
    return trainers, outcomes, data.load(NETWORKS[names[0]].data, setting.data_dir).test


def chance_notes(outcomes: Mapping[str, Sequence[Outcome]], examples: int) -> list[str]:
    """Return a note for each run whose error on so many examples is compatible with guessing."""
    return [
        f"{NETWORKS[name].label}, seed {run['seed']}, is at chance: its test error is {run['clean']:.2%}, so "
        "the numbers measured on it mean nothing."
        for name, seeds in outcomes.items()
        for run in seeds
        if examples >= ENOUGH and is_chance(run["clean"], examples, data.source(NETWORKS[name].data).classes)
    ]


def network_notes(setting: Setting, outcomes: Mapping[str, Outcome]) -> list[str]:
    """Return notes on networks: seed, epochs, test error, and what the quick budget shortens."""
    each = "; ".join(
        f"{NETWORKS[name].label}, {run['epochs']} epochs, test error {run['clean']:.2%}"
        for name, run in outcomes.items()
    )
    notes = [f"Networks (seed 0): {each}."]
    for name, run in outcomes.items():
        # results of earlier versions have no number of test examples
        notes += chance_notes({name: [run]}, run.get("test_examples", 0))
    if setting.budget == "quick":
        notes.append(budget_note(outcomes))
    return notes
