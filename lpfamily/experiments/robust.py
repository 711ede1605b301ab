"""Robustness of the networks of Table I, as the field measures it today: error against sigma."""

from __future__ import annotations

from lpfamily.experiments.networks import NETWORKS, all_finished
from lpfamily.experiments.pieces import Json, Measurement, Piece, Setting
from lpfamily.report.contents import Column, Plot, Table
from lpfamily.report.plots import robustness_curves
from lpfamily.training import data, load
from lpfamily.training.progress import Tick, silent
from lpfamily.training.recipes import matched_radius
from lpfamily.training.robustness import MULTIPLES, findings, measure

COMPARED = ("sigmoid-plain", "sigmoid-p2", "maxout-plain", "maxout-pinf", "maxout-p2")
EXAMPLES = {"quick": 200, "paper": 1000}
STEPS = {"quick": 10, "paper": 20}


def _measure(setting: Setting, tick: Tick) -> Json:
    folders = all_finished(setting, [(name, 0) for name in COMPARED], silent)
    found: Json = {}
    for index, (name, folder) in enumerate(zip(COMPARED, folders, strict=True)):
        trained = load(folder)
        test = data.load(trained.recipe.data, setting.data_dir).test

        def advance(done: float, of: float, what: str = "", before: int = index, name: str = name) -> None:
            tick(before + done / of, len(COMPARED), f"{name}, {what}")

        first = slice(EXAMPLES[setting.budget])
        matched = matched_radius(trained.recipe, 2.0, test.x.shape[1])  # so that all have the same radii
        found[name] = measure(
            trained.trainer(setting.backend, setting.device),
            test.x[first],
            test.labels[first],
            trained.recipe,
            multiples=[multiple / matched for multiple in MULTIPLES],
            steps=STEPS[setting.budget],
            seed=trained.recipe.seed,
            tick=advance,
        )
    return found


def _report(setting: Setting, found: Json) -> list[Table | Plot]:
    at = MULTIPLES.index(1.0)
    columns = [Column("network"), Column("clean", "{:.1%}")]
    columns += [
        Column(f"p = {p}, {what}", "{:.1%}") for p in ("1", "2", "inf") for what in ("one", "many", "noise")
    ]
    rows = []
    for name, result in found.items():
        row: list[str | float | None] = [NETWORKS[name].label, result["clean"]]
        for ball in result["balls"].values():
            row += [ball["one_step"][at], ball["multi_step"][at], ball["noise"][at]["mean"]]
        rows.append(tuple(row))
    first = found[COMPARED[0]]
    sigmas = ", ".join(f"{ball['sigma'][at]:.3g} at p = {p}" for p, ball in first["balls"].items())
    notes = (
        f"Test errors of the first {first['examples']} test examples, at the radii {sigmas}: after one step, "
        f"known to be in the ball after up to {first['steps']} steps of ascent, and under Gaussian noise of "
        "that norm.",
        "The networks are those of Table I, of seed 0.",
    )
    table = Table("table-robustness", "Robust errors at matched strength", tuple(columns), tuple(rows), notes)
    return [table, *(_plot(name, result, at) for name, result in found.items())]


def _plot(name: str, result: Json, at: int) -> Plot:
    label, ball = NETWORKS[name].label, result["balls"]["2"]
    return Plot(
        f"figure-robustness-{name}",
        f"{label}: error against sigma",
        f"Test error of {label} by the radius sigma of the ball, for p = 1, 2 and inf. At p = 2 and sigma "
        f"{ball['sigma'][at]:.3g} it is {ball['one_step'][at]:.1%} after one step, "
        f"{ball['multi_step'][at]:.1%} after up to {result['steps']} and {ball['noise'][at]['mean']:.1%} "
        "under noise of the same norm.",
        lambda figure: robustness_curves(figure, result),
        (9.0, 3.4),
        tuple(findings(result)),
    )


PIECES = (
    Piece("figure-robustness", (Measurement("robustness", _measure, 2.0, networks=COMPARED),), _report),
)
