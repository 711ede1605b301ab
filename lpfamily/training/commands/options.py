"""The options of `python -m lpfamily.train`, and the recipes made from them."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from lpfamily.training import commands, recipes
from lpfamily.training.backends import names
from lpfamily.training.choices import PATH, SWITCH, TEXT, Names, Option, in_group, option, options
from lpfamily.training.commands import Given
from lpfamily.training.commands.combinations import combinations
from lpfamily.training.data import SOURCES, Dataset, custom
from lpfamily.training.errors import BadInput
from lpfamily.training.recipes import Recipe
from lpfamily.training.recipes.recipe import RELU_LR
from lpfamily.training.tasks import Machine, of_machine

NAME = "python -m lpfamily.train"

GROUPS = {
    "data": "the model and the data",
    "network": "the network: lists have one number per layer, separated by commas, or one number for all",
    "objective": "the objective",
    "optimiser": "the optimiser: SGD, v <- m v - lr g, w <- w + v",
    "stages": "the two stages",
    "machine": "where and how",
    "run": "the run",
}
"""The titles of `--help`, in order."""


@dataclass(frozen=True)
class Command:
    """The options of the command alone: the backend, folders, and output."""

    backend: str = of_machine("numpy", TEXT, f"library that trains: one of {', '.join(names())}")
    data_dir: Path | None = of_machine(
        None,
        PATH,
        "folder with local data files, in PATH, PATH/mnist or PATH/cifar10; for a --data that is "
        "a path, the folder to which it is relative",
        default_text="LPFAMILY_DATA, or a download into the user's cache",
    )
    out: Path | None = option(
        None,
        PATH,
        "the run folder, which must be empty or new",
        group="run",
        default_text="a folder in runs/, named by model, data, objective and time",
    )
    resume: Path | None = option(
        None,
        PATH,
        "continue the run in this folder; only --epochs (to raise it), --log, --quiet, --json and the "
        "options of 'where and how' except --dtype may be given with it",
        group="run",
    )
    init_from: Path | None = option(
        None,
        PATH,
        "start with the weights of the run in this folder, which must have the same network",
        group="run",
    )
    log: str | None = option(
        None,
        Names(("tensorboard",)),
        "also write each epoch's metrics as event files in the run folder",
        group="run",
    )
    quiet: bool = option(False, None, "show no progress, and only the run folder at the end", group="run")
    json: bool = option(False, None, "print the result as JSON instead of a table", group="run")


ON_RESUME = {each.name for each in (*fields(Command), *fields(Machine))} - {"out", "init_from"} | {"epochs"}
"""The options that may be given with --resume."""


def parser() -> commands.Parser:
    """Return the command's parser, whose namespace holds only the options that were given."""
    result = commands.Parser(
        prog=NAME,
        description="Train a network on perturbed inputs, or with the dual-norm penalty, and test it.",
        epilog="example: python -m lpfamily.train --backend torch --data mnist --p inf --sigma 0.1",
    )
    for group, title in GROUPS.items():
        if group == "machine":
            _add_grid(result)
        add = result.group(title)
        for each in in_group(group, Command, Machine, Recipe):
            add(each.flag, each.help, each.values, default=_default(each))
    return result


def _add_grid(result: commands.Parser) -> None:
    choice = result.add_argument_group("the choice among recipes by validation error")
    choice.add_argument(
        "--grid",
        action="append",
        metavar="NAME=VALUE/...",
        help="train stage one with each value of another option, such as units=400,400/600,600 or "
        "sigma=0.1/0.5/1/2 (fractions need parentheses: sigma=(8/255)/(16/255)); several --grid train every "
        "combination, each in a folder of OUT/grid/; stage two and the test use the one whose kept epoch has "
        "the lowest validation error",
    )


def _default(each: Option) -> str | None:
    """Return the default of an option in words, with the models and data sets whose default differs."""
    if each.default_text or each.default is None or each.values is SWITCH:
        return each.default_text or None
    default = _text(each.default)
    others: dict[str, list[str]] = {}
    of_data = {name: source.recipe for name, source in SOURCES.items()} | {"custom data": custom.RECIPE}
    of_both = {
        f"{model} on {name}": numbers
        for name, source in SOURCES.items()
        for model, numbers in source.of_models.items()
    }
    for name, published in (recipes.PUBLISHED | of_data | of_both).items():
        if each.name in published and (value := _text(published[each.name])) != default:
            others.setdefault(value, []).append(name)
    return "; ".join([default, *(f"{', '.join(models)} {value}" for value, models in others.items())])


def _text(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(map(_text, value)) or "none"
    return f"{value:.7g}" if isinstance(value, float) else str(value)


def recipes_of(given: Given, dataset: Dataset) -> dict[str, Recipe]:
    """Return the recipe of each combination of `--grid` by its name; without `--grid` one, named "".

    Raises
    ------
    BadInput
        An option has no effect on any of the recipes.
    """
    given_by_name = {name: given | values for name, values in combinations(given).items()}
    result = {name: recipe_of(chosen, dataset) for name, chosen in given_by_name.items()}
    for each in options(Recipe).values():
        if any(map(each.has_effect, result.values())):
            continue
        for name, chosen in given_by_name.items():
            if each.name not in chosen:
                continue
            without = recipe_of({key: chosen[key] for key in chosen if key != each.name}, dataset)
            if getattr(result[name], each.name) != getattr(without, each.name):
                where = f"--grid {name}: " if name else ""
                raise BadInput(f"{where}{each.flag} needs {each.needed}; give that too, or leave it out")
    return result


def recipe_of(given: Given, dataset: Dataset) -> Recipe:
    """Return the named recipe with its values replaced by the options that were given."""
    recipe = recipes.default(
        given.get("model", Recipe.model),
        dataset,
        given.get("objective", Recipe.objective),
        given.get("p", Recipe.p),
        recipe=given.get("recipe", Recipe.recipe),
    )
    if "epochs" in given:  # a short run has a short second stage, and its decay ends with it
        epochs = given["epochs"]
        lr_epochs = recipe.lr_epochs if recipe.recipe == "paper" else epochs
        second = min(recipe.second_epochs, epochs)
        recipe = replace(recipe, second_epochs=second, lr_epochs=lr_epochs)
    if given.get("activation") == "relu":
        recipe = replace(recipe, lr=RELU_LR)
    if given.get("validation") == 0:  # nothing to stop by; an explicit --patience is refused later
        recipe = replace(recipe, patience=0, second_stage="none")
    chosen = {name: given[name] for name in options(Recipe) if name in given} | {"data": dataset.name}
    return replace(recipe, **chosen)
