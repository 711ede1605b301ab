"""Report which p to train with: one table per data set."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from lpfamily.experiments.definitions import Chapter, Experiment, Json, Measurement, Setting
from lpfamily.experiments.errors.report import mean_and_deviation, resolution
from lpfamily.experiments.exponents.measure import ATTACKED, CIFAR, EFFORT, MNIST
from lpfamily.experiments.networks import NETWORKS, RADII, budget_note
from lpfamily.report.contents import PERCENT, TEXT, Cell, Item, Table, columns

STD = "0.3"
BALLS = tuple(f"{p:g}" for p in ATTACKED)


def _errors_of(run: Json) -> dict[str, float]:
    """Return the errors of a run by column: in each ball, in the worst of them, clean and under noise."""
    fooled = [run["fooled"][p] for p in BALLS]
    return dict(zip(BALLS, fooled, strict=True)) | {
        "worst": max(fooled),
        "clean": run["clean"],
        "noise": run["noise"][STD]["mean"],
    }


def _mean_and_error(runs: Sequence[Json], column: str) -> tuple[float, float]:
    """Return the mean over seeds and its standard error; with one seed, that of an error over the images."""
    values = [_errors_of(run)[column] for run in runs]
    mean, deviation = mean_and_deviation(values)
    examples = runs[0]["attacked" if column in (*BALLS, "worst") else "test_examples"]
    return mean, resolution(mean, examples) if deviation is None else deviation / math.sqrt(len(values))


def _table(name: str, data: str, source: str, measurement: Measurement) -> Experiment:
    radii = RADII[source]
    sizes = ", ".join(f"{radii[p]:g} at p = {p:g}" for p in ATTACKED)
    heads = {"clean": "clean", **{p: f"p = {p}" for p in BALLS}, "worst": "worst ball", "noise": f"std {STD}"}

    def report(setting: Setting, results: Json) -> Iterator[Item]:
        shown = columns(
            (TEXT, "training"),
            *((PERCENT, head, "standard error") for head in heads.values()),
            ("{:.2g}", "passes relative to plain"),
        )
        rows: list[tuple[Cell, ...]] = []
        for network, runs in results.items():
            errors = [number for column in heads for number in _mean_and_error(runs, column)]
            passes = runs[0]["passes"] / results[f"{source}-plain"][0]["passes"]
            rows.append((NETWORKS[network].label, *errors, passes))
        first = next(iter(results.values()))
        notes = [
            "Each row is a dense ReLU network of two layers of 400 units, trained for 15 epochs. Columns: "
            f"the clean test error; the error in the ball of p = 1, 2 and inf, of radius {sizes}; the error "
            "in the worst of these balls; the error under Gaussian noise of standard deviation (std) "
            f"{STD}; each a mean over seeds ({len(first)}) with its standard error. The last column is the "
            "cost of training, in forward and backward passes relative to plain training, which is on "
            "clean inputs alone.",
            f"Each radius is 1.5 times the median of the smallest perturbations that fool the plain network. "
            f"The attack is `lpfamily.robustness` with effort "
            f'"{EFFORT[setting.budget]}" and without bounds on x, on the first {first[0]["attacked"]:,} test '
            f"images; clean and noisy errors are those of {first[0]['test_examples']:,} test images.",
            "One step trains on L(x + eps) with the perturbation of eq. 3 and the radius of its p. PGD "
            "training and TRADES (beta 6) begin at a random point of the ball, and take as many passes as "
            "training on 5 Frank-Wolfe steps.",
        ]
        if setting.budget == "quick":
            notes.append(budget_note(results))
        title = f"Which p to train with, on {data}. Test error of dense networks in Lp balls, by training"
        yield Table(name, title, shown, tuple(rows), tuple(notes))

    def finding(setting: Setting, results: Json) -> str:
        worst = {network: _mean_and_error(runs, "worst")[0] for network, runs in results.items()}
        one_step = [f"{source}-p{p:g}" for p in radii]
        best, among = min(worst, key=worst.__getitem__), min(one_step, key=worst.__getitem__)
        plain = worst[f"{source}-plain"]
        return (
            f"On {data}, the lowest error in the worst of three balls is {worst[best]:.2%}, after training "
            f'with "{NETWORKS[best].label}"; the lowest after training on one step is {worst[among]:.2%} '
            f'("{NETWORKS[among].label}"), and plain training leaves {plain:.2%}.'
        )

    return Experiment(name, (measurement,), report, finding=finding)


CHAPTER = Chapter(
    "Which p should I train with?",
    "Networks that differ only in their training objective, attacked in the balls of p = 1, 2 and inf. The "
    "three radii are equally strong against the plain network.",
    (
        _table("table-p", "MNIST", "mnist", MNIST),
        _table("table-p-cifar10", "CIFAR-10, whitened", "cifar10", CIFAR),
    ),
)
