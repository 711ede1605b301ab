"""Plots of runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def training_curves(metrics: list[dict[str, Any]], path: Path, title: str) -> None:
    """Write a PNG: the loss, and the errors in training and on held-out examples, by epoch."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    epochs = [line["epoch"] for line in metrics]
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    loss, errors = figure.subplots(1, 2)
    figure.suptitle(title, fontsize=10)
    marker = "." if len(epochs) < 30 else ""
    loss.plot(epochs, [line["loss"] for line in metrics], color="#1f4e79", marker=marker)
    loss.set(xlabel="epoch", ylabel="objective (nats)", yscale="log")
    lines = {
        "error": ("in training, as the objective sees it", "#1f4e79"),
        "validation_error": ("held out, clean", "#c0504d"),
    }
    for name, (label, color) in lines.items():
        if metrics and name in metrics[0]:
            values = [100 * line[name] for line in metrics]
            errors.plot(epochs, values, label=label, color=color, marker=marker)
    errors.set(xlabel="epoch", ylabel="error (%)", yscale="log" if errors.dataLim.ymin > 0 else "linear")
    errors.legend(frameon=False)
    for axes in (loss, errors):
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)
