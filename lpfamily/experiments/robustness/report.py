"""Robustness said: a table at matched strength, and for each network its error against sigma."""

from __future__ import annotations

import functools
from collections.abc import Iterator

from lpfamily.experiments.networks import NETWORKS
from lpfamily.experiments.pieces import Chapter, Json, Piece, Setting
from lpfamily.experiments.robustness.measure import COMPARED, ROBUSTNESS
from lpfamily.report.contents import TEXT, Item, Plot, Table, columns
from lpfamily.report.plots import robustness_curves
from lpfamily.training.robustness import MULTIPLES, findings

AT = MULTIPLES.index(1.0)


def _report(_: Setting, found: Json) -> Iterator[Item]:
    heads = (f"p = {p}, {what}" for p in ("1", "2", "inf") for what in ("one", "many", "noise"))
    shown = columns((TEXT, "network"), ("{:.1%}", "clean", *heads))
    rows = []
    for name, result in found.items():
        errors = (
            (ball["one_step"][AT], ball["multi_step"][AT], ball["noise"][AT]["mean"])
            for ball in result["balls"].values()
        )
        rows.append((NETWORKS[name].label, result["clean"], *(error for each in errors for error in each)))
    first = found[COMPARED[0]]
    sigmas = ", ".join(f"{ball['sigma'][AT]:.3g} at p = {p}" for p, ball in first["balls"].items())
    notes = (
        f"Test errors of the first {first['examples']} test examples, at the radii {sigmas}: after one step, "
        f"known to be in the ball after up to {first['steps']} steps of ascent, and under Gaussian noise of "
        "that norm.",
        "The networks are those of Table I, of seed 0.",
    )
    yield Table("table-robustness", "Robust errors at matched strength", shown, tuple(rows), notes)
    yield from (_plot(name, result) for name, result in found.items())


def _plot(name: str, result: Json) -> Plot:
    label, ball = NETWORKS[name].label, result["balls"]["2"]
    return Plot(
        f"figure-robustness-{name}",
        f"{label}: error against sigma",
        f"Test error of {label} by the radius sigma of the ball, for p = 1, 2 and inf. At p = 2 and sigma "
        f"{ball['sigma'][AT]:.3g} it is {ball['one_step'][AT]:.1%} after one step, "
        f"{ball['multi_step'][AT]:.1%} after up to {result['steps']} and {ball['noise'][AT]['mean']:.1%} "
        "under noise of the same norm.",
        functools.partial(robustness_curves, result=result),
        (9.0, 3.4),
        tuple(findings(result)),
    )


CHAPTER = Chapter(
    "Robustness, as it is measured today",
    "One step measures the step that a network was trained with. Many steps find what one has "
    "missed: where the two differ much, robustness to one step means nothing.",
    (Piece("figure-robustness", (ROBUSTNESS,), _report),),
)
