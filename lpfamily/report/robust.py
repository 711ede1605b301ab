"""What `lpfamily.robustness` has measured, in JSON's values, as curves and as a page with its files."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lpfamily.report import page
from lpfamily.report.contents import COLOURS, PERCENT, TEXT, Plot, Table, columns
from lpfamily.report.looks import drawn, legend_below

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Content = dict[str, Any]
"""What `lpfamily.measured.Robustness.to_json` returns."""


def _errors(content: Content) -> list[tuple[str, float, float, float, float]]:
    """Return p, sigma, the error in the ball, its standard error, and the error after one step."""
    clean = content["clean"]
    rows = []
    for p, ball in content["balls"].items():
        rows.append((p, 0.0, clean["value"], clean["standard_error"], clean["value"]))
        names = "sigma", "error", "standard_error", "one_step"
        rows += [(p, *each) for each in zip(*(ball[name] for name in names), strict=True)]
    return rows


def curves(figure: Figure, content: Content) -> None:
    """Draw on an empty figure, for each p, the error against sigma and one standard error around it."""
    n, rows = content["examples"], _errors(content)
    all_axes = figure.subplots(1, len(content["balls"]), sharey=True, squeeze=False)[0]
    for axes, (p, ball) in zip(all_axes, content["balls"].items(), strict=True):
        sigmas, errors, _, one_step = np.array([row[1:] for row in rows if row[0] == p]).T
        for colour, label, line, mean in (
            (COLOURS[0], "one step", ".-", one_step),
            (COLOURS[1], "all attacks", "o", errors),
        ):
            spread = np.sqrt(mean * (1 - mean) / n)
            axes.plot(sigmas, 100 * mean, line, ms=4, color=colour, label=label)
            axes.fill_between(
                sigmas, 100 * (mean - spread), 100 * (mean + spread), color=colour, alpha=0.2, lw=0
            )
        known = np.sort([radius for radius in ball["smallest"] if radius is not None])
        share = np.arange(1, len(known) + 1) / n
        axes.step(known, 100 * share, where="post", color=COLOURS[1], lw=1, label="by smallest sigma")
        axes.set(title=f"p = {p}", xlabel="sigma", xlim=(0, None), ylim=(0, 102))
    all_axes[0].set_ylabel("error (%)")
    legend_below(figure, all_axes[0], 3, None)


def _size(content: Content) -> tuple[float, float]:
    return 3.0 * len(content["balls"]) + 1, 3.6


def figure_of(content: Content) -> Figure:
    """Return a matplotlib figure of the curves."""
    with drawn(partial(curves, content=content), _size(content)) as figure:
        return figure


def save(content: Content, folder: Path, warn: Callable[[str], None]) -> None:
    """Write a page with its tables as CSV and its curves as PNG and SVG."""
    n, balls, size = content["examples"], content["balls"], _size(content)
    draw = partial(curves, content=content)
    some = next(iter(balls.values()))
    first = tuple(
        (p, *counts.values(), n - sum(counts.values()))
        for p, counts in ((p, ball["fooled_first_by"]) for p, ball in balls.items())
    )
    smallest = tuple((p, *ball["quantiles"].values()) for p, ball in balls.items())
    ends = "; ".join(f"at p = {p} it ends at {ball['error'][-1]:.1%}" for p, ball in balls.items())
    page.write(
        folder,
        "How robust the model is",
        [
            page.Section(
                "Errors in Lp balls",
                (
                    f"Of {n} examples, attacked with effort {content['effort']!r}. The error in a ball is a "
                    "lower bound: there may be an eps that fools an example that no attack has fooled.",
                    *content["findings"],
                ),
                (
                    Table(
                        "errors",
                        "Error by p and sigma",
                        columns(
                            (TEXT, "p"), ("{:.4g}", "sigma"), (PERCENT, "error", "standard error", "one step")
                        ),
                        tuple(_errors(content)),
                    ),
                    Plot("curves", "Error against sigma", ends, draw, size),
                    Table(
                        "attacks",
                        "Examples by the attack that fooled them first",
                        columns((TEXT, "p", *some["fooled_first_by"], "none")),
                        first,
                    ),
                    Table(
                        "smallest",
                        "Smallest sigma that is known to change a right prediction, quantiles",
                        columns((TEXT, "p"), ("{:.4g}", *some["quantiles"])),
                        smallest,
                        ("Empty: not within the largest sigma. Upper bounds of the distance to a boundary.",),
                    ),
                ),
            )
        ],
        (("effort", content["effort"]), ("seed", str(content["seed"]))),
        warn,
    )
