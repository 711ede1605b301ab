"""`python -m lpfamily.train`: train a network with the Lp family, test it, and save the run."""

from __future__ import annotations

from lpfamily import _interrupts

if __name__ == "__main__":
    _interrupts.take_over("python -m lpfamily.train")  # first, as the imports take seconds

# isort: split

import functools
import json
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from lpfamily.training import backends, choices, commands, data, fitting, robustness, runs
from lpfamily.training.backends.leading import follow, leading
from lpfamily.training.choices import flag
from lpfamily.training.commands import Given
from lpfamily.training.commands.options import NAME, ON_RESUME, parser, recipes_of
from lpfamily.training.errors import BadInput
from lpfamily.training.files import Json
from lpfamily.training.progress import Progress
from lpfamily.training.protocol import extension, grid, stages
from lpfamily.training.recipes import Recipe
from lpfamily.training.runs import configs, initial_weights, tensorboard
from lpfamily.training.runs.configs import Config
from lpfamily.training.tasks import Machine
from lpfamily.training.teams import Lost, Team

LARGE = 10.0
"""Inputs with a larger standard deviation cause a warning; pixels from 0 to 255 have about 80."""


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return commands.run(NAME, lambda: _train(parser().parse(argv)))


def _train(given: Given) -> int:
    commands.check_extra()
    if "resume" in given:
        return _resume(given)
    name, device = given.get("backend", "numpy"), given.get("device", "cpu")
    return _join_and_run(name, device, lambda backend, team: _begin(given, name, backend, team))


def _begin(given: Given, name: str, backend: backends.Backend, team: Team) -> int:
    which, data_dir = given.get("data", Recipe.data), given.get("data_dir")
    dataset = data.load(which, data_dir, given.get("size", ())).scaled(given.get("scale", Recipe.scale))
    candidates = recipes_of(given, dataset)
    recipe = next(iter(candidates.values()))
    config = Config(
        recipe,
        name,
        _machine(Machine(), given),
        data_dir=data.folder(which, data_dir),
        **configs.facts(dataset),
        versions=commands.versions(team.size),
        grid=candidates if "grid" in given else {},
    )
    if "log" in given:
        tensorboard.check()
    if "init_from" in given:
        config = initial_weights.from_run(config, given["init_from"], dataset, f"{flag('init_from')} ")
    _check(candidates, dataset, name, backend, config.machine)
    name_of_run = f"{recipe.model}-{recipe.short_data}-grid" if config.grid else fitting.run_name(recipe)
    folder = given.get("out") or fitting.new_folder(name_of_run)
    commands.check_out(folder, folder / f".{runs.CHECKPOINT}.new")
    run = runs.create(folder, configs.to_json(config))
    with run.locked():
        if dataset.name not in data.SOURCES and dataset.train.x.std() > LARGE:
            Progress().warn(
                f"{dataset.name} has inputs up to {abs(dataset.train.x).max():.4g}, on which networks learn "
                "badly; scale them with --scale standard or --scale unit"
            )
        return _finish(run, config, dataset, backend, given)


def _resume(given: Given) -> int:
    if fixed := sorted(given.keys() - ON_RESUME):
        raise BadInput(
            f"{flag(fixed[0])} cannot be changed in a run that has begun; leave it out, or start a new run"
        )
    if not {"backend", "device"} <= given.keys():  # a follower needs these two, not the run folder
        run = runs.find(given["resume"])
        if run.has(runs.CURVES) and _is_finished(run, given):
            return 0
        config = configs.read(run)
        given = {"backend": config.backend, "device": config.machine.device} | given
    return _join_and_run(given["backend"], given["device"], functools.partial(_resume_run, given))


def _resume_run(given: Given, backend: backends.Backend, team: Team) -> int:
    run = runs.find(given["resume"])
    with run.locked():
        config = configs.read(run)
        if _is_finished(run, given):
            if not run.has(runs.CURVES):  # the run was stopped before they were drawn
                _draw(run, config.recipe, Progress())
            return 0
        begin = f"--resume {run.folder}: the run began on"
        dataset = configs.dataset(config, given.get("data_dir"), begin)
        if "log" in given:
            tensorboard.check()
        began = config.recipe
        if "epochs" in given:
            recipe = extension.with_epochs(began, given["epochs"])
            config = replace(config, recipe=extension.extended(run, config, recipe, dataset))
        machine = _machine(config.machine, given)
        _check(config.grid or {"": config.recipe}, dataset, given["backend"], backend, machine)
        if changes := fitting.changes_since_begun(config, given["backend"], machine, team.size):
            _note(f"the run began with {' and '.join(changes)}; the results may differ by rounding")
        if (every := config.recipe.monitor) != began.monitor:
            _note(f"the run still checks for catastrophic overfitting every {every} epochs")
        extension.extend(run, began, config.recipe)
        return _finish(run, config, dataset, backend, given)


