"""Report section V: Tables VI to IX and Figures 5 to 7."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from lpfamily.experiments.definitions import Chapter, Experiment, Json, Setting
from lpfamily.experiments.softmax.measure import CUT, PICTURES, SMALL, SMALL_DRAWS, SOFTMAX, STDS
from lpfamily.noise import additional_error, error_under_noise, two_sided_error
from lpfamily.report.contents import COLOURS, PERCENT, TEXT, Cell, Item, Plot, Table, columns
from lpfamily.report.drawing import legend_below
from lpfamily.training.evaluation import NOISE_DRAWS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

OF_SOFTMAX = "of softmax regression with weight decay lambda on MNIST"
LENGTH, FINE = "{:.4f}", "{:.3%}"
BOTH = "training", "test"
MOMENTS = {"mean": "mean", "deviation": "std"}
"""Head of a column, and its key in the measurement."""


@dataclass(frozen=True)
class Printed:
    """The paper's numbers for a model: distances in units of the input, errors as fractions."""

    mean: float | None = None
    std: float | None = None
    actual: tuple[float | None, ...] = (None,) * len(STDS)
    """Table VII, by STDS."""
    predicted: tuple[float | None, ...] = (None,) * len(STDS)
    """Table VIII, by STDS."""
    added: float | None = None
    """Table IX, measured."""
    added_predicted: float | None = None


PAPER = (
    Printed(1.2718, 0.6654, (0.0893, 0.0916, 0.1133), (0.0893, 0.1161, 0.1263), 1e-4, 1e-4),
    Printed(0.4722, 0.2531, (0.0629, 0.0822, 0.2244), (0.0629, 0.1016, 0.1701), 1e-4, 2e-4),
    Printed(0.2744, 0.1511, (0.0602, 0.1199, 0.4007), (0.0602, 0.1212, 0.2547), 7e-4, 4e-4),
    Printed(),
)
"""For each of `measure.MODELS`; the paper does not have the last."""


def _table(
    name: str, title: str, groups: Iterable[tuple[str, ...]], rows: Iterable[tuple[Cell, ...]], *notes: str
) -> Table:
    return Table(name, title, columns((TEXT, "model"), *groups), tuple(rows), notes)


def _models(result: Json) -> list[tuple[Printed, Json]]:
    return list(zip(PAPER, result["models"], strict=True))


def _table6(_: Setting, result: Json) -> Iterator[Item]:
    models, counts = _models(result), result["examples"]
    *_, imitated, converged = result["models"]
    worst = max(model["gradient"] for model in result["models"])
    off = max(
        abs(model["training"]["along"][what] / printed - 1)
        for paper, model in models[:2]
        for what, printed in (("mean", paper.mean), ("std", paper.std))
        if printed
    )

    def row(paper: Printed, model: Json) -> tuple[Cell, ...]:
        means, stds = ([model[name]["along"][what] for name in BOTH] for what in MOMENTS.values())
        return model["name"], model["decay"], paper.mean, *means, paper.std, *stds

    def margins(name: str, model: Json) -> tuple[Cell, ...]:
        stats = model[name]
        nearest = (stats["nearest"][p][what] for p in ("2", "1", "inf") for what in MOMENTS.values())
        return f"{model['name']}, {name}", stats["along"]["mean"], *nearest

    along = (f"{what}, {whose}" for what in MOMENTS for whose in ("paper", *BOTH))
    exact = (f"{norm}, {what}" for norm in ("L2", "L1", "Linf") for what in MOMENTS)
    yield _table(
        "table6",
        f"Table VI. L2 distance to the decision boundary along the gradient of the loss, {OF_SOFTMAX}",
        (("{:g}", "c"), (LENGTH, *along)),
        (row(*each) for each in models),
        "Columns: the weight decay c, and the mean and the standard deviation of the L2 distances, in "
        "units of the input (pixels in [0, 1]), over the correctly classified images among "
        f"{counts['training']:,} training and {counts['test']:,} test images. The paper's distances are "
        "those of the training images, from a search in steps; ours are exact.",
        "The paper does not say how lambda enters its loss. Here the loss is mean cross-entropy + "
        "(c / 2) |W|^2, with unpenalised biases. For lambda = 1 and 1e-2, c = lambda / 200 gives the "
        f"paper's numbers within {off:.1%}.",
        "For lambda = 1e-4 it does not. The row 'converged' is the minimum at lambda / 200, c = "
        f"{converged['decay']:g}; most likely the paper's training stopped before it. The row 'imitated' is "
        f"the minimum at c = {imitated['decay']:g}, chosen to come close to the paper's numbers; it stands "
        "for the paper's model in the other tables.",
        "The paper does not state how it trained. Here L-BFGS ran until no entry of the gradient was above "
        f"{worst:.0e}. The loss has one minimum, so there are no seeds.",
    )
    yield _table(
        "table6-margins",
        f"Distance to the nearest decision boundary in the L2, L1 and Linf norms, {OF_SOFTMAX}",
        [(LENGTH, "L2 along the gradient", *exact)],
        (margins(name, model) for name in counts for model in result["models"]),
        "Columns: the mean L2 distance along the gradient (Table VI), then the mean and the standard "
        "deviation of the distance to the nearest boundary in each norm, over the correctly classified "
        "images of the set that the row names.",
        "The gradient of the loss mixes the wrong classes, so the paper's line search reaches a boundary "
        "farther away than the nearest one. For a linear model, the distance to the nearest boundary has a "
        "closed form in every Lp norm.",
    )


