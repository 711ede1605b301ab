"""Measure section II on trained networks: the increase of the loss, and its prediction by eq. 4 to 20."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NotRequired, TypedDict

import numpy as np

from lpfamily.curvature import Loss, hutchinson, loss_of, measure
from lpfamily.experiments.definitions import Json, Measurement, Setting
from lpfamily.experiments.networks import open_networks
from lpfamily.training.networks import Floats
from lpfamily.training.progress import Tick

NAMES = ("sigmoid-plain", "sigmoid-p2")
EXPONENTS = (1.0, 2.0, math.inf)
LENGTHS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0)
"""The L2 norms of the steps."""
STDS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0)
"""The standard deviations of the noise; its L2 norm is sqrt(inputs) times as large."""
TOLERANCE = 0.1
MODELS = ("eq4", "eq13", "eq17", "eq20", "remark1")


class Increase(TypedDict):
    """How much the mean loss rises at a sigma: `measured`, and `predicted` by each model."""

    sigma: float
    measured: float
    predicted: dict[str, float]
    within: NotRequired[float]
    """The fraction of examples whose increase eq. 4 predicts to within `TOLERANCE`."""
    trace_error: NotRequired[float | None]
    """The standard error of the term that eq. 20 adds to eq. 4, from the probes; None for a single probe."""


def radii(p: float, inputs: int) -> list[float]:
    """Return the sigmas at which eq. 3's step of p = 1, 2 or inf has the L2 norms `LENGTHS`.

    At p = inf all entries of the step are sigma; at p = 1 one entry is, and sigma is the L2 norm.
    """
    return [length / math.sqrt(inputs) if p == math.inf else length for length in LENGTHS]


def first_to_second(loss: Loss, x: Floats, p: float, sigmas: Sequence[float], probes: int) -> list[Increase]:
    """Return by sigma the increase of the loss after eq. 3's step, and the predictions of eq. 4 to 20."""
    increases: list[Increase] = []
    for each in measure(loss, x, [p], sigmas, probes=probes, draws=1):
        increase, gaps = each.perturbed - each.terms.loss, each.gaps()
        spread = np.sqrt(np.sum(np.square(each.terms.trace_error, dtype=np.float64))) / len(x)
        increases.append(
            {
                "sigma": each.sigma,
                "measured": _mean(increase),
                "predicted": {model: _mean(increase + gaps[model]) for model in MODELS[:4]},
                "within": float(np.mean(np.abs(gaps["eq4"]) <= TOLERANCE * np.abs(increase))),
                "trace_error": float(spread) if probes > 1 else None,
            }
        )
    return increases


def noise_to_trace(loss: Loss, x: Floats, stds: Sequence[float], draws: int) -> list[Increase]:
    """Return by standard deviation E L(x + eta) - L(x), `measured`, and sigma^2/2 Tr H, `predicted`.

    Both are means over the examples and over the same `draws` of eta and -eta: Tr H is E eta' H eta /
    sigma^2. They therefore differ by the terms of the loss beyond the second order, not by the chance of the
    draws.
    """
    eta = np.random.default_rng(0).standard_normal((draws, *x.shape)).astype(x.dtype)
    trace, _ = hutchinson(lambda v: loss.hessian_products(x, v), eta)
    clean = loss.losses(x)
    increases: list[Increase] = []
    for std in stds:
        pairs = [(loss.losses(x + std * each) + loss.losses(x - std * each)) / 2 for each in eta]
        measured = float(np.mean([_mean(pair - clean) for pair in pairs]))
        predicted = {"remark1": std**2 / 2 * _mean(trace)}
        increases.append({"sigma": std, "measured": measured, "predicted": predicted})
    return increases


def ratios(increases: Sequence[Increase], model: str) -> list[float | None]:
    """Return the ratios predicted / measured of a model; None where the loss does not rise."""
    return [
        each["predicted"][model] / each["measured"] if each["measured"] > 0 else None for each in increases
    ]


def holds_to(increases: Sequence[Increase], model: str) -> float | None:
    """Return the largest sigma up to which all ratios are 1 to within `TOLERANCE`; None if there is none."""
    last = None
    for each, ratio in zip(increases, ratios(increases, model), strict=True):
        if ratio is None or abs(ratio - 1) > TOLERANCE:
            break
        last = float(each["sigma"])
    return last


def _mean(values: Floats) -> float:
    return float(np.mean(values, dtype=np.float64))


def measure_theory(setting: Setting, tick: Tick) -> Json:
    """Return by network `first_to_second` of each p, and `noise_to_trace`."""
    trainers, outcomes, test = open_networks(setting, NAMES, tick)
    examples, probes, draws = (300, 64, 16) if setting.budget == "quick" else (1000, 128, 32)
    x, labels = test.x[:examples], test.labels[:examples]
    steps, noise = {}, {}
    for done, (name, trainer) in enumerate(trainers.items()):
        tick(done, len(trainers), name)
        loss = loss_of(trainer, labels)
        steps[name] = {
            f"{p:g}": first_to_second(loss, x, p, radii(p, x.shape[1]), probes if p == 2 else 1)
            for p in EXPONENTS
        }
        noise[name] = noise_to_trace(loss, x, STDS, draws)
    counts = {"examples": len(x), "probes": probes, "draws": draws}
    return {"runs": outcomes, **counts, "steps": steps, "noise": noise}


THEORY = Measurement("theory", measure_theory, 0.4, networks=NAMES)
