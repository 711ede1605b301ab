"""Tables of results as text."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable
from pathlib import Path

from lpfamily.training import files
from lpfamily.training.evaluation import NOISE_DRAWS
from lpfamily.training.files import Json
from lpfamily.training.protocol import grid
from lpfamily.training.recipes import Recipe, matched_radius
from lpfamily.training.runs import Run


def result_table(result: Json, recipe: Recipe, inputs: int) -> str:
    """Return the final table of `lpfamily.train`: the test errors in percent, the parameters and the data."""
    errors = result["test_error"]
    rows = [("clean", f"{errors['clean']:.2%}")]
    for std, noise in errors["noise"].items():
        rows.append((f"Gaussian noise, std {std}", f"{noise['mean']:.2%} +- {noise['standard_error']:.2%}"))
    for p, value in errors["one_step"].items():
        radius = matched_radius(recipe, float(p), inputs)
        rows.append((f"one step, p = {p}, sigma {radius:.4g}", f"{value:.2%}"))
    first = max(len(name) for name, _ in rows)
    lines = [f"test error ({result['tested_on']})", f"  parameters {result['parameters']}"]
    lines += [_row(name, [value], first, 8) for name, value in rows]
    lines.append(f"  noise: mean and standard error of {NOISE_DRAWS} draws, not clipped")
    return "\n".join(lines)


def grid_table(run: Run) -> str:
    """Return the table of the combinations that `--grid` chose from."""
    values = run.read(grid.GRID, run.config.get("grid"))
    with files.understanding(run.folder / grid.GRID, "not the combinations of a grid"):
        rows = [
            (
                name,
                "not finite" if entry == grid.NOT_FINITE else f"{entry['validation_error']:.2%}",
                entry["epoch"],
            )
            for name, entry in values["combinations"].items()
        ]
        chosen = values["chosen"]
    first = max((len(name) for name, _, _ in rows), default=0)
    lines = ["validation error (stage one, at the epoch that it keeps)"]
    for name, error, epoch in rows:
        line = _row(name, [error], first, 10)
        line += f"  epoch {epoch}" if epoch else ""
        lines.append(line + (", chosen" if name == chosen else ""))
    return "\n".join(lines)


def runs_table(lines: list[Json]) -> str:
    """Return the table of `lpfamily.runs`: one row per run, errors in percent."""
    if not lines:
        return "no runs"
    names = ("model", "data", "objective", "p", "sigma", "epoch", "validation_error", "test_error", "state")
    rows = [
        ("run", *(name.removesuffix("_error") for name in names)),
        *((Path(line["run"]).name, *(_shown(name, line[name]) for name in names)) for line in lines),
    ]
    first, *widths = (max(map(len, column)) for column in zip(*rows, strict=True))
    return "\n".join(
        [
            "validation: held-out error of the last epoch; test: error of the result on the clean test set",
            *(_row(name, map(str.rjust, cells, widths), first, 0) for name, *cells in rows),
            *(f"  {line['problem']}" for line in lines if "problem" in line),
        ]
    )


def _shown(name: str, value: str | float | None) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.2%}" if name.endswith("error") else f"{value:.4g}"
    return str(value)


def robustness_table(result: Json, name: str) -> str:
    """Return the final table of `lpfamily.evaluate`: errors by p and sigma in percent, and smallest radii."""
    n, row = result["examples"], functools.partial(_row, first=20, width=10, gap="")
    lines = [
        f"robustness ({name}, {n} test examples, a standard error of {0.5 / math.sqrt(n):.2%} at most)",
        f"  clean {result['clean']:.2%}",
    ]
    many = f"up to {result['steps']} steps"
    for p, ball in result["balls"].items():
        noise = [each["mean"] for each in ball["noise"]]
        quantiles = ball["smallest"]["one_step"]["quantiles"]
        lines += [
            "",
            row(f"p = {p}, sigma", [f"{sigma:.4g}" for sigma in ball["sigma"]]),
            row("one step", [f"{error:.2%}" for error in ball["one_step"]]),
            row(many, [f"{error:.2%}" for error in ball["multi_step"]]),
            row("noise of this norm", [f"{error:.2%}" for error in noise]),
            row("smallest sigma, of", [*(f"{float(q):.0%}" for q in quantiles), "never"]),
        ]
        for title, key in ("one step", "one_step"), (many, "multi_step"):
            smallest = ball["smallest"][key]
            cells = ["-" if value is None else f"{value:.4g}" for value in smallest["quantiles"].values()]
            never = "-" if smallest["never"] is None else f"{smallest['never']:.2%}"
            lines.append(row(title, [*cells, never]))
    lines += [
        "",
        f"  noise: mean of {result['noise_draws']} draws, not clipped",
        "  smallest sigma that changes the prediction: quantiles over the correctly classified examples;",
        "  never: not within the largest sigma; with many steps, an upper bound of the smallest sigma",
    ]
    return "\n".join(lines)


def _row(name: str, cells: Iterable[str], first: int, width: int, gap: str = "  ") -> str:
    """Return a line: the name in `first` characters, then each cell right-aligned in `width` characters."""
    return f"  {name:<{first}}" + "".join(f"{gap}{cell:>{width}}" for cell in cells)
