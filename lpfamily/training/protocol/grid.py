"""The choice among recipes: stage one of each combination, and the least validation error.

Each combination is trained in a folder of its own, as a run that is never tested: nothing may be
chosen by test data. The run that they are for then goes on from the chosen one's stage one.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from lpfamily.training import choices, data, recipes, runs
from lpfamily.training.choices import Names, Numbers, Range, flag, options
from lpfamily.training.errors import BadInput, nearest
from lpfamily.training.files import Json
from lpfamily.training.progress import Progress
from lpfamily.training.recipes import Recipe
from lpfamily.training.runs import Run

GRID = "grid.json"
"""The file that says what was chosen, and the folder beside it the combinations."""

LONGEST = 255
"""The bytes that a file system allows in a name."""

_AFTERWARDS = "it makes no difference to stage one, by which is chosen"
_OTHER_EXAMPLES = "errors on different examples do not compare"
_FIXED = {
    "examples": _OTHER_EXAMPLES,  # the held-out ones are the last of them
    "validation": _OTHER_EXAMPLES,
    "test_examples": _AFTERWARDS,
    "second_stage": _AFTERWARDS,
    "second_lr": _AFTERWARDS,
    "second_epochs": _AFTERWARDS,
}
"""What cannot be chosen, and why."""

NOT_FINITE = {"validation_error": None, "epoch": None}
"""The result of a combination whose loss did not stay finite: it is not chosen."""


def combinations(given: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return by name what each combination of `--grid` gives to the recipe; without it one, of no name."""
    axes: dict[str, dict[str, Any]] = {}
    for text in given.get("grid", ()):
        field, values = _axis(text)
        if field in axes:
            raise BadInput(f"--grid {text}: {_name(field)} is there twice; put all its values in one")
        if field in given:
            raise BadInput(f"--grid {text}: {flag(field)} is given too; leave one of the two out")
        if given.get("validation") == 0:
            raise BadInput(f"--grid {text}: --validation 0 leaves nothing to choose by; hold some out")
        axes[field] = values
    found = {}
    for texts in itertools.product(*axes.values()):
        pairs = list(zip(axes, texts, strict=True))
        name = ",".join(f"{_name(field)}={text}" for field, text in pairs)
        if len(name.encode()) > LONGEST:
            raise BadInput(f"--grid: {name} is too long for the name of a folder; choose among fewer options")
        found[name] = {field: axes[field][text] for field, text in pairs}
    return found


def _axis(text: str) -> tuple[str, dict[str, Any]]:
    """Return the field that NAME=VALUE/VALUE/... names, and its values by how they were written."""
    name, equals, values = text.partition("=")
    field, problem = name.replace("-", "_"), f"--grid {text}"
    if not equals:
        raise BadInput(f"{problem}: must be NAME=VALUE/VALUE/...")
    if field in _FIXED:
        raise BadInput(f"{problem}: {_FIXED[field]}; give {flag(field)} one value")
    kinds = Range | Numbers | Names
    known = {name: each.values for name, each in options(Recipe).items() if isinstance(each.values, kinds)}
    if field not in known:
        others = map(_name, known.keys() - _FIXED.keys())
        hint = nearest(_name(field), others, "--help lists the options")
        raise BadInput(f"{problem}: {name!r} is no number, list or choice of a recipe; {hint}")
    found: dict[str, Any] = {}
    for value in map(str.strip, values.split("/")):
        try:
            parsed = known[field].read(value)
        except ValueError as cause:
            raise BadInput(f"{problem}: {_name(field)} {cause}") from cause
        if parsed in found.values():
            raise BadInput(f"{problem}: {value} is there twice; leave one out")
        found[value] = parsed
    return field, found


def _name(field: str) -> str:
    return flag(field).removeprefix("--")


def to_json(candidates: dict[str, Recipe]) -> Json:
    """Return by name what differs among recipes; written into any of them, it makes that one."""
    values = {name: choices.to_json(recipe) for name, recipe in candidates.items()}
    first, *others = values.values()
    differing = [field for field in first if any(other[field] != first[field] for other in others)]
    return {name: {field: recipe[field] for field in differing} for name, recipe in values.items()}


def from_json(config: Json) -> dict[str, Recipe]:
    """Return the recipes to choose from by a run's config; none if it has no grid.

    Their names are those of folders, so one that would lead elsewhere is a `ValueError`.
    """
    found: dict[str, Recipe] = {}
    for name, differing in config.get("grid", {}).items():
        if name in ("", ".", "..") or set(name) & set("/\\:\0") or len(os.fsencode(name)) > LONGEST:
            raise ValueError(f"{name!r} cannot be the name of a combination")
        found[name] = choices.from_json(Recipe, config["recipe"] | differing)
    return found


def trained_in(folder: Path) -> set[str]:
    """Return the names of the combinations that have been begun in a run's folder."""
    return {path.parent.name for path in (folder / "grid").glob(f"*/{runs.CONFIG}")}


def choose(run: Run, config: Json, train: Callable[[Run, Recipe], Json], progress: Progress) -> Recipe:
    """Train what is not trained yet, let the run begin with the best, and return its recipe.

    Until the run has a checkpoint, all this can be done again and gives the same bytes, so a kill does no
    harm at any instant: combinations that are finished are kept, one that has begun goes on. The checkpoint
    is written last, when the run's config already holds the recipe that it belongs to.
    """
    from lpfamily.training.protocol.stages import NotFinite, read_position

    if (run.folder / runs.CHECKPOINT).exists():
        return choices.from_json(Recipe, config["recipe"])
    found: Json = {}
    candidates = from_json(config)
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
    source = data.source(first.data)
    network = recipes.network_of(first, source.shape, source.classes)
    child = Run(run.folder / "grid" / chosen)
    beginning = child.beginning(lambda values: read_position(values, first, network), first.dtype)
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
    found, expected = child.decisive, {name: alone[name] for name in alone if name in child.decisive}
    try:
        alike = choices.from_json(Recipe, found["recipe"]) == recipe
    except (AttributeError, KeyError, TypeError, ValueError):
        alike = False
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
        raise BadInput(f"{path}: lacks a validation error and its epoch; restore it from a copy")
    return found


def _kept(child: Run, recipe: Recipe) -> Json:
    """Return the validation error of the epoch whose parameters a stage one ends with."""
    lines = child.metrics()
    try:
        kept = min(lines, key=lambda line: line["validation_error"]) if recipe.patience else lines[-1]
        return {"validation_error": kept["validation_error"], "epoch": kept["epoch"]}
    except (KeyError, IndexError, TypeError, ValueError) as cause:
        path = child.folder / runs.METRICS
        raise BadInput(f"{path}: lacks validation errors ({cause!r}); restore it from a copy") from cause
