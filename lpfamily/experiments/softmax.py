"""Section V: softmax regression on MNIST, how far its boundaries are, and what Gaussian noise does to it.

The models are minima of a convex loss, so there is one of each, without a seed or a schedule.
Distances are closed forms, and only the errors under noise are drawn.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from lpfamily.classification import cross_entropy
from lpfamily.curvature.derivatives import logit_gradient
from lpfamily.experiments.pieces import Json, Measurement, Piece, Setting, Tick
from lpfamily.margins import boundary_distance, flip_distance
from lpfamily.noise import (
    additional_error,
    error_from_distances,
    error_under_noise,
    linear_density,
    two_sided_error,
    union_bound,
)
from lpfamily.report.contents import COLOURS, INK, Cell, Column, Plot, Table
from lpfamily.steepest import epsilon
from lpfamily.training.data import Split, load
from lpfamily.training.draws import evaluation_noise
from lpfamily.training.evaluation import NOISE, NOISE_DRAWS, in_parts

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Floats = NDArray[np.float64]

SMALL = 0.01
"""The standard deviation of Table IX's noise."""
SMALL_DRAWS = 40
STDS = (0.0, *NOISE)
"""Of Tables VII and VIII."""
CUT = 0.1
"""Up to where Fig. 7 takes the density of the distances as a line."""
ROWS_AT_ONCE = 5000


@dataclass(frozen=True)
class Printed:
    """What the paper has of a model: distances in units of the input, errors as fractions."""

    mean: float | None = None
    std: float | None = None
    actual: tuple[float | None, ...] = (None,) * len(STDS)
    """Table VII, by STDS."""
    predicted: tuple[float | None, ...] = (None,) * len(STDS)
    """Table VIII, by STDS."""
    added: float | None = None
    """Table IX, measured."""
    added_predicted: float | None = None


@dataclass(frozen=True)
class Model:
    """A row of Tables VI to IX, and the weight decay c that it is trained with here."""

    name: str
    decay: float
    paper: Printed = Printed()


def weight_decay(penalty: float) -> float:
    """Return the c = lambda / 200 of `objective` that has the paper's Table VI for lambda = 1 and 1e-2.

    The paper does not say how lambda enters its loss.
    """
    return penalty / 200


IMITATING = 9e-6
"""A c whose minimum is near Table VI for lambda = 1e-4, from which the minimum at lambda / 200 is far."""

MODELS = (
    Model(
        "lambda = 1",
        weight_decay(1.0),
        Printed(1.2718, 0.6654, (0.0893, 0.0916, 0.1133), (0.0893, 0.1161, 0.1263), 1e-4, 1e-4),
    ),
    Model(
        "lambda = 1e-2",
        weight_decay(1e-2),
        Printed(0.4722, 0.2531, (0.0629, 0.0822, 0.2244), (0.0629, 0.1016, 0.1701), 1e-4, 2e-4),
    ),
    Model(
        "lambda = 1e-4, imitated",
        IMITATING,
        Printed(0.2744, 0.1511, (0.0602, 0.1199, 0.4007), (0.0602, 0.1212, 0.2547), 7e-4, 4e-4),
    ),
    Model("lambda = 1e-4, converged", weight_decay(1e-4)),
)
"""The strongest regularisation first: each starts from the one before."""


@dataclass(frozen=True, eq=False)
class Fit:
    """A trained softmax regression: weights (inputs, classes) and bias (classes,)."""

    weights: Floats
    bias: Floats
    iterations: int = 0


def objective(
    weights: Floats, bias: Floats, x: NDArray[Any], labels: NDArray[np.int64], decay: float
) -> tuple[float, Floats, Floats]:
    """Return the mean cross-entropy + (decay / 2) |weights|^2, and its gradients in weights and bias.

    Products with x are of its dtype, a block of rows at a time, and sums over the blocks are float64.
    """
    loss, slope, bias_slope = 0.0, np.zeros_like(weights), np.zeros_like(bias)
    narrow = weights.astype(x.dtype)
    for begin in range(0, len(x), ROWS_AT_ONCE):
        rows, right = (array[begin : begin + ROWS_AT_ONCE] for array in (x, labels))
        z = (rows @ narrow).astype(np.float64) + bias
        gradient = logit_gradient(z, right)
        loss += float(np.sum(cross_entropy(z, right)))
        slope += rows.T @ gradient.astype(x.dtype)
        bias_slope += gradient.sum(axis=0)
    penalty = decay / 2 * float(np.sum(weights * weights))
    return loss / len(x) + penalty, slope / len(x) + decay * weights, bias_slope / len(x)


