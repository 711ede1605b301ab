"""`python docs/figures.py`: figures of the pages on robustness, objectives and noise, by the code there.

`figures/figure-p.png` is that of `python -m lpfamily.reproduce figure-p --budget paper`.
"""

from __future__ import annotations

import re
import warnings
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from lpfamily.experiments.softmax.measure import STDS
from lpfamily.experiments.softmax.report import PAPER
from lpfamily.report import drawing, plots, robust
from lpfamily.report.contents import COLOURS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DOCS = Path(__file__).parent


def names_of(page: str) -> dict[str, Any]:
    """Return what the first block of code of a page defines."""
    code = re.search(r"```python\n(.*?)```", (DOCS / page).read_text("utf-8"), re.DOTALL)
    names: dict[str, Any] = {}
    exec(compile(code[1], page, "exec"), names)  # noqa: S102 (the page is ours)
    return names


def objectives(figure: Figure) -> None:
    """Draw the two objectives against sigma."""
    names = names_of("guides/objectives.md")
    sigmas = np.linspace(0.02, 1, 25)
    found = names["measure"](names["loss"], names["x"], p=[2], sigma=sigmas)
    columns = zip(*((m.terms.loss, m.terms.first, m.terms.second, m.perturbed) for m in found), strict=True)
    loss, first, second, perturbed = (np.array([np.mean(each) for each in column]) for column in columns)
    axes = figure.subplots()
    axes.plot(sigmas, perturbed, color=COLOURS[1], label="perturb: L(x + eps)")
    axes.plot(sigmas, loss + first + second, color=COLOURS[2], ls="--", label="to second order")
    axes.plot(sigmas, loss + first, color=COLOURS[0], label="penalty: L(x) + sigma ||g||")
    axes.plot(sigmas, loss, color=COLOURS[5], ls=":", label="L(x)")
    axes.set(xlabel=plots.SIGMA, ylabel="mean loss (nats)", xlim=(0, 1), ylim=(0, None))
    drawing.legend_below(figure, 2)


def noise(figure: Figure) -> None:
    """Draw eq. 33 beside what the paper has measured, and the density of distances near zero."""
    names = names_of("noise.md")
    left, right = figure.subplots(1, 2)
    sigmas = np.linspace(0, 0.35, 100)
    for paper, error, mean, std, colour in zip(PAPER[2::-1], *names["models"], COLOURS, strict=False):
        left.plot(sigmas, 100 * names["error_under_noise"](error, mean, std, sigmas), color=colour)
        left.plot(STDS, 100 * np.array(paper.actual), "o", color=colour, label=f"mean distance {mean:g}")
    left.set(title="lines: eq. 33; dots: measured", xlabel="sigma of the noise", ylabel="error (%)")
    left.set_ylim(0)
    signed, at = names["signed"], np.array([0, 0.1])
    counts, edges = np.histogram(signed, bins=40, range=(-0.1, 0.1))
    right.stairs(counts / len(names["right"]) / 0.005, edges, fill=True, color=COLOURS[5], alpha=0.5)
    right.plot(
        at, names["intercept"] + names["slope"] * at, color=COLOURS[3], label="line with the density at zero"
    )
    right.plot(at, names["through_zero"] * at, color=COLOURS[1], label="line through zero")
    right.set(title="density of the distances", xlabel="distance, negative if wrong", ylabel="per unit")
    drawing.legend_below(figure, 3)


def main(folder: Path) -> None:
    """Write the figures into a folder."""
    found = names_of("robustness.md")["result"].to_json()
    curves, size = partial(robust.curves, content=found), plots.panels_size(list(found["balls"]))
    for name, draw, inches, title in (
        ("robustness", curves, size, robust.title_of(found)),
        ("objectives", objectives, (8.0, 3.6), "Perturb and penalty on digits, p = 2"),
        ("noise", noise, (8.0, 3.6), "Error under Gaussian noise, from distances to the boundary"),
    ):
        (content,) = drawing.rendered(draw, inches, ["png"], name, warnings.warn, title).values()
        # few colours are a third of the bytes
        Image.open(BytesIO(content)).quantize(64).save(folder / f"{name}.png", optimize=True)


if __name__ == "__main__":
    main(DOCS / "figures")
