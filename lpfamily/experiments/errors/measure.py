"""Measure Tables I to V: train the networks of a table over seeds."""

from __future__ import annotations

from lpfamily.experiments.definitions import Json, Measurement, Setting
from lpfamily.experiments.networks import NETWORKS, all_finished, of_kinds, result
from lpfamily.training.progress import Tick


def measurement(name: str, networks: tuple[str, ...], cost: float, *, slow: bool = False) -> Measurement:
    """Return the measurement of the runs of networks; its result is, by network, a list over seeds.

    With the quick budget, networks that are `slow` to train have one seed.
    """

    def seeds(setting: Setting) -> int:
        return setting.seeds or (1 if slow and setting.budget == "quick" else 3)

    def measure(setting: Setting, tick: Tick) -> Json:
        wanted = [(network, seed) for network in networks for seed in range(seeds(setting))]
        outcomes: Json = {network: [] for network in networks}
        for (network, _), folder in zip(wanted, all_finished(setting, wanted, tick), strict=True):
            outcomes[network].append(result(setting, network, folder))
        return outcomes

    return Measurement(name, measure, cost, seeds, networks=networks, data=(NETWORKS[networks[0]].data,))


DENSE = measurement("dense", of_kinds("sigmoid", "relu", "maxout"), 7.0)
CONV = measurement("conv", of_kinds("conv"), 6.0, slow=True)
CIFAR = measurement("cifar", of_kinds("cifar"), 8.0, slow=True)
