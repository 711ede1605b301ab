"""`python -m lpfamily.evaluate RUN`: how robust a run's network is, by many steps as well as by one."""

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
from dataclasses import replace
from pathlib import Path

import numpy as np

from lpfamily.training import backends, commands, data, recipes, runs
from lpfamily.training.choices import COUNT, COUNT_OR_NONE, EXPONENT, NOT_NEGATIVE, PATH, TEXT, Numbers
from lpfamily.training.commands import Given
from lpfamily.training.errors import BadInput
from lpfamily.training.evaluation import ONE_STEP
from lpfamily.training.files import Json
from lpfamily.training.progress import Progress
from lpfamily.training.protocol import grid
from lpfamily.training.recipes import Recipe
from lpfamily.training.runs import configs

NAME = "python -m lpfamily.evaluate"
EXAMPLES = 1000
STEPS = 20


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return commands.run(NAME, lambda: _evaluate(sys.argv[1:] if argv is None else argv))


def _parser() -> commands.Parser:
    from lpfamily.training import robustness

    result = commands.Parser(
        prog=NAME,
        description="Test the network of a run: error against sigma by one step, many steps and noise, the "
        "smallest sigma that changes predictions, and warnings of what one step alone would hide.",
        epilog=f"example: {NAME} runs/mine --p 2 --sigmas 0.5,1,2 --steps 50",
    )
    result.add_argument("run", type=Path, metavar="RUN", help="the folder of a run, finished or not")
    add = result.group("what is tested")
    add("--p", "exponents of balls, from 1 to inf", Numbers(EXPONENT), default="1,2,inf")
    add(
        "--sigmas",
        "radii, in units of the one whose strength matches that of the run; 0 is always there",
        Numbers(NOT_NEGATIVE),
        default=",".join(f"{multiple:g}" for multiple in robustness.MULTIPLES),
    )
    add("--steps", "gradients that the ascent takes in each ball", COUNT, default=STEPS)
    add("--examples", "use the first N test examples; 0 is all", COUNT_OR_NONE, default=EXAMPLES)
    add("--seed", "of the noise", COUNT_OR_NONE, default="that of the run")
    add("--data-dir", "local data files, as in lpfamily.train", PATH, default="that of the run")
    add = result.group("where and how")
    add("--backend", f"one of {', '.join(backends.names())}", TEXT, default="that of the run")
    add("--device", "as in lpfamily.train", TEXT, default="that of the run; cpu with --backend")
    add("--out", "the JSON file; the curves are beside it, as PNG", PATH, default="RUN/robustness.json")
    add("--quiet", "no progress, only the table at the end")
    return result


def _evaluate(argv: list[str]) -> int:
    given = _parser().parse(argv)
    commands.check_extra()
    from lpfamily.report.tables import robustness_table
    from lpfamily.training import load, robustness

    config, trained, out = configs.read(runs.find(given["run"], option="")), load(given["run"]), _out(given)
    dataset = configs.dataset(config, given.get("data_dir"), f"{given['run']}: the run has used")
    dataset = dataset.first(config.recipe.examples, config.recipe.test_examples)
    if (wanted := given.get("examples", 0)) > (there := len(dataset.test.x)):
        raise BadInput(f"--examples {wanted}: the run has {there} test examples; give less, or 0 for all")
    recipe = _with_radius(trained.recipe)
    ps, multiples = given.get("p", ONE_STEP), given.get("sigmas", robustness.MULTIPLES)
    _check_radii(recipe, ps, multiples, dataset.train.x.shape[1])
    backend: str = given.get("backend") or config.backend
    device: str = given.get("device") or ("cpu" if "backend" in given else config.machine.device)
    trainer = trained.trainer(backend, device)
    test = dataset.test.rows(slice(given.get("examples", EXAMPLES) or None))
    seed = given.get("seed", recipe.seed)
    progress, what = Progress(given.get("quiet", False)), "robustness"
    with _interrupts.interruptible(), progress.parts({what: 1.0}) as part, part(what) as tick:
        result = robustness.measure(
            trainer, test.x, test.labels, recipe, ps, multiples, given.get("steps", STEPS), seed, tick
        )
    found = robustness.findings(result)
    made = {
        "command": f"{NAME} {shlex.join(argv)}",
        "versions": commands.versions(),
        "backend": backend,
        "device": device,
        "run_seed": recipe.seed,
        "epoch": trained.epoch,
        "data": recipe.data,
        "data_sha256": dataset.sha256(),
    }
    content = json.dumps(made | result | {"findings": found}, indent=2, allow_nan=False) + "\n"
    runs.replace(out, content.encode())
    warnings = [textwrap.fill(f"warning: {finding}", 100, subsequent_indent="  ") for finding in found]
    print("\n".join([robustness_table(result, recipe.data), *warnings]), flush=True)
    _draw(result, out.with_suffix(".png"), progress)
    return 0


def _out(given: Given) -> Path:
    """Return where the result goes, after a look at whether it can, before the work is done."""
    out: Path = given.get("out", given["run"] / "robustness.json")
    if out.suffix != ".json":
        raise BadInput(f"--out {out}: must end in .json; the curves are beside it, in .png")
    commands.check_out(out, out.with_name(f".{out.name}.new"))
    if out.is_dir() or not os.access(out.parent, os.W_OK):
        raise BadInput(f"--out {out}: cannot be written; give a file in a folder that can")
    own = {runs.CONFIG, runs.RESULT, grid.GRID, runs.CURVES}
    if own & {out.name, out.with_suffix(".png").name} and (out.parent / runs.CONFIG).exists():
        raise BadInput(f"--out {out}: would replace a file of the run in that folder; give another name")
    return out


def _with_radius(recipe: Recipe) -> Recipe:
    """Return the recipe, with the published sigma where its own is 0 and so has no multiples."""
    if recipe.sigma:
        return recipe
    inputs = data.source(recipe.data).inputs
    published = recipes.default(recipe.model, recipe.data, recipe.objective, recipe.p, inputs)
    return replace(recipe, sigma=published.sigma)


def _check_radii(recipe: Recipe, ps: tuple[float, ...], multiples: tuple[float, ...], inputs: int) -> None:
    if not ps:
        raise BadInput("--p none: give an exponent, such as 2")
    names = [f"{p:g}" for p in ps]
    if twice := [name for name in names if names.count(name) > 1]:
        raise BadInput(f"--p: {twice[0]} is there twice, in six digits; leave one out")
    largest, limits = max(multiples, default=0.0), np.finfo(recipe.dtype)
    if not largest > 0:
        raise BadInput(f"--sigmas {','.join(map(str, multiples)) or 'none'}: one must be above 0")
    radii = [largest * recipes.matched_radius(recipe, p, inputs) for p in ps]
    if not max(radii) < math.sqrt(float(limits.max)):
        raise BadInput(f"--sigmas {largest:g}: too large for {recipe.dtype}; give less")
    if min(radii) < float(limits.tiny):
        raise BadInput(
            f"--sigmas {largest:g}: too small for {recipe.dtype}, in units of {recipe.sigma:g}; give more"
        )


def _draw(result: Json, path: Path, progress: Progress) -> None:
    from lpfamily.report import looks, plots

    size = 3 * len(result["balls"]) + 1, 3.6
    draw = functools.partial(plots.robustness_curves, result=result)
    for content in looks.rendered(draw, size, ["png"], str(path), progress.warn).values():
        runs.replace(path, content)


if __name__ == "__main__":
    commands.start(NAME, main)
