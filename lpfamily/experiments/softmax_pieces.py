"""Section V said: Tables VI to IX and figures 5 to 7 of what `softmax` measures."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, cast

import numpy as np

from lpfamily.experiments.pieces import Json, Piece, Setting
from lpfamily.experiments.softmax import CUT, MODELS, PICTURES, SMALL, SMALL_DRAWS, SOFTMAX, STDS, Printed
from lpfamily.noise import additional_error, error_under_noise, two_sided_error
from lpfamily.report.contents import COLOURS, Cell, Column, Plot, Table
from lpfamily.training.evaluation import NOISE_DRAWS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def _table(
    name: str,
    title: str,
    heads: Sequence[tuple[str, str]],
    rows: Iterable[tuple[Cell, ...]],
    *notes: str,
) -> Table:
    columns = (Column("model"), *(Column(head, shown) for head, shown in heads))
    return Table(name, title, columns, tuple(rows), notes)


def _models(result: Json) -> list[tuple[Printed, Json]]:
    return [(model.paper, found) for model, found in zip(MODELS, result["models"], strict=True)]


LENGTH, PERCENT, FINE = "{:.4f}", "{:.2%}", "{:.3%}"
BOTH = tuple((what, LENGTH) for what in ("mean", "deviation"))


def _table6(_setting: Setting, result: Json) -> list[Table | Plot]:
    *_, imitated, converged = result["models"]
    worst = max(found["gradient"] for found in result["models"])
    off = max(
        abs(found["training"]["along"][what] / getattr(paper, what) - 1)
        for paper, found in _models(result)[:2]
        for what in ("mean", "std")
    )
    counts = result["examples"]
    return [
        _table(
            "table6",
            "Table VI: minimum perturbations of softmax models on MNIST along the gradient of the loss",
            (
                ("c", "{:g}"),
                *(
                    (f"{what}, {whose}", shown)
                    for what, shown in BOTH
                    for whose in ("paper", "training", "test")
                ),
            ),
            (
                (
                    found["name"],
                    found["decay"],
                    paper.mean,
                    found["training"]["along"]["mean"],
                    found["test"]["along"]["mean"],
                    paper.std,
                    found["training"]["along"]["std"],
                    found["test"]["along"]["std"],
                )
                for paper, found in _models(result)
            ),
            "L2 distances in units of the input, pixels in [0, 1], over the right ones of "
            f"{counts['training']:,} training and {counts['test']:,} test images. The paper's are of the "
            "training images, from a search in steps; ours are exact.",
            "The paper does not say how lambda enters its loss. Here the loss is mean cross-entropy + "
            "(c / 2) |W|^2 with free biases, and c = lambda / 200, which comes within "
            f"{off:.1%} of the paper's numbers for lambda = 1 and 1e-2.",
            f"For lambda = 1e-4 it does not: the minimum at c = {converged['decay']:g} is the row "
            "'converged'. Most likely the paper's training stopped before it. The row 'imitated' is the "
            f"minimum at c = {imitated['decay']:g}, chosen to come near the paper's numbers, and stands for "
            "the paper's model elsewhere.",
            "The paper does not state how it trained. Here L-BFGS went on until no entry of the gradient "
            f"was above {worst:.0e}. There is one minimum, so there are no seeds.",
        ),
        _table(
            "table6-margins",
            "Distances to the nearest boundary of the same models",
            (
                ("L2 along the gradient", LENGTH),
                *((f"{norm}, {what}", shown) for norm in ("L2", "L1", "Linf") for what, shown in BOTH),
            ),
            (
                (
                    f"{found['name']}, {name}",
                    found[name]["along"]["mean"],
                    *(found[name]["nearest"][p][what] for p in ("2", "1", "inf") for what in ("mean", "std")),
                )
                for name in counts
                for _, found in _models(result)
            ),
            "The gradient of the loss mixes the wrong classes, so the paper's line search goes farther "
            "than to the nearest boundary, whose distance a linear model has in closed form in every Lp "
            "norm.",
        ),
    ]


def _noise(found: Json, name: str, std: float) -> tuple[float, float | None]:
    """Return the error under noise and its standard error; without noise it has none."""
    if std == 0:
        return found[name]["error"], None
    drawn = found[name]["noise"][f"{std:g}"]
    return drawn["error"], drawn["standard_error"]


DRAWN = (
    "The noise is not clipped, and the same for all models; the paper states neither clipping nor draws. "
    "It is drawn in the space that the weights span, as the rest of it changes no logit."
)


def _table7(_setting: Setting, result: Json) -> list[Table | Plot]:
    return [
        _table(
            "table7",
            "Table VII: error of softmax models on MNIST under Gaussian noise",
            (
                ("sigma", "{:g}"),
                ("paper", PERCENT),
                ("training", PERCENT),
                ("standard error, training", FINE),
                ("test", PERCENT),
                ("standard error, test", FINE),
            ),
            (
                (
                    found["name"],
                    std,
                    paper.actual[index],
                    *_noise(found, "training", std),
                    *_noise(found, "test", std),
                )
                for paper, found in _models(result)
                for index, std in enumerate(STDS)
            ),
            f"Mean and standard error of {NOISE_DRAWS} draws. " + DRAWN,
            "The paper does not say of which images its errors are; without noise they are those of the "
            "training images. Its label lambda = 1e-4 of the third row is a misprint for 1.",
        )
    ]


def _eq33(error: float, mean: float, std: float, sigma: float) -> float:
    return float(error_under_noise(error, mean, std, sigma))


def _table8(_setting: Setting, result: Json) -> list[Table | Plot]:
    def row(index: int, sigma: float, paper: Printed, found: Json) -> tuple[Cell, ...]:
        here = found["training"]
        normal = here["error"], here["along"]["mean"], here["along"]["std"]
        printed = paper.actual[0], paper.mean, paper.std
        corrected = here["beyond"]["mean"], here["beyond"]["std"]
        return (
            found["name"],
            sigma,
            paper.predicted[index],
            None if None in printed else _eq33(*cast("tuple[float, float, float]", printed), sigma),
            _eq33(*normal, sigma),
            float(two_sided_error(*normal, *corrected, sigma)),
            here["at_least"][f"{sigma:g}"],
            here["at_most"][f"{sigma:g}"],
            _noise(found, "training", sigma)[0],
        )

    heads = (
        "paper",
        "eq. 33, paper's Table VI",
        "eq. 33, ours",
        "two-sided",
        "at least",
        "at most",
        "measured",
    )
    return [
        _table(
            "table8",
            "Table VIII: error under Gaussian noise as estimated from the distances, training images",
            (("sigma", "{:g}"), *((head, PERCENT) for head in heads)),
            (
                row(index, sigma, paper, found)
                for paper, found in _models(result)
                for index, sigma in enumerate(STDS)
            ),
            "Eq. 33 fed with the paper's Table VI gives the paper's numbers, most of them truncated. At "
            "sigma = 0 the paper has the measured error instead: eq. 33 adds what the normal distribution "
            "has below zero.",
            "Eq. 33 takes distances as normal, and wrong images as staying wrong. 'Two-sided' lets noise "
            "correct them, taking as normal also how far they are beyond the boundary that they are "
            "farthest beyond.",
            "'At least' and 'at most' take no distribution, and bound the error of a linear model: Q(d / "
            "sigma) of each image's nearest boundary, d negative where it is wrong; and eq. 27 over all "
            "nine boundaries, with wrong images staying wrong. The paper calls eq. 27 a lower bound, but "
            "it is an upper one.",
        )
    ]


def _table9(_setting: Setting, result: Json) -> list[Table | Plot]:
    def row(name: str, paper: Printed, found: Json) -> tuple[Cell, ...]:
        here = found[name]
        error, line, drawn = here["error"], here["line"], here["noise"][f"{SMALL:g}"]
        return (
            f"{found['name']}, {name}",
            paper.added,
            drawn["error"] - error,
            drawn["standard_error"],
            drawn["spoiled"],
            drawn["corrected"],
            paper.added_predicted,
            float(additional_error(error, line["through_zero"], SMALL)),
            float(additional_error(error, line["slope"], SMALL, line["intercept"])),
            float(additional_error(error, line["slope"], SMALL, two_sided=True)),
        )

    return [
        _table(
            "table9",
            f"Table IX: error that Gaussian noise of sigma = {SMALL} adds",
            (
                ("actual, paper", PERCENT),
                ("actual", FINE),
                ("standard error", FINE),
                ("right to wrong", FINE),
                ("wrong to right", FINE),
                ("predicted, paper", PERCENT),
                *tuple((f"predicted, {line}", FINE) for line in ("through zero", "one-sided", "two-sided")),
            ),
            (row(name, paper, found) for name in result["examples"] for paper, found in _models(result)),
            f"Actual: mean and standard error of {SMALL_DRAWS} draws. " + DRAWN,
            "The paper's prediction takes the density of the distances as a line through zero, here fitted "
            f"up to {CUT}. But the density is not zero at zero. With its intercept, 'one-sided' is what "
            "noise turns from right to wrong; the paper excludes that noise corrects, which it does nearly "
            "as often. The net change is 'two-sided', where the intercept cancels: so the paper agrees "
            "with it, having left it out.",
        )
    ]


def _panels(figure: Figure, models: Sequence[Json]) -> list[Axes]:
    """Return axes, one for each model and named after it."""
    panels = list(figure.subplots(1, len(models)))
    for axes, model in zip(panels, models, strict=True):
        axes.tick_params(labelsize=8)
        axes.set_title(model["name"], fontsize=9)
        axes.set_xlabel("L2 distance", fontsize=8)
    panels[0].set_ylabel("density, per unit", fontsize=8)
    return panels


def _legend(figure: Figure) -> None:
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5, fontsize=8)


def _bars(axes: Axes, histogram: Json, examples: int, colour: str, label: str) -> None:
    edges = np.linspace(histogram["low"], histogram["high"], len(histogram["counts"]) + 1)
    density = np.array(histogram["counts"]) / examples / (edges[1] - edges[0])
    axes.stairs(density, edges, fill=True, color=colour, alpha=0.6, label=label)


def _as_printed(result: Json) -> list[Json]:
    """Return the models that the paper has too, in its order."""
    return [found for paper, found in _models(result) if paper.mean is not None][::-1]


def _figure5(_setting: Setting, result: Json) -> list[Table | Plot]:
    models = _as_printed(result)

    def draw(figure: Figure) -> None:
        for axes, model in zip(_panels(figure, models), models, strict=True):
            here = model["training"]
            mean, std, most = here["along"]["mean"], here["along"]["std"], here["histogram"]["high"]
            _bars(axes, here["histogram"], here["right"], COLOURS[0], "right training images")
            at = np.linspace(mean - 3 * std, most, 200)
            normal = np.exp(-(((at - mean) / std) ** 2) / 2) / (std * math.sqrt(2 * math.pi))
            axes.plot(at, normal, color=COLOURS[1], linewidth=1.3, label="normal distribution of eq. 30")
        _legend(figure)

    first = models[0]["training"]
    mean, std, most = first["along"]["mean"], first["along"]["std"], first["histogram"]["high"]
    counts = first["histogram"]["counts"]
    peak = (np.argmax(counts) + 0.5) * most / len(counts)
    return [
        Plot(
            "figure5",
            "Figure 5: minimum perturbations of softmax models on MNIST",
            "Histograms of three models, of one shape on three scales: a peak below the mean and a long "
            f"tail. For {models[0]['name']}, the peak is near {peak:.2f}, the mean is {mean:.3f}, the "
            f"largest {most:.2f}. The normal distribution of the same mean and deviation has "
            f"{_eq33(0.0, mean, std, 0.0):.1%} below 0.",
            draw,
            (7.6, 3.0),
            ("The paper shows lambda = 1e-4, and says that the others have the same shape: they do.",),
        )
    ]


def _figure7(_setting: Setting, result: Json) -> list[Table | Plot]:
    models = _as_printed(result)

    def draw(figure: Figure) -> None:
        at = np.array([0.0, CUT])
        for axes, model in zip(_panels(figure, models), models, strict=True):
            here, line = model["training"], model["training"]["line"]
            _bars(axes, here["near"], here["right"], COLOURS[0], "right")
            _bars(axes, here["near_wrong"], here["right"], COLOURS[4], "wrong, to the left")
            for side, style, label in ((at, "-", "line with intercept"), (-at, ":", "the same below zero")):
                density = line["intercept"] + line["slope"] * side
                axes.plot(side, density, color=COLOURS[3], linestyle=style, label=label)
            axes.plot(at, line["through_zero"] * at, color=COLOURS[1], label="line through zero")
            axes.set_ylim(bottom=0)
        _legend(figure)

    lines = "; ".join(
        "{}: {intercept:.2f} + {slope:.2f} a, and {through_zero:.2f} a through zero".format(
            model["name"], **model["training"]["line"]
        )
        for model in models
    )
    return [
        Plot(
            "figure7",
            f"Figure 7: minimum perturbations up to {CUT}",
            "Histograms of the distances of right images, and to the left of zero of wrong ones. The "
            "density is nearly a line, but not one through zero, and it goes on below. Lines for a "
            f"distance a: {lines}.",
            draw,
            (7.6, 3.2),
            (
                "The paper shows lambda = 1e-4 for right images alone, and takes the line as going through "
                "zero. The gaps in its figure are the steps of its search.",
                "A wrong image is to the left by how far it is beyond the boundary that it is farthest "
                "beyond. Densities are per right image.",
            ),
        )
    ]


def _figure6(_setting: Setting, result: Json) -> list[Table | Plot]:
    def draw(figure: Figure) -> None:
        grid = figure.subplots(2, len(result["clean"]))
        for row, name, label in zip(grid, ("clean", "noisy"), ("clean", f"sigma = {SMALL}"), strict=True):
            for axes, image in zip(row, result[name], strict=True):
                axes.imshow(image, cmap="gray", vmin=0, vmax=1)
                axes.set(xticks=[], yticks=[])
            row[0].set_ylabel(label, fontsize=8)

    change = np.abs(np.array(result["noisy"]) - np.array(result["clean"])).max()
    return [
        Plot(
            "figure6",
            f"Figure 6: images corrupted by Gaussian noise of sigma = {SMALL}",
            "The first training image of each digit, above as it is and below with noise. No pixel changes "
            f"by more than {change:.3f} of the range from black to white: the rows look the same.",
            draw,
            (7.6, 1.8),
            ("What noise puts below black or above white is shown as black and white.",),
        )
    ]


PIECES: tuple[Piece, ...] = (
    Piece("table6", (SOFTMAX,), _table6),
    Piece("table7", (SOFTMAX,), _table7),
    Piece("table8", (SOFTMAX,), _table8),
    Piece("table9", (SOFTMAX,), _table9),
    Piece("figure5", (SOFTMAX,), _figure5),
    Piece("figure6", (PICTURES,), _figure6),
    Piece("figure7", (SOFTMAX,), _figure7),
)