def _noise(stats: Json, std: float) -> tuple[float, float | None]:
    """Return the error under noise and its standard error, None without noise."""
    if std == 0:
        return stats["error"], None
    drawn = stats["noise"][f"{std:g}"]
    return drawn["error"], drawn["standard_error"]


DRAWN = (
    "The noise is not clipped and is the same for all models; the paper states neither clipping nor the "
    "number of draws. The noise is drawn in the span of the weights, as its other components change no logit."
)


def _table7(_: Setting, result: Json) -> Iterator[Item]:
    yield _table(
        "table7",
        f"Table VII. Error under Gaussian noise of standard deviation sigma, {OF_SOFTMAX}",
        (
            *(("{:g}", "sigma"), (PERCENT, "paper", "training"), (FINE, "standard error, training")),
            *((PERCENT, "test"), (FINE, "standard error, test")),
        ),
        (
            (model["name"], std, actual, *_noise(model["training"], std), *_noise(model["test"], std))
            for paper, model in _models(result)
            for std, actual in zip(STDS, paper.actual, strict=True)
        ),
        "Columns: the standard deviation sigma of the noise, in units of the pixels; the paper's error; "
        f"our error on the training and on the test images, each the mean of {NOISE_DRAWS} draws with its "
        f"standard error. {DRAWN}",
        "The paper does not say on which images it measured; its errors without noise are those of the "
        "training images. In its third row, the label lambda = 1e-4 is a misprint for 1.",
    )


def _eq33(error: float | None, mean: float | None, std: float | None, sigma: float) -> float | None:
    """Return the error that eq. 33 predicts; None if a number of the model is missing."""
    if error is None or mean is None or std is None:
        return None
    return float(error_under_noise(error, mean, std, sigma))


