"""What `lpfamily.robustness` has measured, as curves and as a page with its files."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lpfamily.measured import PARTS, Robustness
from lpfamily.report import page
from lpfamily.report.contents import COLOURS, PERCENT, Cell, Column, Plot, Table
from lpfamily.report.looks import drawn, legend_below

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def curves(figure: Figure, result: Robustness) -> None:
    """Draw on an empty figure, for each p, the error against sigma and one standard error around it."""
    clean, n = result.predicted != result.labels, len(result)
    all_axes = figure.subplots(1, len(result.balls), sharey=True, squeeze=False)[0]
    for axes, (p, ball) in zip(all_axes, result.balls.items(), strict=True):
        sigmas = (0.0, *ball.sigmas)
        for colour, label, wrong in (
            (COLOURS[0], "one step", (clean, *ball.one_step)),
            (COLOURS[1], "all attacks", (clean, *ball.fooled)),
        ):
            mean = np.mean(wrong, axis=1)
            spread = np.sqrt(mean * (1 - mean) / n)
            axes.plot(
                sigmas, 100 * mean, ".-" if label == "one step" else "o", ms=4, color=colour, label=label
            )
            axes.fill_between(
                sigmas, 100 * (mean - spread), 100 * (mean + spread), color=colour, alpha=0.2, lw=0
            )
        known = np.sort(ball.smallest[np.isfinite(ball.smallest)])
        share = np.arange(1, len(known) + 1) / n
        axes.step(known, 100 * share, where="post", color=COLOURS[1], lw=1, label="by smallest sigma")
        axes.set(title=f"p = {p:g}", xlabel="sigma", xlim=(0, None), ylim=(0, 102))
    all_axes[0].set_ylabel("error (%)")
    legend_below(figure, all_axes[0], 3, None)


def _size(result: Robustness) -> tuple[float, float]:
    return 3.0 * len(result.balls) + 1, 3.6


def figure_of(result: Robustness) -> Figure:
    """Return a matplotlib figure of the curves."""
    with drawn(lambda figure: curves(figure, result), _size(result)) as figure:
        return figure


def save(result: Robustness, folder: Path, warn: Callable[[str], None]) -> None:
    """Write a page with its table as CSV and its curves as PNG and SVG."""
    errors = tuple(
        (f"{row['p']:g}", row["sigma"], row["error"], row["standard_error"], row["one_step"])
        for row in result.rows()
    )
    heads = (
        ("p", "{}"),
        ("sigma", "{:.4g}"),
        ("error", PERCENT),
        ("standard error", PERCENT),
        ("one step", PERCENT),
    )
    first: tuple[tuple[Cell, ...], ...] = tuple(
        (f"{p:g}", *result.parts(p).values(), len(result) - sum(result.parts(p).values()))
        for p in result.balls
    )
    smallest: tuple[tuple[Cell, ...], ...] = tuple(
        (f"{p:g}", *(value if value < math.inf else None for value in result.quantiles(p).values()))
        for p in result.balls
    )
    quantiles = [f"{q:.0%}" for q in next(iter(result.quantiles(p) for p in result.balls))]
    worst = {p: f"{result.error(p, ball.sigmas[-1]).value:.1%}" for p, ball in result.balls.items()}
    page.write(
        folder,
        "How robust the model is",
        [
            page.Section(
                "Errors in Lp balls",
                (
                    f"Of {len(result)} examples, attacked with effort {result.effort!r}. The error in a ball "
                    "is a lower bound: there may be an eps that fools an example that no attack has fooled.",
                    *result.findings(),
                ),
                (
                    Table("errors", "Error by p and sigma", tuple(Column(*head) for head in heads), errors),
                    Plot(
                        "curves",
                        "Error against sigma",
                        "; ".join(f"at p = {p:g} it ends at {error}" for p, error in worst.items()),
                        lambda figure: curves(figure, result),
                        _size(result),
                    ),
                    Table(
                        "attacks",
                        "Examples by the attack that fooled them first",
                        tuple(Column(name) for name in ("p", *PARTS, "none")),
                        first,
                    ),
                    Table(
                        "smallest",
                        "Smallest sigma that is known to change a right prediction, quantiles",
                        tuple(Column(name, "{:.4g}") for name in ("p", *quantiles)),
                        smallest,
                        ("Empty: not within the largest sigma. Upper bounds of the distance to a boundary.",),
                    ),
                ),
            )
        ],
        (("effort", result.effort), ("seed", str(result.seed))),
        warn,
    )
