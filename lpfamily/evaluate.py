"""`python -m lpfamily.evaluate`: measure how robust the networks of runs, or any model, are in Lp balls."""

from __future__ import annotations

from lpfamily import _interrupts

if __name__ == "__main__":
    _interrupts.take_over("python -m lpfamily.evaluate")  # first, as the imports take seconds

# isort: split

import functools
import json
import math
import os
import shlex
import sys
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from lpfamily.training import backends, commands, data, recipes, runs
from lpfamily.training.choices import (
    COUNT,
    COUNT_OR_ZERO,
    EXPONENT,
    NOT_NEGATIVE,
    PATH,
    RADIUS,
    TEXT,
    Names,
    Numbers,
    Ratio,
)
from lpfamily.training.commands import Given
from lpfamily.training.errors import BadInput
from lpfamily.training.evaluation import ONE_STEP
from lpfamily.training.files import Json
from lpfamily.training.progress import Progress, Tick
from lpfamily.training.protocol import grid
from lpfamily.training.recipes import Recipe
from lpfamily.training.runs import configs
from lpfamily.training.runs.trained import Trained

NAME = "python -m lpfamily.evaluate"
EXAMPLES = 1000
STEPS = 20
FOR_RUNS, FOR_MODELS = ("multiples", "steps", "data_dir", "backend"), ("data", "bounds", "effort")
"""Options for runs alone, and options that need --model."""
BOUND = Ratio("a number", lambda v: not math.isnan(v))
RESULT, PAGE = "robustness.json", "robustness"
"""The default names of the file of numbers and of the folder of a page."""

Radii = Mapping[float, tuple[float, ...]]
"""The radii of the balls, by p."""


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return commands.run(NAME, lambda: _evaluate(sys.argv[1:] if argv is None else argv))


def _parser() -> commands.Parser:
    from lpfamily.ensemble import EFFORTS
    from lpfamily.training import robustness

    result = commands.Parser(
        prog=NAME,
        description="Measure how robust networks of runs, or any model, are in Lp balls: the error against "
        "sigma after one step and after many, the smallest sigma that changes predictions, and warnings "
        "about weaknesses that an attack of one step hides.",
        epilog=f"examples: {NAME} runs/mine --p 2 --multiples 0.5,1,2; {NAME} runs/mine runs/other --p inf "
        f"--sigma 2/255,8/255; {NAME} --model mine:load --data test.npz --p inf --sigma 8/255 --bounds 0,1",
    )
    result.add_argument(
        "run", type=Path, metavar="RUN", nargs="*", default=[], help="run folders, finished or not"
    )
    add = result.group("the measurement")
    add("--p", "exponents of the balls, from 1 to inf", Numbers(EXPONENT), default="1,2,inf")
    add("--sigma", "radii of the balls, in units of x: numbers or fractions", Numbers(RADIUS))
    add(
        "--multiples",
        "instead of --sigma: radii as multiples of the one that matches the strength of the run's "
        "training; 0 is always included",
        Numbers(NOT_NEGATIVE),
        default=",".join(f"{multiple:g}" for multiple in robustness.MULTIPLES),
        old="--sigmas",
    )
    add("--steps", "steps of the ascent in each ball, one gradient each", COUNT, default=STEPS)
    add("--examples", "test on the first N test examples only; 0: on all", COUNT_OR_ZERO, default=EXAMPLES)
    add(
        "--seed",
        "seed of the attacks and the noise",
        COUNT_OR_ZERO,
        default="that of the run; 0 with --model",
    )
    add("--data-dir", "local data files, as in lpfamily.train", PATH, default="that of the run")
    add = result.group("any model, instead of runs")
    add(
        "--model",
        "package.module:function; it returns a torch module, a JAX function or a NumPy function",
        TEXT,
    )
    add("--data", "an .npz file with inputs x (floating-point) and classes y (integers)", PATH)
    add("--bounds", "low,high: the range in which attacks keep x, numbers or fractions", Numbers(BOUND))
    add(
        "--effort",
        "effort of the attacks, as lpfamily.robustness has it",
        Names(tuple(EFFORTS)),
        default="standard",
    )
    add = result.group("where and how")
    add("--backend", f"one of {', '.join(backends.names())}", TEXT, default="that of the run")
    add("--device", "as in lpfamily.train", TEXT, default="that of the run; cpu with --backend")
    add(
        "--out",
        "for one run, the JSON file, with the curves next to it as PNG; for several runs or a model, the "
        "folder of a page",
        PATH,
        default=f"RUN/robustness.json; ./{PAGE}",
    )
    add("--force", "replace an earlier result")
    add("--quiet", "show no progress, only the table at the end")
    return result


def _evaluate(argv: list[str]) -> int:
    given = _parser().parse(argv)
    commands.check_extra()
    without = FOR_RUNS if "model" in given else FOR_MODELS
    if useless := [name for name in without if name in given]:
        kind = "for runs" if "model" in given else "with --model"
        raise BadInput(f"--{useless[0].replace('_', '-')} has an effect only {kind}; leave it out")
    if "model" in given:
        return _evaluate_model(given)
    if not given["run"]:
        raise BadInput("give a run folder, or --model with --data")
    return _evaluate_runs(given, argv)


