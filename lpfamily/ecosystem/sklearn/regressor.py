"""A regressor: linear outputs and the squared error."""

# ruff: noqa: N803 (X is scikit-learn's name)

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike
from sklearn.base import RegressorMixin
from sklearn.utils.validation import validate_data

from lpfamily import norm
from lpfamily._docstrings import documented_by
from lpfamily.ecosystem.sklearn.estimator import NetworkEstimator
from lpfamily.training.losses import LossName
from lpfamily.training.networks import Array, Floats


@documented_by(NetworkEstimator)
class LpRegularizedRegressor(RegressorMixin, NetworkEstimator):
    """A dense network for regression, trained at inputs that the steepest step in an Lp ball has moved.

    Each step of training minimises half the squared error at x + eps, where eps is eq. 3 at the gradient g of
    the absolute error of the current network:

        eps = sigma * sign(g) * (|g| / ||g||_p*) ** (1 / (p - 1))        1/p + 1/p* = 1

    `LpRegularizedClassifier` says what p means. An example that is predicted exactly has no such g and is not
    moved. With several outputs the squared error is their mean, and the absolute error is its square root.

    Each output of y is standardised to mean 0 and standard deviation 1 for the training, and `predict`
    reverses that. So y may have any unit, and all outputs count alike. Losses are in units of the variance of
    y: predicting the mean has a loss of 1/2, and R^2 is 1 - 2 * loss. One sigma applies to all columns of X,
    in their unit, so bring them to one scale first, for example with
    `sklearn.preprocessing.StandardScaler`.

    Parameters
    ----------
    hidden_layer_sizes, pieces, objective, p, sigma, steps, clean_weight
        As in `NetworkEstimator`.
    max_iter, batch_size, learning_rate_init, ema, n_iter_no_change, validation_fraction
        As in `NetworkEstimator`.
    backend, device, random_state, verbose
        As in `NetworkEstimator`.

    Attributes
    ----------
    target_mean_, target_scale_
        The weighted mean and standard deviation of y, in `fit` or the first `partial_fit`: numbers, or one
        per output if y has shape (n_samples, n_outputs). The scale is 1 if all values are equal. A
        prediction is `target_mean_` + `target_scale_` * the output of `trained_`.
    n_features_in_, feature_names_in_, n_iter_
        As in `NetworkEstimator`.
    loss_curve_
        The mean objective of each epoch, in units of the variance of y.
    validation_loss_curve_
        Half the mean squared error of the held-out examples after each epoch, in the same units; None if no
        examples are held out. `partial_fit` adds nothing to it.
    trained_
        As in `NetworkEstimator`.

    References
    ----------
    Lyu, Huang, Liang: A Unified Gradient Regularization Family for Adversarial Examples, 2015.

    Examples
    --------
    >>> from sklearn.datasets import load_diabetes
    >>> from sklearn.pipeline import make_pipeline
    >>> from sklearn.preprocessing import StandardScaler
    >>> model = make_pipeline(StandardScaler(), LpRegularizedRegressor(max_iter=20, random_state=0))
    >>> round(model.fit(*load_diabetes(return_X_y=True)).score(*load_diabetes(return_X_y=True)), 2)
    0.5
    """

    _loss: ClassVar[LossName] = "squared-error"

    def fit(
        self, X: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None = None
    ) -> LpRegularizedRegressor:
        """Train on inputs X, (n_samples, n_features), and numbers y, and return self.

        y has shape (n_samples,) or (n_samples, n_outputs), and so have predictions. sample_weight,
        (n_samples,), is the number of times that an epoch visits each example, as in
        `LpRegularizedClassifier.fit`.

        Raises
        ------
        TypeError
            For X that is sparse.
        ValueError
            For a parameter out of its range; X or y that is not finite, or does not have these dimensions; y
            that has no numbers, or numbers so large that their standard deviation is not finite; weights that
            are negative, not finite, or all 0; and, as `BadInput`, a backend or device that cannot be used.
        NotFinite
            If the loss or a weight is no longer a finite number.
        """
        numbers = self._numbers()
        x, y, weights = self._examples(X, y, sample_weight, new=True)
        mean, scale = _moments(y, weights)
        targets = _standardised(y, mean, scale, x.dtype)
        self._fit(numbers, x, targets, weights, targets.shape[1])
        self.target_mean_, self.target_scale_ = mean, scale
        return self

    def partial_fit(
        self, X: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None = None
    ) -> LpRegularizedRegressor:
        """Train the current network for one epoch on these examples, and return self.

        The first call begins with a new network. Its y alone determines `target_mean_` and `target_scale_`,
        so pass enough examples to estimate them. A call after `fit` continues with the network that `fit`
        has trained. The learning rate stays at learning_rate_init; `max_iter` and `validation_fraction` are
        not used. Further calls keep the seed and the dtype of the first.

        Raises
        ------
        TypeError, ValueError, NotFinite
            As in `fit`. ValueError also for n_iter_no_change, which needs all examples, and for hidden layers
            or outputs that are not those of the network.
        """
        numbers, first = self._numbers(), self._is_new
        x, y, weights = self._examples(X, y, sample_weight, new=first)
        mean, scale = _moments(y, weights) if first else (self.target_mean_, self.target_scale_)
        targets = _standardised(y, mean, scale, x.dtype)
        self._continue(numbers, x, targets, weights, targets.shape[1])
        self.target_mean_, self.target_scale_ = mean, scale
        return self

    def predict(self, X: ArrayLike) -> Floats:
        """Return a prediction for inputs of shape (n_samples, n_features); it has the shape of y in `fit`."""
        outputs = self._outputs(X)
        outputs = outputs.reshape(len(outputs), *self.target_mean_.shape)
        return np.asarray(self.target_mean_ + self.target_scale_ * outputs)

    def _checked(self, X: ArrayLike, y: ArrayLike, **how: Any) -> tuple[Floats, Array]:
        x, values = validate_data(self, X, y, multi_output=True, y_numeric=True, **how)
        values = np.asarray(values)
        if values.dtype.kind not in "biuf":
            raise ValueError(f"y must be an array of numbers; got {type(y).__name__} of {values.dtype}")
        is_single = values.dtype in (np.float16, np.float32)
        return x, values.astype(np.float32 if is_single else np.float64, copy=False)

    def _targets(self, y: Array) -> Array:
        return _standardised(y, self.target_mean_, self.target_scale_, self.trained_.recipe.dtype)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags


def _moments(y: Array, weights: Floats) -> tuple[Any, Any]:
    """Return the weighted mean and standard deviation of each output, with 1 for a deviation of 0."""
    values, is_constant = y.astype(np.float64), np.all(y == y[0], axis=0)
    with np.errstate(all="ignore"):
        mean = np.where(is_constant, values[0], np.average(values, axis=0, weights=weights))
        deviations = (values - mean).T * np.sqrt(weights / weights.sum())
    scale = norm(deviations, 2, batch_ndim=y.ndim - 1).astype(y.dtype)
    if not np.all(np.isfinite(scale)):
        raise ValueError("the standard deviation of y is beyond the largest number; divide y by a constant")
    return mean.astype(y.dtype)[()], np.where(is_constant | (scale == 0), y.dtype.type(1), scale)[()]


def _standardised(y: Array, mean: Any, scale: Any, dtype: Any) -> Array:
    """Return the targets of the network, (n, outputs)."""
    if y.shape[1:] != mean.shape:
        raise ValueError(f"y must have shape {('n_samples', *mean.shape)} as in the training; got {y.shape}")
    deviations = y.astype(np.float64) - mean  # they may overflow float32
    targets: Floats = np.ascontiguousarray((deviations / scale).reshape(len(y), -1), dtype)
    return targets