def principal(x: NDArray[Any]) -> tuple[Floats, Floats]:
    """Return the eigenvalues and eigenvectors of the inputs' second moments, x' x / n."""
    moments = np.zeros((x.shape[1],) * 2)
    for begin in range(0, len(x), ROWS_AT_ONCE):
        rows = x[begin : begin + ROWS_AT_ONCE]
        moments += rows.T @ rows
    sizes, axes = np.linalg.eigh(moments / len(x))
    return np.maximum(sizes, 0), axes


CURVATURE = 0.1
"""What y (1 - y) of a softmax is, roughly: the scale of the loss's second derivative in a logit."""
GRADIENT_TOLERANCE = 1e-5


def fit(
    x: NDArray[Any],
    labels: NDArray[np.int64],
    decay: float,
    start: Fit,
    sizes: Floats,
    axes: Floats,
) -> Fit:
    """Return the minimum of `objective`, by L-BFGS from `start`.

    The second derivative of the loss is nearly CURVATURE x' x / n + decay, whose eigenvalues are decades
    apart. L-BFGS works on the weights along its eigenvectors (`principal`), scaled so that it is the
    identity there: that takes a third of the iterations for the weakest decay of MODELS.
    """
    scale = np.sqrt(CURVATURE * sizes + decay)[:, None]

    def split(flat: Floats) -> tuple[Floats, Floats]:
        return axes @ (flat[: start.weights.size].reshape(scale.size, -1) / scale), flat[start.weights.size :]

    def value(flat: Floats) -> tuple[float, Floats]:
        loss, slope, bias_slope = objective(*split(flat), x, labels, decay)
        return loss, np.concatenate([(axes.T @ slope / scale).ravel(), bias_slope])

    found = minimize(
        value,
        np.concatenate([(axes.T @ start.weights * scale).ravel(), start.bias]),
        jac=True,
        method="L-BFGS-B",
        options={"maxcor": 20, "gtol": GRADIENT_TOLERANCE, "ftol": 0.0, "maxiter": 5000, "maxfun": 10000},
    )
    return Fit(*split(found.x), int(found.nit))


def logits(model: Fit, x: NDArray[Any]) -> Floats:
    """Return the logits in float64."""
    return in_parts(lambda rows: rows @ model.weights + model.bias, x)


def along_gradient(model: Fit, x: NDArray[Any], labels: NDArray[np.int64]) -> Floats:
    """Return the L2 distance to a changed prediction along the gradient of the loss (V-A); 0 if wrong.

    It has a closed form, where the paper walks in steps.
    """

    def distance(rows: NDArray[Any], right: NDArray[np.int64]) -> Floats:
        # the gradient of the error log-odds is this one, but for a positive factor
        gradient = logit_gradient(rows @ model.weights + model.bias, right) @ model.weights.T
        rows = rows.astype(np.float64)
        found: Floats = flip_distance((model.weights, model.bias), rows, epsilon(gradient, 2, 1.0), right)
        return found

    return in_parts(distance, x, labels)


def signed_distances(weights: Floats, z: Floats, labels: NDArray[np.int64]) -> Floats:
    """Return the L2 distance from each example to its boundary with each class, negative beyond it.

    Of the shape of the logits z; inf for the right class. Noise of standard deviation sigma crosses a
    boundary at d with probability Q(d / sigma), so an example is wrong with at least Q(min d / sigma).
    """
    lengths = np.linalg.norm(weights[:, :, None] - weights[:, None, :], axis=0)[labels]
    own = np.arange(z.shape[1]) == labels[:, None]
    gaps = z[own][:, None] - z
    return np.where(own, math.inf, gaps / np.where(own, 1.0, lengths))