def _evaluate_model(given: Given) -> int:
    from lpfamily.training import classifiers

    if given["run"]:
        raise BadInput(f"{given['run'][0]}: give runs or --model, not both")
    if missing := [name for name in ("data", "sigma") if name not in given]:
        raise BadInput(f"--model needs --{missing[0]}")
    if len(bounds := given.get("bounds") or (-math.inf, math.inf)) != 2 or not bounds[0] < bounds[1]:
        raise BadInput(f"--bounds: must be low,high with low below high; got {','.join(map(str, bounds))}")
    x, y = classifiers.examples(given["data"])
    _check_examples(given, len(x), str(given["data"]))
    first, quiet = slice(given.get("examples", EXAMPLES) or None), "quiet" in given
    options: Given = {name: given[name] for name in ("bounds", "effort", "seed") if name in given}
    options |= {"p": _ps(given), "sigma": _sigmas(given), "progress": not quiet}
    out = _folder(given)
    with _interrupts.interruptible():
        result = classifiers.measured(given["model"], x[first], y[first], given.get("device"), **options)
    print(result.table(), flush=True)
    result.save(out, Progress(quiet).warn)
    return 0


@dataclass(frozen=True)
class _Opened:
    """A run opened for measurement."""

    trained: Trained
    trainer: backends.Trainer
    dataset: data.Dataset
    data_sha256: str
    recipe: Recipe
    backend: str
    device: str

    @classmethod
    def of(cls, folder: Path, given: Given) -> _Opened:
        """Open the run in a folder with the backend, device and data of the options."""
        from lpfamily.training import load

        config, trained = configs.read(runs.find(folder, option="")), load(folder)
        dataset = configs.dataset(config, given.get("data_dir"), f"{folder}: the run used")
        dataset = dataset.first(config.recipe.examples, config.recipe.test_examples)
        backend: str = given.get("backend") or config.backend
        device: str = given.get("device") or ("cpu" if "backend" in given else config.machine.device)
        trainer = trained.trainer(backend, device)
        recipe, inputs = trained.recipe, trained.network.inputs
        if not recipe.sigma:  # multiples need a radius above 0
            published = recipes.default(recipe.model, recipe.data, recipe.objective, recipe.p, inputs)
            recipe = replace(recipe, sigma=published.sigma)
        return cls(trained, trainer, dataset, config.data_sha256, recipe, backend, device)

    @property
    def sigma_units(self) -> tuple[Any, ...]:
        """Everything that decides the units of sigma; runs can be compared only if it is equal."""
        return self.recipe.inputs, self.data_sha256, self.dataset.scaling

    def measured(self, radii: Radii, given: Given, argv: list[str], tick: Tick) -> Json:
        """Return the result of `lpfamily.training.robustness.measure`, with provenance and findings."""
        from lpfamily.training import robustness

        test = self.dataset.test.rows(slice(given.get("examples", EXAMPLES) or None))
        seed, steps = given.get("seed", self.recipe.seed), given.get("steps", STEPS)
        result = robustness.measure(self.trainer, test.x, test.labels, self.recipe, radii, steps, seed, tick)
        provenance = {
            "command": f"{NAME} {shlex.join(argv)}",
            "versions": commands.versions(),
            "backend": self.backend,
            "device": self.device,
            "run_seed": self.recipe.seed,
            "epoch": self.trained.epoch,
            "data": self.recipe.data,
            "data_sha256": self.data_sha256,
            "scale": self.recipe.scale,
        }
        return provenance | result | {"findings": robustness.findings(result)}


def _evaluate_runs(given: Given, argv: list[str]) -> int:
    from lpfamily.report import comparison
    from lpfamily.report.tables import robustness_table

    names = [str(folder) for folder in given["run"]]
    folders = [Path(name).resolve() for name in names]
    if twice := [name for name, folder in zip(names, folders, strict=True) if folders.count(folder) > 1]:
        raise BadInput(f"{twice[0]}: is given twice; leave one out")
    several = len(names) > 1
    opened = {name: _Opened.of(Path(name), given) for name in names}
    first = opened[names[0]]
    for name, run in opened.items():
        _check_examples(given, len(run.dataset.test.x), "the run")
        if run.sigma_units != first.sigma_units:
            other = "" if run.recipe.inputs != first.recipe.inputs else "other "
            raise BadInput(
                f"{name} was trained on {other}{run.recipe.inputs}; {names[0]} on {first.recipe.inputs}; "
                "only runs on the same data can be compared"
            )
    radii = _radii(given, first.recipe, first.dataset.train.x.shape[1])
    out = _folder(given) if several else _file(given)
    progress, results = Progress(given.get("quiet", False)), {}
    part_names = {name: f"robustness of {name}" if several else "robustness" for name in names}
    with _interrupts.interruptible(), progress.parts(dict.fromkeys(part_names.values(), 1.0)) as part:
        for name, run in opened.items():
            with part(part_names[name]) as tick:
                results[name] = run.measured(radii, given, argv, tick)
    content = json.dumps(results if several else results[names[0]], indent=2, allow_nan=False) + "\n"
    if several:
        out.mkdir(parents=True, exist_ok=True)
    runs.replace(out / RESULT if several else out, content.encode())
    for name, result in results.items():
        warnings = [
            textwrap.fill(f"warning: {finding}", 100, subsequent_indent="  ")
            for finding in result["findings"]
        ]
        title = f"{name}: {first.recipe.inputs}" if several else first.recipe.inputs
        print("\n".join([robustness_table(result, title), *warnings]), flush=True)
    if several:
        print(f"\n{comparison.table(results)}", flush=True)
        comparison.write(results, out, progress.warn)
    else:
        _draw(results[names[0]], first.trained.recipe, out.with_suffix(".png"), progress)
    return 0


