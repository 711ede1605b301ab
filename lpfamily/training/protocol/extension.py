"""More epochs for a run that has begun, where a run of so many would have done the same until now.

The rates of a step do not look at how many epochs there may be. What does: how often a short run looks for
catastrophic overfitting, which it goes on to do as often; the choice among the combinations of a grid; and
the last epoch of a first stage, when the second has taken its place.
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
    """Return what `lpfamily.train --epochs` makes of a recipe that has fewer.

    A second stage that the first one's epochs limit has more too. A learning rate that falls until the last
    epoch is `BadInput`.
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
    """Raise `BadInput` unless a recipe is that of a run, but for its epochs."""
    found, expected = choices.to_json(recipe), choices.to_json(config.recipe)
    for name in found.keys() - {"epochs", "second_epochs"}:
        before = [raised[name] for raised in config.raised if name in raised]
        if found[name] not in (expected[name], *before):
            raise BadInput(
                f"the run began with {name} = {expected[name]!r}, and the recipe has {found[name]!r}; go on "
                "with the same, or start a new run"
            )


def extended(run: Run, config: Config, recipe: Recipe, dataset: Dataset) -> Recipe:
    """Return the recipe of a run with the epochs of another, or raise `BadInput`; nothing is written."""
    began = config.recipe
    recipe = replace(began, epochs=recipe.epochs, second_epochs=recipe.second_epochs)
    if recipe == began:
        return began
    option = f"{flag('epochs')} {recipe.epochs}"
    limits = ("epochs", "second_epochs") if began.second_stage != "none" else ("epochs",)
    for name in limits:
        if (now := getattr(recipe, name)) < (before := getattr(began, name)):
            raise BadInput(
                f"{flag(name)} {now}: the run may have {before}, and can be given more, not fewer; leave it "
                "out, or start a new run"
            )
    if config.grid:
        raise BadInput(f"{option}: the choice by --grid depends on the epochs of stage one; start a new run")
    if not run.is_sealed:
        raise BadInput(f"{option}: an earlier version began this run, and it stays as it is; start a new run")
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
    """Give a run the epochs that `extended` has returned, or take up where that was stopped by a kill."""
    limits = {name: getattr(recipe, name) for name in RAISED}
    if changed := {name: value for name, value in limits.items() if value != getattr(began, name)}:
        run.raise_limits(changed)
    if "raised" in run.config and not run.has(RESULT):
        run.seal_anew()


def _monitor(began: Recipe, recipe: Recipe, dataset: Dataset, is_second: bool, option: str) -> int:
    """Return the `monitor` by which a recipe looks as often as the run has, in the stages that have begun."""
    kept = dataset.first(began.examples, began.test_examples)
    held_in, _ = stages.hold_out(kept, began.validation)
    counts = {"epochs": len(held_in.x), "second_epochs": len(kept.train.x)}

    def every(recipe: Recipe) -> list[int]:
        found = [stages.looks(recipe, count, getattr(recipe, name)) for name, count in counts.items()]
        return found if is_second else found[:1]

    before = every(began)
    for each in (recipe, replace(recipe, monitor=before[0])):
        if every(each) == before:
            return each.monitor
    raise BadInput(
        f"{option}: stage one looked for catastrophic overfitting every {before[0]} epochs, and stage two "
        f"every {before[1]}, as they were to be short; start a new run"
    )