def _note(text: str) -> None:
    print(f"{NAME}: {text}", file=sys.stderr)


def _is_finished(run: runs.Run, given: Given) -> bool:
    if (result := run.result) is None:
        return False
    if "epochs" in given and given["epochs"] != configs.read(run).recipe.epochs:
        return False
    _print_result(run, result, given, f"{run.folder} is finished; nothing to do")
    return True


def _print_result(run: runs.Run, result: Json, given: Given, text: str) -> None:
    """Print the outcome of a run: as JSON, as its folder alone, or as text."""
    if "json" in given:
        text = json.dumps({"run": str(run.folder)} | result, indent=2, allow_nan=False)
    elif "quiet" in given:
        text = str(run.folder)
    print(text, flush=True)


def _machine(machine: Machine, given: Given) -> Machine:
    """Return a machine with the given options replaced."""
    return replace(machine, **{name: given[name] for name in choices.options(Machine) if name in given})


def _join_and_run(name: str, device: str, lead: Callable[[backends.Backend, Team], int]) -> int:
    """Join the other processes of the run, if there are any, and lead them or follow their leader."""
    backend = backends.find(name)
    team = backend.join(device)
    if team.size == 1 and "TORCHELASTIC_RUN_ID" in os.environ and os.environ.get("WORLD_SIZE") != "1":
        raise BadInput(f"--backend {name} cannot be used with torchrun; start it as python -m lpfamily.train")
    try:
        backend.check_device(device)
        if team.rank:
            follow(backend, team)
            return 0
        with leading(backend, team) as leader:
            return lead(leader, team)
    finally:
        team.leave()


def _finish(
    run: runs.Run, config: Config, dataset: data.Dataset, backend: backends.Backend, given: Given
) -> int:
    from lpfamily.report import tables

    progress, recipe = Progress(given.get("quiet", False)), config.recipe
    machine = fitting.compiled_if_possible(_machine(config.machine, given), backend, progress)
    initial, chosen = functools.partial(initial_weights.load, config), ""

    def trained(run: runs.Run, recipe: Recipe, **options: Any) -> Json:
        callbacks = [tensorboard.logging(run)] if "log" in given else []
        options |= {"progress": progress, "callbacks": callbacks, "initial": initial}
        return stages.train(run, recipe, dataset, backend, machine, **options)

    try:
        with _interrupts.interruptible():
            if config.grid:
                stage_one = functools.partial(trained, test=False)
                recipe = grid.choose(run, run.config, stage_one, progress)
                chosen = tables.grid_table(run) + "\n\n"
            result = trained(run, recipe)
            run.finish(result)
            table = chosen + tables.result_table(result, recipe, dataset.train.x.shape[1])
            _print_result(run, result, given, table)
            _draw(run, recipe, progress)
    except KeyboardInterrupt:
        print(f"\nstopped; go on with {NAME} --resume {run.folder}", file=sys.stderr)
        raise
    except Lost as cause:
        raise Lost(f"{cause}; {run.checkpoint_in_words}; go on with {NAME} --resume {run.folder}") from cause
    return 0


def _draw(run: runs.Run, recipe: Recipe, progress: Progress) -> None:
    from lpfamily.report import drawing, plots

    draw = functools.partial(
        plots.training_curves, metrics=run.metrics(), monitor_steps=robustness.MONITOR_STEPS
    )
    name, title = str(run.folder / runs.CURVES), plots.training_title(recipe)
    for content in drawing.rendered(draw, plots.TRAINING_SIZE, ["png"], name, progress.warn, title).values():
        with run.writing(runs.CURVES) as path:
            runs.replace(path, content)


def _check(
    candidates: dict[str, Recipe],
    dataset: data.Dataset,
    name: str,
    backend: backends.Backend,
    machine: Machine,
) -> None:
    """Raise `BadInput` for errors that can be found before a folder is created."""
    for combination, recipe in candidates.items():
        try:
            fitting.check(recipe, dataset, name, backend, machine)
        except BadInput as problem:
            raise BadInput(f"--grid {combination}: {problem}" if combination else problem) from problem


if __name__ == "__main__":
    commands.start(NAME, main)
