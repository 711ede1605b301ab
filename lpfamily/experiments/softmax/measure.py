"""Measure section V: softmax regression on MNIST, its distances to the boundary, its errors under noise.

Each model is the minimum of a convex loss, so it has no seed and no schedule. The distances are closed forms;
only the errors under noise are estimated from draws.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lpfamily.classification import cross_entropy
from lpfamily.curvature.derivatives import logit_gradient
from lpfamily.experiments.definitions import Json, Measurement, Setting
from lpfamily.margins import boundary_distance, flip_distance
from lpfamily.noise import error_from_distances, linear_density, union_bound
from lpfamily.step import epsilon
from lpfamily.training.data import Split, load
from lpfamily.training.draws import evaluation_noise
from lpfamily.training.evaluation import NOISE, NOISE_DRAWS, in_chunks
from lpfamily.training.progress import Tick

Floats = NDArray[np.float64]
Inputs = NDArray[np.floating]
Labels = NDArray[np.int64]

SMALL = 0.01
"""The standard deviation of Table IX's noise."""
SMALL_DRAWS = 40
STDS = (0.0, *NOISE)
"""The standard deviations of the noise in Tables VII and VIII."""
CUT = 0.1
"""Fig. 7 takes the density of the distances up to this one as a line."""
ROWS_AT_ONCE = 5000


def weight_decay(penalty: float) -> float:
    """Return the c = lambda / 200 of `objective`, which reproduces Table VI for lambda = 1 and 1e-2.

    The paper does not say how lambda enters its loss.
    """
    return penalty / 200


IMITATING = 9e-6
"""A value of c whose minimum is close to Table VI for lambda = 1e-4; the minimum at lambda / 200 is not."""

MODELS = {
    "lambda = 1": weight_decay(1.0),
    "lambda = 1e-2": weight_decay(1e-2),
    "lambda = 1e-4, imitated": IMITATING,
    "lambda = 1e-4, converged": weight_decay(1e-4),
}
"""The weight decay c of each model, by its row in Tables VI to IX.

The strongest comes first, as the training of each model starts from the one before.
"""


@dataclass(frozen=True, eq=False)
class Fit:
    """A trained softmax regression: weights (inputs, classes) and bias (classes,)."""

    weights: Floats
    bias: Floats
    iterations: int = 0


def objective(
    weights: Floats, bias: Floats, x: Inputs, labels: Labels, decay: float
) -> tuple[float, Floats, Floats]:
    """Return the mean cross-entropy + (decay / 2) |weights|^2, and its gradients in weights and bias.

    Products with x are computed in its dtype, for a block of rows at a time; sums over blocks are float64.
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


def principal(x: Inputs) -> tuple[Floats, Floats]:
    """Return the eigenvalues and eigenvectors of the inputs' second moments, x' x / n."""
    moments = np.zeros((x.shape[1],) * 2)
    for begin in range(0, len(x), ROWS_AT_ONCE):
        rows = x[begin : begin + ROWS_AT_ONCE]
        moments += rows.T @ rows
    sizes, axes = np.linalg.eigh(moments / len(x))
    return np.maximum(sizes, 0), axes


CURVATURE = 0.1
"""A rough value of y (1 - y) of a softmax, the scale of the loss's second derivative in a logit."""
GRADIENT_TOLERANCE = 1e-5


def fit(x: Inputs, labels: Labels, decay: float, start: Fit, sizes: Floats, axes: Floats) -> Fit:
    """Return the minimum of `objective`, by L-BFGS from `start`.

    The Hessian of the loss is nearly CURVATURE x' x / n + decay, whose eigenvalues are decades apart. L-BFGS
    therefore works in the basis of its eigenvectors (`principal`), scaled so that the Hessian is nearly the
    identity. For the weakest decay of MODELS this takes a third of the iterations.
    """
    from scipy.optimize import minimize  # here so that no other command waits for it

    scale = np.sqrt(CURVATURE * sizes + decay)[:, None]

    def split(flat: Floats) -> tuple[Floats, Floats]:
        return axes @ (flat[: start.weights.size].reshape(scale.size, -1) / scale), flat[start.weights.size :]

    def value(flat: Floats) -> tuple[float, Floats]:
        loss, slope, bias_slope = objective(*split(flat), x, labels, decay)
        return loss, np.concatenate([(axes.T @ slope / scale).ravel(), bias_slope])

    optimum = minimize(
        value,
        np.concatenate([(axes.T @ start.weights * scale).ravel(), start.bias]),
        jac=True,
        method="L-BFGS-B",
        options={"maxcor": 20, "gtol": GRADIENT_TOLERANCE, "ftol": 0.0, "maxiter": 5000, "maxfun": 10000},
    )
    return Fit(*split(optimum.x), int(optimum.nit))


def logits(model: Fit, x: Inputs) -> Floats:
    """Return the logits in float64."""
    return in_chunks(lambda rows: rows @ model.weights + model.bias, x)


