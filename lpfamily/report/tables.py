"""Tables of results, as text."""

from __future__ import annotations

from typing import Any

from lpfamily.training.evaluation import NOISE_DRAWS
from lpfamily.training.recipes import Recipe, matched_radius


def result_table(result: dict[str, Any], recipe: Recipe, inputs: int) -> str:
    """Return the table that ends `lpfamily.train`: test errors in percent and what was tested."""
    errors = result["test_error"]
    rows = [("clean", f"{errors['clean']:.2%}")]
    for std, noise in errors["noise"].items():
        rows.append((f"Gaussian noise, std {std}", f"{noise['mean']:.2%} +- {noise['standard_error']:.2%}"))
    for p, value in errors["one_step"].items():
        radius = matched_radius(recipe, float(p), inputs)
        rows.append((f"one step, p = {p}, sigma {radius:.4g}", f"{value:.2%}"))
    width = max(len(name) for name, _ in rows)
    lines = [f"test error ({result['tested_on']})", f"  parameters {result['parameters']}"]
    lines += [f"  {name:<{width}}  {value:>8}" for name, value in rows]
    lines.append(f"  noise: mean and standard error of {NOISE_DRAWS} draws, not clipped")
    return "\n".join(lines)
