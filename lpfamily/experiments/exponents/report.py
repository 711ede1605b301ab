"""Which p, said: a table for each data set."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from lpfamily.experiments.errors.report import mean_and_deviation, resolution
from lpfamily.experiments.exponents.measure import ATTACKED, CIFAR, EFFORT, MNIST
from lpfamily.experiments.networks import NETWORKS, RADII, cut
from lpfamily.experiments.pieces import Chapter, Json, Measurement, Piece, Setting
from lpfamily.report.contents import PERCENT, TEXT, Cell, Item, Table, columns

STD = "0.3"
BALLS = tuple(f"{p:g}" for p in ATTACKED)


def _of(run: Json) -> dict[str, float]:
    """Return the errors of a run by column: in the balls, in the worst of them for each, clean and noisy."""
    fooled = [run["fooled"][p] for p in BALLS]
    return dict(zip(BALLS, fooled, strict=True)) | {
        "worst": max(fooled),
        "clean": run["clean"],
        "noise": run["noise"][STD]["mean"],
    }


def _mean_and_error(runs: Sequence[Json], column: str) -> tuple[float, float]:
    """Return a mean over seeds and its standard error; of one seed that of the number of images."""
    values = [_of(run)[column] for run in runs]
    mean, deviation = mean_and_deviation(values)
    examples = runs[0]["attacked" if column in (*BALLS, "worst") else "test_examples"]
    return mean, resolution(mean, examples) if deviation is None else deviation / math.sqrt(len(values))


def _table(name: str, data: str, source: str, measurement: Measurement) -> Piece:
    radii = RADII[source]
    sizes = ", ".join(f"{radii[p]:g} at p = {p:g}" for p in ATTACKED)
    heads = {"clean": "clean", **{p: f"p = {p}" for p in BALLS}, "worst": "worst ball", "noise": f"std {STD}"}

    def report(setting: Setting, found: Json) -> Iterator[Item]:
        shown = columns(
            (TEXT, "training"),
            *((PERCENT, head, "standard error") for head in heads.values()),
            ("{:.2g}", "passes of plain"),
        )
        rows: list[tuple[Cell, ...]] = []
        for network, runs in found.items():
            errors = [number for column in heads for number in _mean_and_error(runs, column)]
            passes = runs[0]["passes"] / found[f"{source}-plain"][0]["passes"]
            rows.append((NETWORKS[network].label, *errors, passes))
        first = next(iter(found.values()))
        notes = [
            f"Test errors of dense networks of rectifiers, 400-400, after 15 epochs. The balls have the "
            f"radii {sizes}: each is 1.5 times the median distance of the plain network's test images to an "
            f'error. The attack is "{EFFORT[setting.budget]}" of robustness, without a box, on the first '
            f"{first[0]['attacked']:,} test images; noise and clean errors are of "
            f"{first[0]['test_examples']:,}. Seeds: {len(first)}.",
            "One step trains on L(x + eps) with eq. 3's perturbation of the radius of its p. PGD training "
            "and TRADES (beta 6) begin at a random point of the ball, and take as many passes as the several "
            "steps. Passes are counted in those of plain training.",
        ]
        if setting.budget == "quick":
            notes.append(cut(found))
        title = f"Which p to train with, on {data}. Test errors in balls of three p, by training"
        yield Table(name, title, shown, tuple(rows), tuple(notes))

    def finding(setting: Setting, found: Json) -> str:
        worst = {network: _mean_and_error(runs, "worst")[0] for network, runs in found.items()}
        one_step = [f"{source}-p{p:g}" for p in radii]
        best, among = min(worst, key=worst.__getitem__), min(one_step, key=worst.__getitem__)
        plain = worst[f"{source}-plain"]
        return (
            f"In the worst of three balls on {data}, {NETWORKS[best].label}, has the least error, "
            f"{worst[best]:.2%}; of one step that is {NETWORKS[among].label}, {worst[among]:.2%}. Trained "
            f"plain it is {plain:.2%}."
        )

    return Piece(name, (measurement,), report, finding=finding)


CHAPTER = Chapter(
    "Which p should I train with?",
    "Networks alike in all but what they are trained on, attacked in balls of p = 1, 2 and inf whose radii "
    "are of the same strength against the plain network.",
    (
        _table("table-p", "MNIST", "mnist", MNIST),
        _table("table-p-cifar10", "CIFAR-10, whitened", "cifar10", CIFAR),
    ),
)
