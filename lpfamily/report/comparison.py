"""The robustness of several runs beside one another, as a table and as a page with its files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from lpfamily.measured import Error, beside_one_another
from lpfamily.report import page, plots
from lpfamily.report.contents import COLOURS, PERCENT, TEXT, Cell, Plot, Table, columns
from lpfamily.report.drawing import legend_below
from lpfamily.training.files import Json

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Results = Mapping[str, Json]
"""By name what `lpfamily.training.robustness.measure` returns, all of the same balls, and findings."""


def _errors(results: Results) -> Iterator[tuple[str, float, list[Error]]]:
    """Return p, sigma and for each result its error in the ball and the standard error of that."""
    first = next(iter(results.values()))
    for p, ball in first["balls"].items():
        for k, sigma in enumerate(ball["sigma"]):
            errors = [
                Error.of(result["balls"][p]["multi_step"][k], result["examples"])
                for result in results.values()
            ]
            yield p, sigma, errors


def table(results: Results) -> str:
    """Return the errors in the balls, in percent, with one column for each result."""
    rows = ((f"  p = {p}, sigma = {sigma:.4g}", errors) for p, sigma, errors in _errors(results))
    return beside_one_another("error in the ball", 30, list(results), rows)


def curves(figure: Figure, results: Results) -> None:
    """Draw on an empty figure, for each p, each result's error and one standard error around it."""
    first = next(iter(results.values()))
    for p, axes in plots.panels(figure, list(first["balls"])).items():
        for k, (name, result) in enumerate(results.items()):
            ball = result["balls"][p]
            colour = COLOURS[k % len(COLOURS)]
            plots.band(axes, ball["sigma"], ball["multi_step"], result["examples"], colour, name)
    legend_below(figure, 2)


def write(results: Results, folder: Path, warn: Callable[[str], None]) -> None:
    """Write a page that compares them, with its table as CSV and its curves as PNG and SVG."""
    first = next(iter(results.values()))
    size = plots.panels_size(list(first["balls"]))
    title = f"Error of each run in Lp balls of radius sigma, {first['examples']} test examples"
    heads = (head for name in results for head in (name, f"{name}: standard error"))
    rows: tuple[tuple[Cell, ...], ...] = tuple(
        (p, sigma, *(value for error in errors for value in error)) for p, sigma, errors in _errors(results)
    )
    alt = "; ".join(
        f"{name} ends at "
        + ", ".join(f"{ball['multi_step'][-1]:.1%} for p = {p}" for p, ball in result["balls"].items())
        for name, result in results.items()
    )
    sections = [
        page.Section(
            "Errors in Lp balls",
            (
                f"Of {first['examples']} test examples, attacked up to sigma by all attacks. The error in a "
                "ball is a lower bound: there may be an eps that fools what no attack has fooled.",
            ),
            (
                Table(
                    "errors",
                    f"{title}, and standard errors",
                    columns((TEXT, "p"), ("{:.4g}", "sigma"), (PERCENT, *heads)),
                    rows,
                ),
                Plot("curves", title, alt, partial(curves, results=results), size),
            ),
        ),
        *(
            page.Section(
                name,
                (f"Made by `{result['command']}`.", *result["findings"]),
                (
                    Plot(
                        f"curves-{number}",
                        f"{name}: test error in Lp balls, after one step, after many and under noise",
                        f"By one step, by up to {result['steps']} steps and by noise of the same norm.",
                        partial(plots.robustness_curves, result=result),
                        size,
                    ),
                ),
            )
            for number, (name, result) in enumerate(results.items(), 1)
        ),
    ]
    page.write(folder, "How robust the runs are", sections, (), warn)
