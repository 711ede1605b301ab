"""Robustness measured: the networks of Table I, of seed 0, within balls whose strength is matched."""

from __future__ import annotations

from lpfamily.experiments.networks import all_finished, of_kinds
from lpfamily.experiments.pieces import Json, Measurement, Setting
from lpfamily.training import data, load, robustness
from lpfamily.training.progress import Tick, silent
from lpfamily.training.recipes import matched_radius

COMPARED = of_kinds("sigmoid", "maxout")
EXAMPLES = {"quick": 200, "paper": 1000}
STEPS = {"quick": 10, "paper": 20}


def measure(setting: Setting, tick: Tick) -> Json:
    """Return by network what `robustness.measure` finds."""
    folders = all_finished(setting, [(name, 0) for name in COMPARED], silent)
    found: Json = {}
    for index, (name, folder) in enumerate(zip(COMPARED, folders, strict=True)):
        trained = load(folder)
        test = data.load(trained.recipe.data, setting.data_dir).test

        def advance(done: float, of: float, what: str = "", before: int = index, name: str = name) -> None:
            tick(before + done / of, len(COMPARED), f"{name}, {what}")

        first = slice(EXAMPLES[setting.budget])
        matched = matched_radius(trained.recipe, 2.0, test.x.shape[1])  # so that all have the same radii
        found[name] = robustness.measure(
            trained.trainer(setting.backend, setting.device),
            test.x[first],
            test.labels[first],
            trained.recipe,
            multiples=[multiple / matched for multiple in robustness.MULTIPLES],
            steps=STEPS[setting.budget],
            seed=trained.recipe.seed,
            tick=advance,
        )
    return found


ROBUSTNESS = Measurement("robustness", measure, 2.0, networks=COMPARED)
