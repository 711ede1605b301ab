"""Report the result of `lpfamily.robustness`, given as JSON values: curves, and a page with its files."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lpfamily.report import page, plots
from lpfamily.report.contents import PERCENT, TEXT, Plot, Table, columns
from lpfamily.report.drawing import drawn, entitle, legend_below

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Content = dict[str, Any]
"""The values of `lpfamily.measured.Robustness.to_json`."""


def _errors(content: Content) -> list[tuple[str, float, float, float, float]]:
    """Return rows of p, sigma, the error in the ball, its standard error, and the error after one step."""
    clean = content["clean"]
    rows = []
    for p, ball in content["balls"].items():
        rows.append((p, 0.0, clean["value"], clean["standard_error"], clean["value"]))
        names = "sigma", "error", "standard_error", "one_step"
        rows += [(p, *each) for each in zip(*(ball[name] for name in names), strict=True)]
    return rows


def curves(figure: Figure, content: Content) -> None:
    """Draw on an empty figure, for each p, the error against sigma with a band of one standard error."""
    n, rows = content["examples"], _errors(content)
    for p, axes in plots.panels(figure, list(content["balls"])).items():
        sigmas, errors, _, one_step = np.array([row[1:] for row in rows if row[0] == p]).T
        plots.band(axes, sigmas, one_step, n, plots.ONE_STEP, "one step")
        plots.band(axes, sigmas, errors, n, plots.MANY_STEPS, "all attacks", "o")
        known = np.sort([radius for radius in content["balls"][p]["smallest"] if radius is not None])
        share, colour = 100 * np.arange(1, len(known) + 1) / n, plots.MANY_STEPS
        axes.step(known, share, where="post", lw=1, color=colour, label="by smallest sigma")
    legend_below(figure, 3)


def title_of(content: Content) -> str:
    """Return the title of the curves."""
    return f"Error in Lp balls of radius sigma, {content['examples']} examples"


def figure_of(content: Content) -> Figure:
    """Return a matplotlib figure of the curves."""
    with drawn(partial(curves, content=content), plots.panels_size(list(content["balls"]))) as figure:
        entitle(figure, title_of(content))
        return figure


def save(content: Content, folder: Path, warn: Callable[[str], None]) -> None:
    """Write a page with its tables as CSV and its curves as PNG and SVG."""
    n, balls = content["examples"], content["balls"]
    draw = partial(curves, content=content)
    some = next(iter(balls.values()))
    first = tuple(
        (p, *counts.values(), n - sum(counts.values()))
        for p, counts in ((p, ball["fooled_first_by"]) for p, ball in balls.items())
    )
    smallest = tuple((p, *ball["quantiles"].values()) for p, ball in balls.items())
    ends = "The error at the largest sigma: " + ", ".join(
        f"{ball['error'][-1]:.1%} at p = {p}" for p, ball in balls.items()
    )
    page.write(
        folder,
        "How robust the model is",
        [
            page.Section(
                "Errors in Lp balls",
                (
                    f"The attacks tried {n} examples with effort {content['effort']!r}. The error in a ball "
                    "is a lower bound: an example that no attack has fooled may still have an eps that "
                    "fools it.",
                    *content["findings"],
                ),
                (
                    Table(
                        "errors",
                        f"Error on {n} examples in Lp balls of radius sigma, after all attacks and after "
                        "one step",
                        columns(
                            (TEXT, "p"), ("{:.4g}", "sigma"), (PERCENT, "error", "standard error", "one step")
                        ),
                        tuple(_errors(content)),
                        (
                            "Columns: the exponent p and the radius sigma of the ball, in units of the "
                            "input; the error after all attacks, with its standard error; the error after "
                            "one step (eq. 3).",
                        ),
                    ),
                    Plot("curves", title_of(content), ends, draw, plots.panels_size(list(balls))),
                    Table(
                        "attacks",
                        f"Number of the {n} examples that each attack was the first to fool, by p",
                        columns((TEXT, "p", *some["fooled_first_by"], "none")),
                        first,
                        ("The last column counts the examples that no attack has fooled.",),
                    ),
                    Table(
                        "smallest",
                        "Smallest sigma known to change a right prediction: quantiles over examples, by p",
                        columns((TEXT, "p"), ("{:.4g}", *some["quantiles"])),
                        smallest,
                        (
                            "Columns: the fraction of the correctly classified examples whose smallest "
                            "sigma is at most the number shown. An empty cell is beyond the largest sigma. "
                            "The numbers are upper bounds of the distance to the decision boundary.",
                        ),
                    ),
                ),
            )
        ],
        (("effort", content["effort"]), ("seed", str(content["seed"]))),
        warn,
    )
