"""Measure which p to train with: networks trained in one ball each and attacked in three by `robustness`."""

from __future__ import annotations

import math

from lpfamily import ensemble
from lpfamily.experiments.definitions import Json, Measurement, Setting
from lpfamily.experiments.networks import NETWORKS, RADII, all_finished, of_kinds, recipe_of, result
from lpfamily.training import data, load
from lpfamily.training.progress import Tick
from lpfamily.training.robustness import classifier_of

ATTACKED = (1.0, 2.0, math.inf)
EXAMPLES = {"quick": 100, "paper": 1000}
EFFORT = {"quick": "quick", "paper": "standard"}


def measurement(source: str, cost: float) -> Measurement:
    """Return the measurement on a data set; its result is, by network, a list over seeds.

    Each entry has the outcome of the run, `fooled`, the error in each ball of `ATTACKED` by p, and
    `attacked`, the number of test images that were attacked.
    """
    networks = of_kinds(f"exponents-{source}")

    def seeds(setting: Setting) -> int:
        return setting.seeds or (1 if setting.budget == "quick" else 3)

    def measure(setting: Setting, tick: Tick) -> Json:
        wanted = [(network, seed) for network in networks for seed in range(seeds(setting))]
        folders = all_finished(setting, wanted, lambda done, of, what="": tick(done, 2 * of, what))
        test = data.load(source, setting.data_dir).test.rows(slice(EXAMPLES[setting.budget]))
        radii = {p: (RADII[source][p],) for p in ATTACKED}
        results: Json = {network: [] for network in networks}
        for done, ((network, seed), folder) in enumerate(zip(wanted, folders, strict=True), len(wanted)):
            tick(done, 2 * len(wanted), f"{network}-{seed}, attacked")
            recipe = recipe_of(setting, network, seed)
            classifier = classifier_of(load(folder).trainer(setting.backend, setting.device))
            batches = ensemble.batches(test.x.astype(recipe.dtype), test.labels, 500)
            how = ATTACKED, radii, None, None, EFFORT[setting.budget], seed, False
            attacked = ensemble.measure(classifier, batches, *how)
            fooled = {f"{p:g}": attacked.error(p, radii[p][0]).value for p in ATTACKED}
            more = {"fooled": fooled, "attacked": len(test.x), "passes": recipe.passes}
            results[network].append(result(setting, network, folder) | more)
        return results

    return Measurement(
        f"exponents-{source}", measure, cost, seeds, networks=networks, data=(NETWORKS[networks[0]].data,)
    )


MNIST, CIFAR = measurement("mnist", 5.0), measurement("cifar10", 8.0)