def along_gradient(model: Fit, x: Inputs, labels: Labels) -> Floats:
    """Return the L2 distance to a changed prediction along the gradient of the loss (V-A); 0 if wrong.

    The paper walks in steps; here the distance has a closed form.
    """

    def distance(rows: Inputs, right: Labels) -> Floats:
        # a positive multiple of the gradient of the error log-odds
        step = epsilon(logit_gradient(logits(model, rows), right) @ model.weights.T, 2, 1.0)
        return np.asarray(flip_distance((model.weights, model.bias), rows.astype(np.float64), step, right))

    return in_chunks(distance, x, labels)


def signed_distances(weights: Floats, z: Floats, labels: Labels) -> Floats:
    """Return the L2 distance from each example to its boundary with each class, negative beyond it.

    The result has the shape of the logits z, and is inf for the right class. Noise of standard deviation
    sigma crosses a boundary at distance d with probability Q(d / sigma), so an example is wrong with a
    probability of at least Q(min d / sigma).
    """
    lengths = np.linalg.norm(weights[:, :, None] - weights[:, None, :], axis=0)[labels]
    right = np.arange(z.shape[1]) == labels[:, None]
    gaps = z[right][:, None] - z
    return np.where(right, math.inf, gaps / np.where(right, 1.0, lengths))


def flips(before: Floats, after: Floats, labels: Labels) -> tuple[float, float]:
    """Return the fractions of the examples that went from right to wrong and from wrong to right."""
    right, still = (z.argmax(axis=1) == labels for z in (before, after))
    return float(np.mean(right & ~still)), float(np.mean(still & ~right))


def under_noise(models: Sequence[Fit], split: Split, seed: int, tick: Callable[[], None]) -> list[Json]:
    """Return for each model its error and its flips, by the standard deviation of the noise.

    Noise orthogonal to all the weights changes no logit, and its projection on the span of the weights is an
    isotropic normal vector too. So the noise is drawn in the span of the weights W = QR: eta' R has the
    distribution of eta' W. All models and standard deviations share the same draws.
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
        {std: _flip_stats(error, np.array(each)) for std, each in results.items()}
        for error, results in zip(errors, drawn, strict=True)
    ]


def _flip_stats(error: float, flipped: Floats) -> Json:
    spoiled, corrected = flipped.mean(axis=0)
    net = flipped[:, 0] - flipped[:, 1]
    return {
        "error": float(error + net.mean()),
        "standard_error": float(net.std(ddof=1)) / math.sqrt(len(net)),
        "spoiled": float(spoiled),
        "corrected": float(corrected),
    }


def distances(model: Fit, split: Split) -> Json:
    """Return statistics of the distances of a set's examples, and the errors predicted from them."""
    z = logits(model, split.x)
    to_each = signed_distances(model.weights, z, split.labels)
    nearest, wrong = to_each.min(axis=1), z.argmax(axis=1) != split.labels
    along = along_gradient(model, split.x, split.labels)[~wrong]
    error = float(np.mean(wrong))
    intercept, slope = linear_density(along, CUT)

    def exact(p: float) -> Json:
        def distance(rows: Inputs, right: Labels) -> Floats:
            return np.asarray(boundary_distance(model.weights, model.bias, rows.astype(np.float64), right, p))

        return _summary(in_chunks(distance, split.x[~wrong], split.labels[~wrong]))

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
    """Train MODELS on the training images of MNIST, and measure them on the training and the test images."""
    data = load("mnist", setting.data_dir)
    sets = {"training": data.train, "test": data.test}
    train, share = data.train, 20
    done, of = share * len(MODELS), share * len(MODELS) + SMALL_DRAWS * len(sets)
    curvature = principal(train.x)
    fits = [Fit(np.zeros((train.x.shape[1], data.classes)), np.zeros(data.classes))]
    models: list[Json] = []
    for index, (name, decay) in enumerate(MODELS.items()):
        tick(index * share, of, f"training {name}")
        fitted = fit(train.x, train.labels, decay, fits[-1], *curvature)
        fits.append(fitted)
        _, *slopes = objective(fitted.weights, fitted.bias, train.x, train.labels, decay)
        gradient = max(float(np.abs(slope).max()) for slope in slopes)
        reached = {"iterations": fitted.iterations, "gradient": gradient}
        models.append({"name": name, "decay": decay} | reached)

    def drawn() -> None:
        nonlocal done
        done += 1
        tick(done, of, "noise")

    for seed, (name, split) in enumerate(sets.items()):
        noise = under_noise(fits[1:], split, seed, drawn)
        for model, fitted, errors in zip(models, fits[1:], noise, strict=True):
            model[name] = distances(fitted, split) | {"noise": errors}
    return {"examples": {name: len(split.x) for name, split in sets.items()}, "models": models}


def pictures(setting: Setting, tick: Tick) -> Json:
    """Return the first training image of each digit, clean and under noise of standard deviation SMALL."""
    tick(0, 1, "images")
    data = load("mnist", setting.data_dir)
    clean = data.train.first_of_each(range(data.classes)).x
    noisy = clean + SMALL * evaluation_noise(0, 0, clean.shape, "float64")
    return {
        name: np.round(images.astype(np.float64), 3).reshape(-1, *data.shape[1:]).tolist()
        for name, images in (("clean", clean), ("noisy", noisy))
    }


SOFTMAX = Measurement("softmax", measure, cost=2.0, depends=())
PICTURES = Measurement("softmax-pictures", pictures, cost=0.05, depends=())
