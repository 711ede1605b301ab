"""Measure the robustness of the networks of Table I with seed 0, in balls of matched strength."""

from __future__ import annotations

from lpfamily.experiments.definitions import Json, Measurement, Setting
from lpfamily.experiments.networks import of_kinds, open_networks, recipe_of
from lpfamily.training import robustness
from lpfamily.training.evaluation import ONE_STEP
from lpfamily.training.progress import Tick, silent
from lpfamily.training.recipes import matched_radius

COMPARED = of_kinds("sigmoid", "maxout")
EXAMPLES = {"quick": 200, "paper": 1000}
STEPS = {"quick": 10, "paper": 20}


def measure(setting: Setting, tick: Tick) -> Json:
    """Return the result of `robustness.measure` for each network."""
    trainers, _, test = open_networks(setting, COMPARED, silent)
    first = slice(EXAMPLES[setting.budget])
    results: Json = {}
    for index, (name, trainer) in enumerate(trainers.items()):

        def advance(done: float, of: float, what: str = "", before: int = index, name: str = name) -> None:
            tick(before + done / of, len(COMPARED), f"{name}, {what}")

        recipe = recipe_of(setting, name)
        inputs = test.x.shape[1]
        matched = matched_radius(recipe, 2.0, inputs)  # the same radii for all networks
        multiples = [multiple / matched for multiple in robustness.MULTIPLES]
        results[name] = robustness.measure(
            trainer,
            test.x[first],
            test.labels[first],
            recipe,
            robustness.matched_radii(recipe, ONE_STEP, multiples, inputs),
            steps=STEPS[setting.budget],
            seed=recipe.seed,
            tick=advance,
        )
    return results


ROBUSTNESS = Measurement("robustness", measure, 2.0, networks=COMPARED)
