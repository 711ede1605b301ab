"""Raise the epochs of a run, provided that a run begun with as many would now be in the same state.

The rates of a step do not depend on the number of epochs. Three things do. How often a short run checks for
catastrophic overfitting: this stays as it is. The choice among the combinations of a grid: such a run gets no
more epochs. The end of stage one: a stage that ended at its last epoch cannot go on once stage two has
replaced its state.
"""

from __future__ import annotations

from dataclasses import replace

from lpfamily.training import choices, recipes
from lpfamily.training.choices import flag
from lpfamily.training.data import Dataset
from lpfamily.training.errors import BadInput
from lpfamily.training.protocol import stages
from lpfamily.training.recipes import Recipe
from lpfamily.training.runs import CHECKPOINT, RAISED, RESULT, Run
from lpfamily.training.runs.configs import Config
from lpfamily.training.runs.positions import Position


def with_epochs(recipe: Recipe, epochs: int) -> Recipe:
    """Return a recipe with the epochs that `lpfamily.train --resume --epochs` gives it.

    A second stage that was limited by the epochs of the first gets more too. A learning rate that decays
    until the last epoch raises `BadInput`.
    """
    if epochs == recipe.epochs:
        return recipe
    if recipe.recipe != "paper" and recipe.lr_decay == "linear" and recipe.lr_epochs == recipe.epochs:
        raise BadInput(
            f"{flag('epochs')} {epochs}: the learning rate of the {recipe.recipe} recipe falls until its "
            f"last epoch, {recipe.epochs}; start a new run"
        )
    second = recipe.second_epochs
    published = recipes.default(recipe.model, recipe.data, inputs=1, recipe=recipe.recipe)
    if recipe.second_stage == "none":
        second = min(published.second_epochs, epochs)
    elif second == recipe.epochs:
        second = max(second, min(published.second_epochs, epochs))
    return replace(recipe, epochs=epochs, second_epochs=second)


def check_alike(recipe: Recipe, config: Config) -> None:
    """Raise `BadInput` unless a recipe is that of a run, except for the numbers of epochs."""
    given, expected = choices.to_json(recipe), choices.to_json(config.recipe)
    for name in given.keys() - {"epochs", "second_epochs"}:
        before = [raised[name] for raised in config.raised if name in raised]
        if given[name] not in (expected[name], *before):
            raise BadInput(
                f"the run began with {name} = {expected[name]!r}, and the recipe has {given[name]!r}; go on "
                "with the same, or start a new run"
            )


def extended(run: Run, config: Config, recipe: Recipe, dataset: Dataset) -> Recipe:
    """Return the recipe of a run with the epochs of another recipe, or raise `BadInput`. Write nothing."""
    began = config.recipe
    recipe = replace(began, epochs=recipe.epochs, second_epochs=recipe.second_epochs)
    if recipe == began:
        return began
    option = f"{flag('epochs')} {recipe.epochs}"
    limits = ("epochs", "second_epochs") if began.second_stage != "none" else ("epochs",)
    for name in limits:
        if (now := getattr(recipe, name)) < (before := getattr(began, name)):
            raise BadInput(
                f"{flag(name)} {now}: the limit of the run is {before}, and can be raised, not lowered; "
                "leave the option out, or start a new run"
            )
    if config.grid:
        raise BadInput(f"{option}: the choice by --grid depends on the epochs of stage one; start a new run")
    if not run.is_sealed:
        raise BadInput(
            f"{option}: an earlier version began this run, so it cannot get more epochs; start a new run"
        )
    position = Position()
    if run.has(CHECKPOINT):
        position = run.load(began, stages.check(began, dataset)).position
    first, patience = position.first, began.patience
    if first == began.epochs < recipe.epochs and first - position.best < patience:
        raise BadInput(
            f"{option}: epoch {first} was the last of stage one, and its state is gone, as stage two has "
            "begun; start a new run"
        )
    return replace(recipe, monitor=_monitor(began, recipe, dataset, first is not None, option))


def extend(run: Run, began: Recipe, recipe: Recipe) -> None:
    """Give a run the epochs of the recipe that `extended` returned, or complete an earlier call cut short."""
    limits = {name: getattr(recipe, name) for name in RAISED}
    if changed := {name: value for name, value in limits.items() if value != getattr(began, name)}:
        run.raise_limits(changed)
    if "raised" in run.config and not run.has(RESULT):
        run.seal_anew()


def _monitor(began: Recipe, recipe: Recipe, dataset: Dataset, is_second: bool, option: str) -> int:
    """Return a `monitor` with which the recipe checks as often as the run did in the stages begun so far."""
    used = dataset.first(began.examples, began.test_examples)
    train_split, _ = stages.hold_out(used, began.validation)
    counts = {"epochs": len(train_split.x), "second_epochs": len(used.train.x)}

    def intervals(recipe: Recipe) -> list[int]:
        of_stages = [
            stages.check_interval(recipe, count, getattr(recipe, name)) for name, count in counts.items()
        ]
        return of_stages if is_second else of_stages[:1]

    before = intervals(began)
    for each in (recipe, replace(recipe, monitor=before[0])):
        if intervals(each) == before:
            return each.monitor
    raise BadInput(
        f"{option}: stage one checked for catastrophic overfitting every {before[0]} epochs, and stage two "
        f"every {before[1]}, as both were short; start a new run"
    )