def flips(before: Floats, after: Floats, labels: NDArray[np.int64]) -> tuple[float, float]:
    """Return which fraction of the examples went from right to wrong, and from wrong to right."""
    right, still = (z.argmax(axis=1) == labels for z in (before, after))
    return float(np.mean(right & ~still)), float(np.mean(still & ~right))


def under_noise(models: Sequence[Fit], split: Split, seed: int, tick: Callable[[], None]) -> list[Json]:
    """Return for each model, by the standard deviation of the noise, its error and its flips.

    Noise that is orthogonal to all the weights changes no logit, and what is left is as normal and as
    isotropic as in the image. So it is drawn in the space that the weights W = QR span: eta' R has the
    distribution of the noise's eta' W. The models and the standard deviations see the same draws.
    """
    seen = np.linalg.qr(np.concatenate([model.weights for model in models], axis=1)).R
    clean = [logits(model, split.x) for model in models]
    drawn: list[dict[str, list[tuple[float, float]]]] = [
        {f"{std:g}": [] for std in (SMALL, *NOISE)} for _ in models
    ]
    for draw in range(SMALL_DRAWS):
        noise = evaluation_noise(seed, draw, (len(split.x), len(seen)), "float64") @ seen
        for z, shift, results in zip(clean, np.split(noise, len(models), axis=1), drawn, strict=True):
            for std in (SMALL, *(NOISE if draw < NOISE_DRAWS else ())):
                results[f"{std:g}"].append(flips(z, z + std * shift, split.labels))
        tick()
    errors = [float(np.mean(z.argmax(axis=1) != split.labels)) for z in clean]
    return [
        {std: _drawn(error, np.array(each)) for std, each in results.items()}
        for error, results in zip(errors, drawn, strict=True)
    ]


def _drawn(error: float, flipped: Floats) -> Json:
    spoiled, corrected = flipped.mean(axis=0)
    net = flipped[:, 0] - flipped[:, 1]
    return {
        "error": float(error + net.mean()),
        "standard_error": float(net.std(ddof=1)) / math.sqrt(len(net)),
        "spoiled": float(spoiled),
        "corrected": float(corrected),
    }


def distances(model: Fit, split: Split) -> Json:
    """Return what is said of the distances of a set's examples, and what is predicted from them."""
    z = logits(model, split.x)
    to_each = signed_distances(model.weights, z, split.labels)
    nearest, wrong = to_each.min(axis=1), z.argmax(axis=1) != split.labels
    along = along_gradient(model, split.x, split.labels)[~wrong]
    error = float(np.mean(wrong))
    intercept, slope = linear_density(along, CUT)

    def exact(p: float) -> Json:
        def distance(rows: NDArray[Any], right: NDArray[np.int64]) -> Floats:
            found: Floats = boundary_distance(model.weights, model.bias, rows.astype(np.float64), right, p)
            return found

        return _summary(in_parts(distance, split.x[~wrong], split.labels[~wrong]))

    return {
        "error": error,
        "along": _summary(along),
        "nearest": {f"{p:g}": exact(p) for p in (1.0, 2.0, math.inf)},
        "beyond": _summary(-nearest[wrong]),
        "at_least": {f"{std:g}": float(error_from_distances(nearest, std)) for std in STDS},
        "at_most": {
            f"{std:g}": error + (1 - error) * float(np.mean(union_bound(to_each[~wrong], std)))
            for std in STDS
        },
        "line": {
            "intercept": float(intercept),
            "slope": float(slope),
            "through_zero": float(linear_density(along, CUT, through_zero=True)[1]),
        },
        "histogram": _histogram(along, 0.0, float(along.max()), 50),
        "near": _histogram(along, 0.0, CUT, 25),
        "near_wrong": _histogram(nearest[wrong], -CUT, 0.0, 25),
        "right": len(along),
    }


def _summary(values: Floats) -> Json:
    return {"mean": float(values.mean()), "std": float(values.std())}


