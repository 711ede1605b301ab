"""Compare the robustness of several runs, as a table and as a page with its files."""

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
"""By name of the run, the result of `training.robustness.measure` on the same balls, with its findings."""


def _errors(results: Results) -> Iterator[tuple[str, float, list[Error]]]:
    """Yield p, sigma, and for each result its error in the ball with the standard error."""
    first = next(iter(results.values()))
    for p, ball in first["balls"].items():
        for k, sigma in enumerate(ball["sigma"]):
            errors = [
                Error.of(result["balls"][p]["multi_step"][k], result["examples"])
                for result in results.values()
            ]
            yield p, sigma, errors


def table(results: Results) -> str:
    """Return the errors in the balls as text, in percent, with one column per result."""
    rows = ((f"  p = {p}, sigma = {sigma:.4g}", errors) for p, sigma, errors in _errors(results))
    return beside_one_another("error in the ball", 30, list(results), rows)


def curves(figure: Figure, results: Results) -> None:
    """Draw on an empty figure, for each p, the error of each result with a band of one standard error."""
    first = next(iter(results.values()))
    for p, axes in plots.panels(figure, list(first["balls"])).items():
        for k, (name, result) in enumerate(results.items()):
            ball = result["balls"][p]
            colour = COLOURS[k % len(COLOURS)]
            plots.band(axes, ball["sigma"], ball["multi_step"], result["examples"], colour, name)
    legend_below(figure, 2)


def write(results: Results, folder: Path, warn: Callable[[str], None]) -> None:
    """Write a page that compares the results, with its table as CSV and its curves as PNG and SVG."""
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
                f"All attacks tried {first['examples']} test examples, up to each sigma. The error in a "
                "ball is a lower bound: an example that no attack has fooled may still have an eps that "
                "fools it.",
            ),
            (
                Table(
                    "errors",
                    f"{title}, and standard errors",
                    columns((TEXT, "p"), ("{:.4g}", "sigma"), (PERCENT, *heads)),
                    rows,
                    (
                        "Columns: the exponent p and the radius sigma of the ball, in units of the input; "
                        "for each run its error and the standard error.",
                    ),
                ),
                Plot("curves", title, alt, partial(curves, results=results), size),
            ),
        ),
        *(
            page.Section(
                name,
                (f"Measured by `{result['command']}`.", *result["findings"]),
                (
                    Plot(
                        f"curves-{number}",
                        f"{name}: test error in Lp balls of radius sigma, after one step, after many and "
                        "under noise",
                        f"Test error after one step, after up to {result['steps']} steps and under noise of "
                        "the same norm.",
                        partial(plots.robustness_curves, result=result),
                        size,
                    ),
                ),
            )
            for number, (name, result) in enumerate(results.items(), 1)
        ),
    ]
    page.write(folder, "How robust the runs are", sections, (), warn)
