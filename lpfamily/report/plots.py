"""Plots of runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lpfamily.report.contents import COLOURS, INK

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def training_curves(metrics: list[dict[str, Any]], path: Path, title: str) -> None:
    """Write a PNG: the loss, and the errors in training and on held-out examples, by epoch."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    loss, errors = figure.subplots(1, 2)
    figure.suptitle(title, fontsize=10)
    curves = (
        (loss, 1, "loss", "in training, as the objective sees it", "#1f4e79"),
        (loss, 1, "held_out_loss", "held out before, clean", "#c0504d"),
        (errors, 100, "error", "in training, as the objective sees it", "#1f4e79"),
        (errors, 100, "validation_error", "held out, clean", "#c0504d"),
    )
    for axes, unit, name, label, color in curves:
        lines = [line for line in metrics if name in line]
        if lines:
            epochs, values = [line["epoch"] for line in lines], [unit * line[name] for line in lines]
            marker = "." if len(lines) < 30 else ""
            axes.plot(epochs, values, label=label, color=color, marker=marker)
    second = [line["epoch"] for line in metrics if line["stage"] == 2]
    for axes in (loss, errors):
        if second:
            axes.axvline(second[0] - 0.5, color="0.6", linestyle=":", label="second stage")
        axes.legend(frameon=False, fontsize=8)
        axes.set(xlabel="epoch", yscale="log" if axes.dataLim.ymin > 0 else "linear")
    loss.set(ylabel="loss (nats)")
    errors.set(ylabel="error (%)")
    for axes in (loss, errors):
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)


def robustness_curves(figure: Figure, result: dict[str, Any]) -> None:
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
    handles, names = all_axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=4 if len(balls) > 1 else 2)
