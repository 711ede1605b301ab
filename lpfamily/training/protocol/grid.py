"""The choice among recipes: stage one of each combination, then the lowest validation error.

Each combination is trained in a separate folder, as a run that is never tested, because test data must not
decide a choice. The main run then continues from stage one of the chosen combination.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from lpfamily.training import choices, data, files, recipes, runs
from lpfamily.training.errors import BadInput
from lpfamily.training.files import Json
from lpfamily.training.progress import Progress
from lpfamily.training.protocol.epochs import NotFinite
from lpfamily.training.recipes import Recipe
from lpfamily.training.runs import Run, configs

GRID = "grid.json"
"""The file that records the choice; the combinations are in the folder `grid` beside it."""

NOT_FINITE = {"validation_error": None, "epoch": None}
"""The result of a combination whose loss did not stay finite; it cannot be chosen."""


def choose(run: Run, config: Json, train: Callable[[Run, Recipe], Json], progress: Progress) -> Recipe:
    """Train the combinations, let the run continue from the best one, and return its recipe.

    Until the run has a checkpoint, all this can be repeated and gives the same bytes, so a kill does no harm:
    finished combinations are kept, and one that has begun is continued. The checkpoint is written last, when
    the run's config already has the recipe that it belongs to.
    """
    if run.has(runs.CHECKPOINT):
        return choices.from_json(Recipe, config["recipe"])
    results: Json = {}
    candidates = configs.candidates(config)
    for name, recipe in candidates.items():
        stage_one = replace(recipe, second_stage="none")
        child = _child(run.folder / "grid", name, config, stage_one)
        with child.locked():
            if child.result is None:
                try:
                    child.finish(train(child, stage_one) | _kept_epoch(child, stage_one))
                except NotFinite as cause:
                    progress.warn(f"{name} is not chosen: {cause}")
                    child.finish(NOT_FINITE)
        results[name] = _deciding(child)
    errors = {name: each["validation_error"] for name, each in results.items() if each != NOT_FINITE}
    if not errors:
        raise NotFinite(
            "no combination of --grid stays finite; start a new run with a smaller --lr or --sigma"
        )
    chosen = min(errors, key=errors.__getitem__)  # the first of equal ones
    progress.note(f"chosen by validation error, {errors[chosen]:.2%}: {chosen}")
    stage_one = replace(candidates[chosen], second_stage="none")
    network = recipes.network_of(
        stage_one, *data.shape_and_classes(stage_one.data, config.get("shape"), config.get("classes"))
    )
    child = Run(run.folder / "grid" / chosen)
    snapshot = child.snapshot(stage_one, network)
    run.write(GRID, {"chosen": chosen, "combinations": results}, config["grid"])
    run.write(runs.CONFIG, config | {"recipe": choices.to_json(candidates[chosen])})
    run.restore(snapshot)
    return candidates[chosen]


def _child(parent: Path, name: str, config: Json, recipe: Recipe) -> Run:
    """Return the run of a combination; make it if it does not exist."""
    folder = parent / name
    for each in (parent, folder):
        if each.is_symlink():
            raise BadInput(f"{each}: is a link, so a run would be written elsewhere; remove it")
    without_grid = {name: value for name, value in config.items() if name != "grid"}
    if not (folder / runs.CONFIG).exists():
        return runs.create(folder, without_grid | {"recipe": choices.to_json(recipe)})
    child = Run(folder)
    is_alike, decisive = False, child.decisive
    expected = {name: without_grid[name] for name in without_grid if name in decisive}
    with suppress(AttributeError, KeyError, TypeError, ValueError):
        is_alike = choices.from_json(Recipe, decisive["recipe"]) == recipe
    if not is_alike or decisive | {"recipe": None} != expected | {"recipe": None}:
        raise BadInput(
            f"{folder / runs.CONFIG}: is not the config of the combination that names its folder; restore it "
            "from a copy, or remove that folder to train it anew"
        )
    return child


def _deciding(child: Run) -> Json:
    """Return the entries of a combination's result that decide whether it is chosen."""
    result = child.result or {}
    deciding = {name: result.get(name) for name in NOT_FINITE}
    kinds = type(deciding["validation_error"]), type(deciding["epoch"])
    if deciding != NOT_FINITE and kinds not in ((float, int), (int, int)):
        path = child.folder / runs.RESULT
        raise BadInput(f"{path}: lacks a validation error and its epoch; {files.REMEDY}")
    return deciding


def _kept_epoch(child: Run, recipe: Recipe) -> Json:
    """Return the validation error of the epoch whose parameters stage one keeps."""
    lines = child.metrics()
    with files.understanding(child.folder / runs.METRICS, "lacks validation errors"):
        kept = min(lines, key=lambda line: line["validation_error"]) if recipe.patience else lines[-1]
        return {"validation_error": kept["validation_error"], "epoch": kept["epoch"]}