def _table8(_: Setting, result: Json) -> Iterator[Item]:
    def row(paper: Printed, model: Json, index: int, sigma: float) -> tuple[Cell, ...]:
        stats = model["training"]
        normal = stats["error"], stats["along"]["mean"], stats["along"]["std"]
        return (
            model["name"],
            sigma,
            paper.predicted[index],
            _eq33(paper.actual[0], paper.mean, paper.std, sigma),
            _eq33(*normal, sigma),
            float(two_sided_error(*normal, stats["beyond"]["mean"], stats["beyond"]["std"], sigma)),
            stats["at_least"][f"{sigma:g}"],
            stats["at_most"][f"{sigma:g}"],
            _noise(stats, sigma)[0],
        )

    of_paper = "paper", "eq. 33, paper's Table VI"
    heads = *of_paper, "eq. 33, ours", "two-sided", "at least", "at most", "measured"
    yield _table(
        "table8",
        f"Table VIII. Training error under Gaussian noise of standard deviation sigma, predicted from the "
        f"distances of Table VI, {OF_SOFTMAX}",
        (("{:g}", "sigma"), (PERCENT, *heads)),
        (row(*model, *each) for model in _models(result) for each in enumerate(STDS)),
        "Columns: the standard deviation sigma of the noise, in units of the pixels; the paper's prediction; "
        "eq. 33 with the mean and deviation of the paper's Table VI, and with ours; three other predictions, "
        "explained below; and the error measured in Table VII.",
        "Eq. 33 with the numbers of the paper's Table VI gives the paper's predictions, most of them "
        "truncated. At sigma = 0 the paper prints the measured error instead, as eq. 33 adds the probability "
        "of a normal distance below zero.",
        "Eq. 33 assumes that distances are normal and that wrong images stay wrong. 'Two-sided' lets noise "
        "correct wrong images: it also takes as normal the distance by which they are beyond the boundary "
        "that they are farthest beyond.",
        "'At least' and 'at most' assume no distribution and bound the error of a linear model. The lower "
        "bound is the mean of Q(d / sigma), with d the distance to an image's nearest boundary, negative "
        "for a wrong image. The upper bound is eq. 27 over all nine boundaries, with wrong images staying "
        "wrong. The paper calls eq. 27 a lower bound, but it is an upper one.",
    )


def _table9(_: Setting, result: Json) -> Iterator[Item]:
    def row(name: str, paper: Printed, model: Json) -> tuple[Cell, ...]:
        stats = model[name]
        error, line, drawn = stats["error"], stats["line"], stats["noise"][f"{SMALL:g}"]
        return (
            f"{model['name']}, {name}",
            paper.added,
            drawn["error"] - error,
            *(drawn[what] for what in ("standard_error", "spoiled", "corrected")),
            paper.added_predicted,
            float(additional_error(error, line["through_zero"], SMALL)),
            float(additional_error(error, line["slope"], SMALL, line["intercept"])),
            float(additional_error(error, line["slope"], SMALL, two_sided=True)),
        )

    measured = "actual", "standard error", "right to wrong", "wrong to right"
    predicted = (f"predicted, {line}" for line in ("through zero", "one-sided", "two-sided"))
    yield _table(
        "table9",
        f"Table IX. Error added by Gaussian noise of sigma = {SMALL}, measured and predicted, {OF_SOFTMAX}",
        ((PERCENT, "actual, paper"), (FINE, *measured), (PERCENT, "predicted, paper"), (FINE, *predicted)),
        (row(name, *model) for name in result["examples"] for model in _models(result)),
        "Columns: the error added by the noise, in the paper and here (actual), with its standard error; the "
        "fractions of images that turn from right to wrong and from wrong to right; and the predictions of "
        f"the paper and of three lines fitted to the density of the distances. Actual is the mean of "
        f"{SMALL_DRAWS} draws, on the images of the set that the row names. {DRAWN}",
        "The paper's prediction takes the density of the distances as a line through zero, here fitted up "
        f"to {CUT}. But the density is not zero at zero. With an intercept, 'one-sided' predicts the "
        "fraction that turns from right to wrong. The paper rules out that noise corrects images, which "
        "happens nearly as often. 'Two-sided' predicts the net change, in which the intercept cancels; "
        "this is why the paper's prediction, made without an intercept, agrees with the measurement.",
    )


def _bars(axes: Axes, histogram: Json, examples: int, colour: str, label: str) -> None:
    edges = np.linspace(histogram["low"], histogram["high"], len(histogram["counts"]) + 1)
    density = np.array(histogram["counts"]) / examples / (edges[1] - edges[0])
    axes.stairs(density, edges, fill=True, color=colour, alpha=0.6, label=label)


