"""Plots of runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lpfamily.report.contents import COLOURS, INK
from lpfamily.report.looks import legend_below
from lpfamily.training.files import Json

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def training_curves(figure: Figure, metrics: list[Json], title: str) -> None:
    """Draw on an empty figure the loss, and the errors in training and on held-out examples, by epoch."""
    loss, errors = figure.subplots(1, 2)
    figure.suptitle(title, fontsize=10)
    curves = (
        (loss, 1, "loss", "in training, as the objective sees it", COLOURS[0]),
        (loss, 1, "held_out_loss", "held out before, clean", COLOURS[1]),
        (errors, 100, "error", "in training, as the objective sees it", COLOURS[0]),
        (errors, 100, "validation_error", "held out, clean", COLOURS[1]),
    )
    for axes, unit, name, label, colour in curves:
        lines = [line for line in metrics if name in line]
        if lines:
            epochs, values = [line["epoch"] for line in lines], [unit * line[name] for line in lines]
            marker = "." if len(lines) < 30 else ""
            axes.plot(epochs, values, label=label, color=colour, marker=marker)
    second = [line["epoch"] for line in metrics if line["stage"] == 2]
    for axes in (loss, errors):
        if second:
            axes.axvline(second[0] - 0.5, color=INK, lw=0.8, ls=":", label="second stage")
        axes.legend(fontsize=8)
        axes.set(xlabel="epoch", yscale="log" if axes.dataLim.ymin > 0 else "linear")
        axes.grid()
    loss.set(ylabel="loss (nats)")
    errors.set(ylabel="error (%)")


def robustness_curves(figure: Figure, result: Json) -> None:
    """Draw on an empty figure, for each p, error against sigma, of what `robustness.measure` returns."""
    n, balls = result["examples"], result["balls"]
    all_axes = figure.subplots(1, len(balls), sharey=True, squeeze=False)[0]
    for axes, (p, ball) in zip(all_axes, balls.items(), strict=True):
        for colour, label, errors in (
            (COLOURS[0], "one step", ball["one_step"]),
            (COLOURS[1], f"up to {result['steps']} steps", ball["multi_step"]),
            (COLOURS[2], "noise of the same norm", [each["mean"] for each in ball["noise"]]),
        ):
            mean = np.array(errors)
            spread = np.sqrt(mean * (1 - mean) / n)
            axes.plot(ball["sigma"], 100 * mean, ".-", color=colour, label=label)
            axes.fill_between(
                ball["sigma"], 100 * (mean - spread), 100 * (mean + spread), color=colour, alpha=0.2, lw=0
            )
        if ball["matched"] <= ball["sigma"][-1]:
            axes.axvline(ball["matched"], color=INK, lw=0.8, ls=":", label="sigma of the recipe")
        axes.set(title=f"p = {p}", xlabel="sigma", xlim=(0, None), ylim=(0, 102))
    all_axes[0].set_ylabel("test error (%)")
    legend_below(figure, all_axes[0], 4 if len(balls) > 1 else 2, None)
