"""Report section II on trained networks: the predicted and measured increases, as a figure and a table."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from lpfamily.experiments.definitions import Chapter, Experiment, Json, Setting
from lpfamily.experiments.networks import NETWORKS, network_notes
from lpfamily.experiments.theory import measure
from lpfamily.experiments.theory.measure import MODELS, NAMES, TOLERANCE, Increase
from lpfamily.report.contents import COLOURS, INK, TEXT, Cell, Item, Plot, Table, columns
from lpfamily.report.drawing import legend_below, plain_logarithm

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LOOKS = {
    "eq4": ("first order (eq. 4)", COLOURS[0], "o"),
    "eq13": ("Hessian (eq. 13)", COLOURS[1], "s"),
    "eq17": ("rank one (eq. 17)", COLOURS[2], "D"),
    "eq20": ("trace (eq. 20)", COLOURS[3], "^"),
    "remark1": ("trace (Remark 1)", COLOURS[3], "^"),
}
"""The label, colour and marker of each of `MODELS`."""


def _panels(result: Json, name: str) -> Iterator[tuple[str, list[Increase], Sequence[str]]]:
    """Yield the panels of a network: a title, the measurements, and the models that predict them."""
    for p, each in result["steps"][name].items():
        yield f"p = {p}", each, MODELS[:4] if p == "2" else MODELS[:3]
    yield "noise", result["noise"][name], MODELS[4:]


def _draw(result: Json, figure: Figure) -> None:
    grid = figure.subplots(len(NAMES), len(measure.EXPONENTS) + 1, sharey=True, sharex="col")
    for row, name in zip(grid, NAMES, strict=True):
        for axes, (title, each, models) in zip(row, _panels(result, name), strict=True):
            sigmas = [one["sigma"] for one in each]
            axes.axhspan(1 - TOLERANCE, 1 + TOLERANCE, color=INK, alpha=0.12, linewidth=0)
            for model in models:
                label, colour, marker = LOOKS[model]
                shown = np.array(measure.ratios(each, model), float)
                style = {"marker": marker, "markersize": 3, "linewidth": 1.3}
                axes.plot(sigmas, shown, color=colour, label=label, **style)
            plain_logarithm(axes, "x")
            plain_logarithm(axes, "y")
            axes.set_ylim(0.03, 3)
            if name == NAMES[0]:
                axes.set_title(title, fontsize=9)
            if name == NAMES[-1]:
                axes.set_xlabel("sigma", fontsize=8)
            axes.tick_params(which="both", labelsize=7)
        row[0].set_ylabel(textwrap.fill(NETWORKS[name].label, 16), fontsize=8)
    figure.supylabel("predicted / measured increase of L", fontsize=9)
    legend_below(figure, 3, 8)


def _limit(increases: Sequence[Increase], model: str) -> str:
    last = measure.holds_to(increases, model)
    return "nowhere" if last is None else f"up to {last:.2g}"


def _reach(result: Json, name: str) -> str:
    """Return up to which sigma the predictions hold for a network, in a sentence."""
    steps = [
        f"p = {p}: {_limit(each, 'eq4')} (eq. 13: {_limit(each, 'eq13')})"
        for p, each in result["steps"][name].items()
    ]
    noise = _limit(result["noise"][name], "remark1")
    return (
        f"{NETWORKS[name].label}, the sigmas at which eq. 4 is within {TOLERANCE:.0%} of the measured "
        f"increase: {'; '.join(steps)}. The trace of Remark 1 is, under noise: {noise}."
    )


def _second_order(result: Json, name: str) -> str:
    """Return what eq. 4, 13, 17 and 20 predict at the paper's sigma, in a sentence."""
    each = next(one for one in result["steps"][name]["2"] if one["sigma"] == 1)
    first, hessian, rank_one, trace = (each["predicted"][model] for model in MODELS[:4])
    shares = [f"{value / each['measured']:.0%}" for value in (first, hessian)]
    terms = [(value - first) / (hessian - first) for value in (rank_one, trace)]
    error = abs(each["trace_error"] / (hessian - first))
    return (
        f"{NETWORKS[name].label}, at p = 2 and sigma 1: eq. 4 predicts {shares[0]} of the increase and eq. "
        f"13 {shares[1]}. The second-order term of eq. 17 is {terms[0]:.2f} times that of eq. 13, and that "
        f"of eq. 20 {terms[1]:.2f} +- {error:.2f} times."
    )


def _finding(_: Setting, result: Json) -> str:
    shares = []
    for name in NAMES:
        each = next(one for one in result["steps"][name]["2"] if one["sigma"] == 1)
        shares.append(f"{each['predicted']['eq4'] / each['measured']:.0%} for {NETWORKS[name].label}")
    return (
        "The step maximises the linearised loss (eq. 4). At p = 2 and sigma 1, it predicts of the measured "
        f"increase of the loss {', '.join(shares)}."
    )


def _report(setting: Setting, result: Json) -> Iterator[Item]:
    sentences = [_reach(result, name) for name in NAMES]
    method = (
        f"Means over the first {result['examples']} MNIST test examples; eq. 20 takes {result['probes']} "
        f"probes, and the noise {result['draws']} pairs of draws. Sigmas are those of the table: a "
        "prediction that holds up to one of them fails at the next."
    )
    numbers = "sigma", "increase of L", *(label for label, _, _ in LOOKS.values())
    shares = "{:.0%}", f"examples within {TOLERANCE:.0%}"
    heads = columns((TEXT, "network", "step"), ("{:.3g}", *numbers), shares)
    rows: list[tuple[Cell, ...]] = []
    for name in NAMES:
        for title, measured, models in _panels(result, name):
            for each in measured:
                predicted = (each["predicted"][model] if model in models else None for model in MODELS)
                row = NETWORKS[name].label, title, each["sigma"], each["measured"]
                rows.append((*row, *predicted, each.get("within")))
    paper = (
        "The paper does not measure its approximation. Eq. 14 replaces the Hessian by g g', of rank one; "
        "this holds on average over labels drawn from the model, and not for a single example."
    )
    networks = network_notes(setting, result["runs"])
    second = (_second_order(result, name) for name in NAMES)
    band = (
        "One row per network, one panel per p and one for Gaussian noise, whose sigma is its standard "
        f"deviation. The grey band is {TOLERANCE:.0%} about 1. At p = 1 and inf, eq. 17 is Remark 2."
    )
    yield Plot(
        "figure-theory",
        "Ratio of the predicted (eq. 4 to 20) to the measured increase of the loss, of sigmoid networks on "
        "MNIST",
        f"Ratio of the predicted to the measured increase of the loss, by sigma. {' '.join(sentences)}",
        lambda figure: _draw(result, figure),
        (7.0, 4.4),
        (*sentences, *second, paper, band, method, *networks),
    )
    title = "Increase of the loss of sigmoid networks on MNIST, measured and predicted by eq. 4 to 20"
    meaning = (
        "Columns: the p of the step (eq. 3), or Gaussian noise; its radius or standard deviation sigma; the "
        "measured increase of the mean loss L, in nats; the increase that each equation predicts; and the "
        f"fraction of examples whose increase eq. 4 predicts to within {TOLERANCE:.0%}."
    )
    yield Table("figure-theory-numbers", title, heads, tuple(rows), (meaning, method, *networks))


CHAPTER = Chapter(
    "How far the first-order theory holds (section II)",
    "The family maximises the linearised loss. This section compares the measured increase of the loss of "
    "trained networks with the increase that eq. 4 and eq. 13 to 20 predict.",
    (Experiment("figure-theory", (measure.THEORY,), _report, finding=_finding),),
)