def _file(given: Given) -> Path:
    """Return the file for the result of one run; raise `BadInput` if it cannot be written."""
    out: Path = given.get("out", given["run"][0] / RESULT)
    if out.suffix != ".json":
        raise BadInput(f"--out {out}: must end in .json; the curves are written next to it, as .png")
    commands.check_out(out, out.with_name(f".{out.name}.new"))
    if out.is_dir() or not os.access(out.parent, os.W_OK):
        raise BadInput(f"--out {out}: cannot be written; give a file in a folder that can")
    run_files = {runs.CONFIG, runs.RESULT, grid.GRID, runs.CURVES}
    if run_files & {out.name, out.with_suffix(".png").name} and (out.parent / runs.CONFIG).exists():
        raise BadInput(f"--out {out}: would replace a file of the run in that folder; give another name")
    for result in out, out.with_suffix(".png"):
        _check_new(given, result, result)
    return out


def _folder(given: Given) -> Path:
    """Return the folder for a page; raise `BadInput` if it cannot be written."""
    out: Path = given.get("out", Path(PAGE))
    if out.exists() and not out.is_dir():
        raise BadInput(f"--out {out}: is a file; give a folder")
    if (out / runs.CONFIG).exists():
        raise BadInput(f"--out {out}: is a run folder; give another folder")
    commands.check_out(out, out / f".{RESULT}.new")
    _check_new(given, out / RESULT, out)
    return out


def _check_new(given: Given, result: Path, out: Path) -> None:
    if result.exists() and not given.get("force"):
        raise BadInput(f"{out}: has an earlier result; give --force to replace it, or another --out")


def _check_examples(given: Given, available: int, source: str) -> None:
    if (wanted := given.get("examples", 0)) > available:
        raise BadInput(
            f"--examples {wanted}: {source} has {available} test examples; give fewer, or 0 for all"
        )


def _radii(given: Given, recipe: Recipe, inputs: int) -> Radii:
    """Return, by p, the radii to test; raise `BadInput` if the dtype cannot represent them."""
    from lpfamily.training import robustness

    ps, sigmas = _ps(given), _sigmas(given)
    if sigmas is None:
        name, asked = "--multiples", given.get("multiples", robustness.MULTIPLES)
        if not max(asked, default=0.0) > 0:
            raise BadInput(f"{name} {','.join(map(str, asked)) or 'none'}: one must be above 0")
        radii, of = robustness.matched_radii(recipe, ps, asked, inputs), f", in units of {recipe.sigma:g}"
    else:
        name, asked, radii, of = "--sigma", sigmas, dict.fromkeys(ps, sigmas), ""
    limits, largest = np.finfo(recipe.dtype), [max(each) for each in radii.values()]
    if not max(largest) < math.sqrt(float(limits.max)):
        raise BadInput(f"{name} {max(asked):g}: too large for {recipe.dtype}; give less")
    if min(largest) < float(limits.tiny):
        raise BadInput(f"{name} {max(asked):g}: too small for {recipe.dtype}{of}; give more")
    return radii


def _ps(given: Given) -> tuple[float, ...]:
    ps: tuple[float, ...] = given.get("p", ONE_STEP)
    if not ps:
        raise BadInput("--p none: give an exponent, such as 2")
    names = [f"{p:g}" for p in ps]
    if twice := [name for name in names if names.count(name) > 1]:
        raise BadInput(f"--p: {twice[0]} is given twice, rounded to six digits; leave one out")
    return ps


def _sigmas(given: Given) -> tuple[float, ...] | None:
    sigmas: tuple[float, ...] | None = given.get("sigma")
    if sigmas is None:
        return None
    if "multiples" in given:
        raise BadInput("--sigma and --multiples: give only one of them")
    if not max(sigmas, default=0.0) > 0:
        raise BadInput(f"--sigma {','.join(map(str, sigmas)) or 'none'}: one must be above 0")
    return sigmas


def _draw(result: Json, recipe: Recipe, path: Path, progress: Progress) -> None:
    from lpfamily.report import drawing, plots

    size, title = plots.panels_size(list(result["balls"])), plots.robustness_title(recipe, result["examples"])
    draw = functools.partial(plots.robustness_curves, result=result)
    for content in drawing.rendered(draw, size, ["png"], str(path), progress.warn, title).values():
        runs.replace(path, content)


if __name__ == "__main__":
    commands.start(NAME, main)
