"""Report the robustness: a table at matched strength, and a figure of error against sigma per network."""

from __future__ import annotations

import functools
from collections.abc import Iterator

from lpfamily.experiments.definitions import Chapter, Experiment, Json, Setting
from lpfamily.experiments.networks import NETWORKS
from lpfamily.experiments.robustness.measure import COMPARED, ROBUSTNESS
from lpfamily.report.contents import TEXT, Item, Plot, Table, columns
from lpfamily.report.plots import robustness_curves
from lpfamily.training.robustness import MULTIPLES, findings

AT = MULTIPLES.index(1.0)


def _report(_: Setting, results: Json) -> Iterator[Item]:
    heads = (f"p = {p}, {what}" for p in ("1", "2", "inf") for what in ("one step", "many steps", "noise"))
    shown = columns((TEXT, "network"), ("{:.1%}", "clean", *heads))
    rows = []
    for name, result in results.items():
        errors = (
            (ball["one_step"][AT], ball["multi_step"][AT], ball["noise"][AT]["mean"])
            for ball in result["balls"].values()
        )
        rows.append((NETWORKS[name].label, result["clean"], *(error for each in errors for error in each)))
    first = results[COMPARED[0]]
    sigmas = ", ".join(f"{ball['sigma'][AT]:.3g} at p = {p}" for p, ball in first["balls"].items())
    notes = (
        f"Columns: the error on the first {first['examples']} test examples, clean, and for each p in the "
        f"ball of radius {sigmas}: after one step (eq. 3), after up to {first['steps']} steps of ascent, "
        "and under Gaussian noise of the same norm. After many steps an example counts as wrong if any "
        "attack has found an eps in the ball that makes it wrong, so this error is a lower bound of the "
        "error in the ball.",
        "The networks are those of Table I with seed 0.",
    )
    title = (
        "Robustness. Test error on MNIST of the networks of Table I in Lp balls of matched radii: after one "
        "step, after many, and under noise of the same norm"
    )
    yield Table("table-robustness", title, shown, tuple(rows), notes)
    yield from (_plot(name, result) for name, result in results.items())


def _finding(_: Setting, results: Json) -> str:
    name = COMPARED[-1]
    ours, plain = (results[each]["balls"]["2"] for each in (name, NETWORKS[name].plain))
    return (
        f"In the L2 ball of radius {ours['sigma'][AT]:g}, the test error of {NETWORKS[name].label} is "
        f"{ours['one_step'][AT]:.1%} after one step and {ours['multi_step'][AT]:.1%} after up to "
        f"{results[name]['steps']} steps; without the perturbation in training it is "
        f"{plain['one_step'][AT]:.1%} and {plain['multi_step'][AT]:.1%}."
    )


def _plot(name: str, result: Json) -> Plot:
    label, ball = NETWORKS[name].label, result["balls"]["2"]
    return Plot(
        f"figure-robustness-{name}",
        f"{label} on MNIST: test error against the radius sigma of the Lp ball",
        f"Test error of {label} by the radius sigma of the ball, for p = 1, 2 and inf. At p = 2 and sigma "
        f"{ball['sigma'][AT]:.3g} it is {ball['one_step'][AT]:.1%} after one step, "
        f"{ball['multi_step'][AT]:.1%} after up to {result['steps']} and {ball['noise'][AT]['mean']:.1%} "
        "under noise of the same norm.",
        functools.partial(robustness_curves, result=result),
        (9.0, 3.4),
        (
            f"Errors on the first {result['examples']} test examples, with a band of one standard error; "
            "one panel per p. The dotted line is the sigma of the recipe, converted to this p; plain "
            "training does not use it.",
            *(f"{each[0].upper()}{each[1:]}." for each in findings(result)),
        ),
    )


CHAPTER = Chapter(
    "Robustness, as it is measured today",
    "An attack of one step repeats the step that the network was trained with. Many steps find what one step "
    "misses: where the two errors differ much, robustness to one step means nothing.",
    (Experiment("figure-robustness", (ROBUSTNESS,), _report, finding=_finding),),
)