def _as_printed(result: Json) -> list[Json]:
    """Return the models that the paper has, in its order."""
    return [model for paper, model in _models(result) if paper.mean is not None][::-1]


def _panels(models: Sequence[Json], fill: Callable[[Axes, Json], None]) -> Callable[[Figure], None]:
    """Return a function that draws one panel per model, titled with its name and filled by `fill`."""

    def draw(figure: Figure) -> None:
        panels = figure.subplots(1, len(models))
        for axes, model in zip(panels, models, strict=True):
            axes.tick_params(labelsize=8)
            axes.set_title(model["name"], fontsize=9)
            axes.set_xlabel("L2 distance", fontsize=8)
            fill(axes, model["training"])
        panels[0].set_ylabel("density, per unit", fontsize=8)
        legend_below(figure, 5, 8)

    return draw


def _figure5(_: Setting, result: Json) -> Iterator[Item]:
    def fill(axes: Axes, stats: Json) -> None:
        mean, std, most = stats["along"]["mean"], stats["along"]["std"], stats["histogram"]["high"]
        _bars(axes, stats["histogram"], stats["right"], COLOURS[0], "correctly classified training images")
        at = np.linspace(mean - 3 * std, most, 200)
        normal = np.exp(-(((at - mean) / std) ** 2) / 2) / (std * math.sqrt(2 * math.pi))
        axes.plot(at, normal, color=COLOURS[1], linewidth=1.3, label="normal distribution of eq. 30")

    models = _as_printed(result)
    first = models[0]["training"]
    mean, std, most = first["along"]["mean"], first["along"]["std"], first["histogram"]["high"]
    counts = first["histogram"]["counts"]
    peak = (np.argmax(counts) + 0.5) * most / len(counts)
    yield Plot(
        "figure5",
        f"Figure 5. Distribution of the distances along the gradient (Table VI), {OF_SOFTMAX}",
        "Histograms of three models, with the same shape on three scales: a peak below the mean and a long "
        f"tail. For {models[0]['name']}, the peak is near {peak:.2f}, the mean is {mean:.3f}, the "
        f"largest {most:.2f}. The normal distribution of the same mean and deviation has "
        f"{_eq33(0.0, mean, std, 0.0):.1%} below 0.",
        _panels(models, fill),
        (7.6, 3.0),
        (
            "One panel per model. Histogram: the density of the L2 distance over the correctly classified "
            "training images. Line: the normal distribution with the same mean and standard deviation (eq. "
            "30).",
            "The paper shows lambda = 1e-4 and says that the others have the same shape, which is true.",
        ),
    )


def _figure7(_: Setting, result: Json) -> Iterator[Item]:
    def fill(axes: Axes, stats: Json) -> None:
        at, line = np.array([0.0, CUT]), stats["line"]
        _bars(axes, stats["near"], stats["right"], COLOURS[0], "correctly classified")
        _bars(axes, stats["near_wrong"], stats["right"], COLOURS[4], "wrong, left of zero")
        for side, style, label in ((at, "-", "line with intercept"), (-at, ":", "the same below zero")):
            density = line["intercept"] + line["slope"] * side
            axes.plot(side, density, color=COLOURS[3], linestyle=style, label=label)
        axes.plot(at, line["through_zero"] * at, color=COLOURS[1], label="line through zero")
        axes.set_ylim(bottom=0)

    models = _as_printed(result)
    lines = "; ".join(
        "{}: {intercept:.2f} + {slope:.2f} a, and {through_zero:.2f} a through zero".format(
            model["name"], **model["training"]["line"]
        )
        for model in models
    )
    yield Plot(
        "figure7",
        f"Figure 7. Distribution of the distances along the gradient up to {CUT}, {OF_SOFTMAX}",
        "Histograms of the distances of correctly classified images, and to the left of zero those of "
        "wrong ones. The density is nearly a line, but not one through zero, and it continues below zero. "
        f"Lines for a distance a: {lines}.",
        _panels(models, fill),
        (7.6, 3.2),
        (
            "One panel per model, over the training images. A wrong image is to the left of zero, at the "
            "distance by which it is beyond the boundary that it is farthest beyond. Densities are per "
            "correctly classified image.",
            "The paper shows lambda = 1e-4 for correctly classified images alone and takes the line as going "
            "through zero. The gaps in its figure are the steps of its search.",
        ),
    )


