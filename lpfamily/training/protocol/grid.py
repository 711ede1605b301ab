"""The choice among recipes: stage one of each combination, and the least validation error.

Each combination is trained in a folder of its own, as a run that is never tested: nothing may be
chosen by test data. The run that they are for then goes on from the chosen one's stage one.
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
"""The file that says what was chosen, and the folder beside it the combinations."""

NOT_FINITE = {"validation_error": None, "epoch": None}
"""The result of a combination whose loss did not stay finite: it is not chosen."""


def choose(run: Run, config: Json, train: Callable[[Run, Recipe], Json], progress: Progress) -> Recipe:
    """Train what is not trained yet, let the run begin with the best, and return its recipe.

    Until the run has a checkpoint, all this can be done again and gives the same bytes, so a kill does no
    harm at any instant: combinations that are finished are kept, one that has begun goes on. The checkpoint
    is written last, when the run's config already holds the recipe that it belongs to.
    """
    if run.has(runs.CHECKPOINT):
        return choices.from_json(Recipe, config["recipe"])
    found: Json = {}
    candidates = configs.candidates(config)
    for name, recipe in candidates.items():
        first = replace(recipe, second_stage="none")
        child = _child(run.folder / "grid", name, config, first)
        with child.held():
            if child.result is None:
                try:
                    child.finish(train(child, first) | _kept(child, first))
                except NotFinite as cause:
                    progress.warn(f"{name} is not chosen: {cause}")
                    child.finish(NOT_FINITE)
        found[name] = _chosen_by(child)
    errors = {name: kept["validation_error"] for name, kept in found.items() if kept != NOT_FINITE}
    if not errors:
        raise NotFinite(
            "no combination of --grid stays finite; start a new run with a smaller --lr or --sigma"
        )
    chosen = min(errors, key=errors.__getitem__)  # the first of several
    progress.note(f"chosen by validation error, {errors[chosen]:.2%}: {chosen}")
    first = replace(candidates[chosen], second_stage="none")
    network = recipes.network_of(
        first, *data.shape_and_classes(first.data, config.get("shape"), config.get("classes"))
    )
    child = Run(run.folder / "grid" / chosen)
    beginning = child.beginning(first, network)
    run.write(GRID, {"chosen": chosen, "combinations": found}, config["grid"])
    run.write(runs.CONFIG, config | {"recipe": choices.to_json(candidates[chosen])})
    run.take_over(beginning)
    return candidates[chosen]


def _child(parent: Path, name: str, config: Json, recipe: Recipe) -> Run:
    """Return the run of a combination, which is made unless it is there."""
    folder = parent / name
    for each in (parent, folder):
        if each.is_symlink():
            raise BadInput(f"{each}: is a link, by which a run would be written elsewhere; remove it")
    alone = {name: value for name, value in config.items() if name != "grid"}
    if not (folder / runs.CONFIG).exists():
        return runs.create(folder, alone | {"recipe": choices.to_json(recipe)})
    child = Run(folder)
    alike, found = False, child.decisive
    expected = {name: alone[name] for name in alone if name in found}
    with suppress(AttributeError, KeyError, TypeError, ValueError):
        alike = choices.from_json(Recipe, found["recipe"]) == recipe
    if not alike or found | {"recipe": None} != expected | {"recipe": None}:
        raise BadInput(
            f"{folder / runs.CONFIG}: is not of the combination that its folder is named by; restore it from "
            "a copy, or remove that folder, to train it anew"
        )
    return child


def _chosen_by(child: Run) -> Json:
    """Return what the result of a combination says that decides whether it is chosen."""
    result = child.result or {}
    found = {name: result.get(name) for name in NOT_FINITE}
    kinds = type(found["validation_error"]), type(found["epoch"])
    if found != NOT_FINITE and kinds not in ((float, int), (int, int)):
        path = child.folder / runs.RESULT
        raise BadInput(f"{path}: lacks a validation error and its epoch; {files.REMEDY}")
    return found


def _kept(child: Run, recipe: Recipe) -> Json:
    """Return the validation error of the epoch whose parameters a stage one ends with."""
    lines = child.metrics()
    with files.understanding(child.folder / runs.METRICS, "lacks validation errors"):
        kept = min(lines, key=lambda line: line["validation_error"]) if recipe.patience else lines[-1]
        return {"validation_error": kept["validation_error"], "epoch": kept["epoch"]}