def _histogram(values: Floats, low: float, high: float, bins: int) -> Json:
    counts, _ = np.histogram(values, bins=bins, range=(low, high))
    return {"low": low, "high": high, "counts": counts.tolist()}


def measure(setting: Setting, tick: Tick) -> Json:
    """Train MODELS on the training images of MNIST, and measure them on those and on the test images."""
    data = load("mnist", setting.data_dir)
    sets = {"training": data.train, "test": data.test}
    inputs = data.train.x.shape[1]
    training_share = 20
    of = training_share * len(MODELS) + SMALL_DRAWS * len(sets)
    sizes, axes = principal(data.train.x)
    fits = [Fit(np.zeros((inputs, data.classes)), np.zeros(data.classes))]
    gradients = []
    for index, model in enumerate(MODELS):
        tick(index * training_share, of, f"training {model.name}")
        fits.append(fit(data.train.x, data.train.labels, model.decay, fits[-1], sizes, axes))
        _, *slopes = objective(fits[-1].weights, fits[-1].bias, data.train.x, data.train.labels, model.decay)
        gradients.append(max(float(np.abs(slope).max()) for slope in slopes))
    done = training_share * len(MODELS)

    def drawn() -> None:
        nonlocal done
        done += 1
        tick(done, of, "noise")

    noise = {
        name: under_noise(fits[1:], split, seed, drawn) for seed, (name, split) in enumerate(sets.items())
    }
    return {
        "examples": {name: len(split.x) for name, split in sets.items()},
        "models": [
            {
                "name": model.name,
                "decay": model.decay,
                "iterations": found.iterations,
                "gradient": gradient,
                **{
                    name: {**distances(found, split), "noise": noise[name][index]}
                    for name, split in sets.items()
                },
            }
            for index, (model, found, gradient) in enumerate(zip(MODELS, fits[1:], gradients, strict=True))
        ],
    }


def pictures(setting: Setting, tick: Tick) -> Json:
    """Return the first training image of each digit, and the same under noise of standard deviation SMALL."""
    tick(0, 1, "images")
    data = load("mnist", setting.data_dir)
    first = [int(np.argmax(data.train.labels == digit)) for digit in range(data.classes)]
    clean = data.train.x[first]
    noisy = clean + SMALL * evaluation_noise(0, 0, clean.shape, "float64")
    _, *shape = data.shape
    return {
        name: np.round(images.astype(np.float64), 3).reshape(-1, *shape).tolist()
        for name, images in (("clean", clean), ("noisy", noisy))
    }


SOFTMAX = Measurement("softmax", measure, cost=2.0, depends=())
PICTURES = Measurement("softmax-pictures", pictures, cost=0.05, depends=())


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
    """Return transparent axes, one for each model and named after it."""
    figure.patch.set_alpha(0)
    figure.set_layout_engine("constrained")
    panels = list(figure.subplots(1, len(models)))
    for axes, model in zip(panels, models, strict=True):
        axes.patch.set_alpha(0)
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(INK)
        axes.tick_params(colors=INK, labelsize=8)
        axes.set_title(model["name"], color=INK, fontsize=9)
        axes.set_xlabel("L2 distance", color=INK, fontsize=8)
    panels[0].set_ylabel("density, per unit", color=INK, fontsize=8)
    return panels


def _legend(figure: Figure) -> None:
    handles, labels = figure.axes[0].get_legend_handles_labels()
    shown = {"ncols": 5, "frameon": False, "fontsize": 8, "labelcolor": INK}
    figure.legend(handles, labels, loc="outside lower center", **shown)


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
        figure.patch.set_alpha(0)
        figure.set_layout_engine("constrained")
        grid = figure.subplots(2, len(result["clean"]))
        for row, name, label in zip(grid, ("clean", "noisy"), ("clean", f"sigma = {SMALL}"), strict=True):
            for axes, image in zip(row, result[name], strict=True):
                axes.imshow(image, cmap="gray", vmin=0, vmax=1)
                axes.set(xticks=[], yticks=[])
                axes.spines[:].set_color(INK)
            row[0].set_ylabel(label, color=INK, fontsize=8)

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
