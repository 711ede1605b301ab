"""Plots of runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any


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
