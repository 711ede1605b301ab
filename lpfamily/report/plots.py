"""Plots of runs, and the parts that all plots of errors share."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from lpfamily.report.contents import COLOURS, INK
from lpfamily.report.drawing import legend_below, plain_logarithm
from lpfamily.training.files import Json
from lpfamily.training.recipes import Recipe

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ONE_STEP, MANY_STEPS, NOISE, CLEAN, TRAINING = (COLOURS[k] for k in (0, 1, 2, 3, 5))
"""The colour of each error in all plots."""
TRAINING_SIZE = (9.0, 4.0)
"""The size of `training_curves`, in inches."""
SIGMA = "sigma (units of the input)"


def training_title(recipe: Recipe) -> str:
    """Return the title of training curves: model, data and objective."""
    ball = f"(p = {recipe.p:g}, sigma = {recipe.sigma:.4g})"
    how = {
        "plain": "without perturbations",
        "noise": f"under Gaussian noise (sigma = {recipe.sigma:.4g})",
        "perturb": f"on perturbed inputs {ball}",
        "penalty": f"with the gradient penalty {ball}",
        "trades": f"by TRADES {ball}",
    }[recipe.objective]
    return f"{recipe.model} on {recipe.short_data}, trained {how}"


def training_curves(figure: Figure, metrics: Sequence[Json], monitor_steps: int) -> None:
    """Draw on an empty figure the errors by epoch, and next to them the loss.

    The clean held-out error is over all held-out examples. In the epochs that were monitored for catastrophic
    overfitting there is also the error over a few of them, after one step and after up to `monitor_steps`.
    """
    errors, loss = figure.subplots(1, 2, width_ratios=(3, 2))
    in_training = "in training, on the objective's inputs"
    curves = (
        # when no example is held out any more, the clean error of the monitored ones
        (errors, 100, ("validation_error", "monitor_clean"), "held out, clean", CLEAN),
        (errors, 100, ("monitor_one_step",), "held out, after one step", ONE_STEP),
        (errors, 100, ("monitor_multi_step",), f"held out, after up to {monitor_steps} steps", MANY_STEPS),
        (errors, 100, ("error",), in_training, TRAINING),
        (loss, 1, ("held_out_loss",), "held out, clean", CLEAN),
        (loss, 1, ("loss",), in_training, TRAINING),
    )
    for (axes, unit, names, label, colour), stage in itertools.product(curves, (1, 2)):
        points = [
            (line["epoch"], unit * next(line[name] for name in names if name in line))
            for line in metrics
            if line["stage"] == stage and any(name in line for name in names)
        ]
        if points:
            marker = "." if len(points) < 30 else ""
            axes.plot(*np.transpose(points), label=label, color=colour, marker=marker)
    second = [line["epoch"] for line in metrics if line["stage"] == 2]
    for axes in (errors, loss):
        _scale(axes)
        if second:
            axes.axvline(second[0] - 0.5, color=INK, lw=0.8, ls=":", label="second stage, on all examples")
        axes.set_xlabel("epoch")
        axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
        axes.grid()
    errors.set_ylabel("error (%)")
    loss.set_ylabel("loss (nats)")
    legend_below(figure, 2)


def _scale(axes: Axes) -> None:
    """Choose a logarithmic scale if the positive values span a decade, else a linear scale from zero."""
    values = np.concatenate([[], *(line.get_ydata() for line in axes.get_lines())])
    positive = values[values > 0]
    if len(positive) and positive.max() >= 10 * positive.min():
        plain_logarithm(axes, "y", linear_to=0.0 if len(positive) == len(values) else positive.min())
    else:
        axes.set_ylim(0, 1.05 * max(values, default=1) or 1)


def panels(figure: Figure, balls: Sequence[str]) -> Mapping[str, Axes]:
    """Return axes for errors against sigma, side by side on an empty figure, by p."""
    row = figure.subplots(1, len(balls), sharey=True, squeeze=False)[0]
    for axes, p in zip(row, balls, strict=True):
        axes.set(title=f"p = {p}", xlabel=SIGMA)
    row[0].set_ylabel("test error (%)")
    return dict(zip(balls, row, strict=True))


def panels_size(balls: Sequence[str]) -> tuple[float, float]:
    """Return the size of a figure of `panels`, in inches."""
    return 3.0 * len(balls) + 1, 3.6


def band(
    axes: Axes, sigmas: ArrayLike, errors: ArrayLike, n: int, colour: str, label: str, line: str = ".-"
) -> None:
    """Draw errors in percent with a band of one standard error; errors are fractions of n examples."""
    mean = np.asarray(errors)
    spread = np.sqrt(mean * (1 - mean) / n)
    axes.plot(sigmas, 100 * mean, line, ms=5 if line == ".-" else 4, color=colour, label=label)
    axes.fill_between(sigmas, 100 * (mean - spread), 100 * (mean + spread), color=colour, alpha=0.2, lw=0)
    axes.set(xlim=(0, None), ylim=(0, 102))


def robustness_title(recipe: Recipe, examples: int) -> str:
    """Return the title of the errors in balls of a network trained by a recipe."""
    return f"{training_title(recipe)}: error in Lp balls of radius sigma, {examples} test examples"


def robustness_curves(figure: Figure, result: Json) -> None:
    """Draw on an empty figure, for each p, error against sigma; `result` is that of `robustness.measure`."""
    balls = result["balls"]
    for p, axes in panels(figure, list(balls)).items():
        ball = balls[p]
        for colour, label, errors in (
            (ONE_STEP, "one step", ball["one_step"]),
            (MANY_STEPS, f"up to {result['steps']} steps", ball["multi_step"]),
            (NOISE, "noise of the same norm", [each["mean"] for each in ball["noise"]]),
        ):
            band(axes, ball["sigma"], errors, result["examples"], colour, label)
        if ball["matched"] <= ball["sigma"][-1]:
            axes.axvline(ball["matched"], color=INK, lw=0.8, ls=":", label="sigma of the recipe")
    legend_below(figure, 4 if len(balls) > 2 else 2)
