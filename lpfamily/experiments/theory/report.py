"""Section II on trained networks, said: the figure and the table of what `theory` measures."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from lpfamily.experiments.networks import NETWORKS, network_notes
from lpfamily.experiments.pieces import Chapter, Json, Piece, Setting
from lpfamily.experiments.theory import measure
from lpfamily.experiments.theory.measure import MODELS, NAMES, TOLERANCE, Increase
from lpfamily.report.contents import COLOURS, INK, TEXT, Cell, Item, Plot, Table, columns
from lpfamily.report.looks import legend_below, plain_logarithm

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


def _panels(found: Json, name: str) -> Iterator[tuple[str, list[Increase], Sequence[str]]]:
    """Give what is drawn for a network: a title, the measurements, and the models that speak of them."""
    for p, each in found["steps"][name].items():
        yield f"p = {p}", each, MODELS[:4] if p == "2" else MODELS[:3]
    yield "noise", found["noise"][name], MODELS[4:]


def _draw(found: Json, figure: Figure) -> None:
    grid = figure.subplots(len(NAMES), len(measure.EXPONENTS) + 1, sharey=True, sharex="col")
    for row, name in zip(grid, NAMES, strict=True):
        for axes, (title, each, models) in zip(row, _panels(found, name), strict=True):
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


def _limit(found: Sequence[Increase], model: str) -> str:
    last = measure.holds_to(found, model)
    return "nowhere" if last is None else f"to {last:.2g}"


def _reach(found: Json, name: str) -> str:
    """Return up to which sigma the loss of a network is as predicted, in a sentence."""
    steps = [
        f"at p = {p} {_limit(each, 'eq4')}, and with the Hessian {_limit(each, 'eq13')}"
        for p, each in found["steps"][name].items()
    ]
    noise = _limit(found["noise"][name], "remark1")
    return (
        f"{NETWORKS[name].label}: eq. 4 holds to {TOLERANCE:.0%} up to a sigma: {'; '.join(steps)}. Under "
        f"noise the trace of Remark 1 holds {noise}."
    )


def _second(found: Json, name: str) -> str:
    """Return what eq. 4 and 13 say at the paper's sigma, and how eq. 17 and 20 end."""
    each = next(one for one in found["steps"][name]["2"] if one["sigma"] == 1)
    first, hessian, rank_one, trace = (each["predicted"][model] for model in MODELS[:4])
    shares = [f"{value / each['measured']:.0%}" for value in (first, hessian)]
    terms = [(value - first) / (hessian - first) for value in (rank_one, trace)]
    error = abs(each["trace_error"] / (hessian - first))
    return (
        f"{NETWORKS[name].label}, at p = 2 and sigma 1: eq. 4 says {shares[0]} of the increase and eq. 13 "
        f"{shares[1]}. The second term of eq. 17 is {terms[0]:.2f} times that of eq. 13, and that of eq. 20 "
        f"{terms[1]:.2f} +- {error:.2f} times."
    )


def _finding(_: Setting, found: Json) -> str:
    shares = []
    for name in NAMES:
        each = next(one for one in found["steps"][name]["2"] if one["sigma"] == 1)
        shares.append(f"{each['predicted']['eq4'] / each['measured']:.0%} for {NETWORKS[name].label}")
    return (
        "The linearised loss (eq. 4), which the step maximises, is a part of what the loss increases by. At "
        f"p = 2 and sigma 1: {', '.join(shares)}."
    )


def _report(setting: Setting, found: Json) -> Iterator[Item]:
    said = [_reach(found, name) for name in NAMES]
    method = (
        f"Means over the first {found['examples']} test examples; {found['probes']} probes for eq. 20, "
        f"{found['draws']} pairs of noise. A bound lies between the sigma that is named and the table's next."
    )
    numbers = "sigma", "L increases by", *(label for label, _, _ in LOOKS.values())
    shares = "{:.0%}", f"examples to {TOLERANCE:.0%}"
    heads = columns((TEXT, "network", "step"), ("{:.3g}", *numbers), shares)
    rows: list[tuple[Cell, ...]] = []
    for name in NAMES:
        for title, measured, models in _panels(found, name):
            for each in measured:
                predicted = (each["predicted"][model] if model in models else None for model in MODELS)
                row = NETWORKS[name].label, title, each["sigma"], each["measured"]
                rows.append((*row, *predicted, each.get("within")))
    paper = (
        "The paper does not measure its approximation. In eq. 14 it puts g g', of rank one, for the Hessian, "
        "which holds on average over the model's own labels and not for an example."
    )
    networks = network_notes(setting, found["runs"])
    second = (_second(found, name) for name in NAMES)
    band = f"The band is {TOLERANCE:.0%} about 1. At p = 1 and inf, eq. 17 is Remark 2."
    yield Plot(
        "figure-theory",
        "Increase of the loss that eq. 4 to 20 predict, over the measured one, of sigmoid networks on MNIST",
        f"Predicted over measured increases of the loss, by sigma. {' '.join(said)}",
        lambda figure: _draw(found, figure),
        (7.0, 4.4),
        (*said, *second, paper, band, method, *networks),
    )
    title = "Increase of the loss of sigmoid networks on MNIST, measured and as eq. 4 to 20 predict it"
    yield Table("figure-theory-numbers", title, heads, tuple(rows), (method, *networks))


CHAPTER = Chapter(
    "How far the first-order theory holds (section II)",
    "The family maximises the linearised loss. Here is how much the loss of trained networks does "
    "rise, beside what the terms of eq. 4 and eq. 13 to 20 predict.",
    (Piece("figure-theory", (measure.THEORY,), _report, finding=_finding),),
)