def _figure6(_: Setting, result: Json) -> Iterator[Item]:
    def draw(figure: Figure) -> None:
        grid = figure.subplots(2, len(result["clean"]))
        for row, name, label in zip(grid, ("clean", "noisy"), ("clean", f"sigma = {SMALL}"), strict=True):
            for axes, image in zip(row, result[name], strict=True):
                axes.imshow(image, cmap="gray", vmin=0, vmax=1)
                axes.set(xticks=[], yticks=[])
            row[0].set_ylabel(label, fontsize=8)

    change = np.abs(np.array(result["noisy"]) - np.array(result["clean"])).max()
    yield Plot(
        "figure6",
        f"Figure 6. MNIST digits, clean and under Gaussian noise of sigma = {SMALL}",
        "The first training image of each digit, above clean and below with noise. No pixel changes "
        f"by more than {change:.3f} of the range from black to white: the rows look the same.",
        draw,
        (7.6, 1.8),
        (
            "The first MNIST training image of each digit; sigma is in units of the pixels. Values below "
            "black or above white are clipped for the picture.",
        ),
    )


def _table6_finding(_: Setting, result: Json) -> str:
    phrases = (
        f"{model['training']['along']['mean']:.4f} for {model['name']} (the paper: {paper.mean:.4f})"
        for paper, model in _models(result)
        if paper.mean is not None
    )
    return (
        "The mean L2 distance of a training image to the decision boundary of softmax regression on MNIST, "
        f"along the gradient, is {', '.join(phrases)}."
    )


def _table8_finding(_: Setting, result: Json) -> str:
    largest = max(STDS)
    phrases = []
    for model in result["models"]:
        stats = model["training"]
        predicted = _eq33(stats["error"], stats["along"]["mean"], stats["along"]["std"], largest)
        phrases.append(f"{predicted:.2%} for {model['name']} (measured: {_noise(stats, largest)[0]:.2%})")
    return (
        f"Under Gaussian noise of sigma = {largest}, eq. 33 predicts from the distances alone a training "
        f"error of {', '.join(phrases)}."
    )


def _table9_finding(_: Setting, result: Json) -> str:
    model = next(model for paper, model in _models(result) if paper.mean == PAPER[2].mean)
    drawn, name = model["training"]["noise"][f"{SMALL:g}"], model["name"]
    return (
        f"Noise of sigma = {SMALL} turns {drawn['spoiled']:.3%} of the training images from right to wrong "
        f"and {drawn['corrected']:.3%} from wrong to right ({name}): the error grows by the difference, "
        f"{drawn['error'] - model['training']['error']:.3%}."
    )


CHAPTER = Chapter(
    "Minimum perturbations and Gaussian noise (section V)",
    "Softmax regression at three strengths of weight decay: how far away the decision boundary is along the "
    "gradient, and which errors under Gaussian noise these distances predict.",
    (
        Experiment("table6", (SOFTMAX,), _table6, finding=_table6_finding),
        Experiment("table7", (SOFTMAX,), _table7),
        Experiment("table8", (SOFTMAX,), _table8, finding=_table8_finding),
        Experiment("table9", (SOFTMAX,), _table9, finding=_table9_finding),
        Experiment("figure5", (SOFTMAX,), _figure5),
        Experiment("figure6", (PICTURES,), _figure6),
        Experiment("figure7", (SOFTMAX,), _figure7),
    ),
)
