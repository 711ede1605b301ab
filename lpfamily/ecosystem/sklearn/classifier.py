"""A classifier: softmax and the cross-entropy."""

# ruff: noqa: N803 (X is scikit-learn's name)

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import log_softmax, softmax
from sklearn.base import ClassifierMixin
from sklearn.preprocessing import LabelEncoder
from sklearn.utils.class_weight import compute_class_weight
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import validate_data

from lpfamily._docstrings import documented_by
from lpfamily.classification import cross_entropy
from lpfamily.ecosystem.sklearn.estimator import NetworkEstimator
from lpfamily.training.draws import rescaled
from lpfamily.training.losses import LossName
from lpfamily.training.networks import Array, Floats, Ints


@documented_by(NetworkEstimator)
@dataclass(eq=False, repr=False, kw_only=True)
class LpRegularizedClassifier(ClassifierMixin, NetworkEstimator):
    """A dense network, trained at inputs that the steepest step in an Lp ball has moved.

    Each step of training minimises the cross-entropy at x + eps, where eps is eq. 3 at the gradient g of the
    current network:

        eps = sigma * sign(g) * (|g| / ||g||_p*) ** (1 / (p - 1))        1/p + 1/p* = 1

    The network withstands measurement errors of this size, and often has a lower error on exact measurements.
    p says which errors: at p = 1 one measurement is wrong by much, at p = inf all are wrong by little, at
    p = 2 each is wrong in proportion to its entry of the gradient. One sigma applies to all columns of X, so
    bring them to one scale first, for example with `sklearn.preprocessing.StandardScaler`.

    Parameters
    ----------
    hidden_layer_sizes, pieces, objective, p, sigma, steps, clean_weight
        As in `NetworkEstimator`.
    max_iter, batch_size, learning_rate_init, ema, n_iter_no_change, validation_fraction
        As in `NetworkEstimator`.
    class_weight
        Factors of the weights of examples, by label; only their ratios matter. A dict, in which absent labels
        have 1; "balanced", which gives each class the same total weight; or None.
    backend, device, random_state, verbose
        As in `NetworkEstimator`.

    Attributes
    ----------
    classes_
        The labels, sorted.
    n_features_in_, feature_names_in_, n_iter_
        As in `NetworkEstimator`.
    loss_curve_
        The mean objective of each epoch.
    validation_loss_curve_
        The cross-entropy of the held-out examples after each epoch; None if no examples are held out.
        `partial_fit` adds nothing to it.
    trained_
        As in `NetworkEstimator`.

    References
    ----------
    Lyu, Huang, Liang: A Unified Gradient Regularization Family for Adversarial Examples, 2015.

    Examples
    --------
    >>> from sklearn.datasets import load_wine
    >>> from sklearn.pipeline import make_pipeline
    >>> from sklearn.preprocessing import StandardScaler
    >>> model = make_pipeline(StandardScaler(), LpRegularizedClassifier(p=1, random_state=0))
    >>> model.fit(*load_wine(return_X_y=True)).score(*load_wine(return_X_y=True))
    1.0
    """

    class_weight: Mapping[Any, float] | Literal["balanced"] | None = None

    _loss: ClassVar[LossName] = "cross-entropy"

    def fit(
        self, X: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None = None
    ) -> LpRegularizedClassifier:
        """Train on inputs X, (n_samples, n_features), and labels y, (n_samples,), and return self.

        sample_weight, (n_samples,), is the number of times that an epoch visits each example. An example of
        weight 3 counts like three copies of it, one of weight 0 does not count, and one of weight 1.5 is
        visited once or twice, 1.5 times in the mean over epochs. The number of visits per epoch is the sum of
        the weights, and at least the number of examples with a nonzero weight. So only the ratios of small
        weights matter, and large weights make an epoch long. class_weight multiplies the weights and keeps
        their sum.

        Raises
        ------
        TypeError
            For X that is sparse.
        ValueError
            For a parameter out of its range; fewer than two classes; X that is not finite, or does not have
            two dimensions; weights that are negative, not finite, or all 0; and, as `BadInput`, a backend or
            device that cannot be used.
        NotFinite
            If the loss or a weight is no longer a finite number.
        """
        numbers = self._numbers()
        x, y, weights = self._examples(X, y, sample_weight, new=True)
        classes, labels = np.unique(y, return_inverse=True)
        if len(classes) < 2:
            raise ValueError(f"y holds 1 class, {classes[0]}; a classifier needs two or more")
        weighted = weights * _class_factors(self.class_weight, classes, labels, weights)[labels]
        weights = weighted * (weights.sum() / weighted.sum())
        self._fit(numbers, x, labels, weights, len(classes), labels)
        self.classes_ = classes
        return self

    def partial_fit(
        self,
        X: ArrayLike,
        y: ArrayLike,
        classes: ArrayLike | None = None,
        sample_weight: ArrayLike | None = None,
    ) -> LpRegularizedClassifier:
        """Train the current network for one epoch on these examples, and return self.

        The first call begins with a new network, and a call after `fit` with the network that `fit` has
        trained. The learning rate stays at learning_rate_init; `max_iter` and `validation_fraction` are not
        used. Further calls keep the seed and the dtype of the first. The smallest class weight counts as 1,
        so that class weights mean the same in every call, whichever classes are among its examples. Sample
        weights mean the same in every call if none is below 1.

        Parameters
        ----------
        X, y, sample_weight
            As in `fit`.
        classes
            In the first call, all labels of this and later calls; afterwards None or the same labels.

        Raises
        ------
        TypeError, ValueError, NotFinite
            As in `fit`. ValueError also for a first call without classes, for other classes later, for labels
            that are not among them, for class_weight="balanced" and n_iter_no_change, which need all
            examples, and for hidden layers that are not those of the network.
        """
        numbers, first = self._numbers(), self._is_new
        if self.class_weight == "balanced":
            raise ValueError(
                "partial_fit sees only some examples at a time and cannot balance their classes: pass a dict "
                "as class_weight, made by sklearn.utils.class_weight.compute_class_weight from all examples"
            )
        if first and classes is None:
            raise ValueError(
                "the first call of partial_fit needs classes, all labels of this and later calls"
            )
        known = self.classes_ if classes is None else np.unique(np.asarray(classes))
        if not first and not np.array_equal(known, self.classes_):
            raise ValueError(f"classes must stay those of the first call, {self.classes_}; got {known}")
        if len(known) < 2:
            raise ValueError(f"classes holds {len(known)} class; a classifier needs two or more")
        x, y, weights = self._examples(X, y, sample_weight, new=first)
        labels = LabelEncoder().fit(known).transform(y)
        factors = _class_factors(self.class_weight, known, labels, weights)
        weights = weights * (factors / factors[factors > 0].min())[labels]
        self._continue(numbers, x, labels, weights, len(known))
        self.classes_ = known
        return self

    def predict(self, X: ArrayLike) -> NDArray[np.generic]:
        """Return the label of the largest probability for inputs of shape (n_samples, n_features)."""
        most = self._outputs(X).argmax(axis=1)
        return np.asarray(self.classes_[most])

    def predict_proba(self, X: ArrayLike) -> Floats:
        """Return the probabilities, (n_samples, n_classes), in the order of `classes_`."""
        return np.asarray(softmax(self._outputs(X), axis=1))

    def predict_log_proba(self, X: ArrayLike) -> Floats:
        """Return the logarithms of the probabilities, exact also where one rounds to 1 or to 0."""
        logits = self._outputs(X)
        result, most = np.asarray(log_softmax(logits, axis=1)), logits.argmax(axis=1)
        result[np.arange(len(most)), most] = -cross_entropy(logits, most)
        return result

    def _checked(self, X: ArrayLike, y: ArrayLike, **how: Any) -> tuple[Floats, Array]:
        x, labels = validate_data(self, X, y, **how)
        check_classification_targets(labels)
        return x, labels

    def _targets(self, y: Array) -> Array:
        labels: Ints = LabelEncoder().fit(self.classes_).transform(y)
        return labels


def _class_factors(
    class_weight: Mapping[Any, float] | str | None,
    classes: NDArray[np.generic],
    labels: Ints,
    weights: Floats,
) -> Floats:
    """Return a factor for each class, of which only the ratios matter."""
    if class_weight == "balanced":
        # not by scikit-learn, whose lowest supported version ignores sample weights here
        return 1 / np.bincount(labels, weights, len(classes))
    factors: Floats = compute_class_weight(class_weight, classes=classes, y=classes)
    if not np.all(np.isfinite(factors) & (factors >= 0)):
        raise ValueError(f"class_weight must hold finite numbers, 0 or more; got {class_weight!r}")
    if not factors[labels].any():
        raise ValueError("class_weight is 0 for every example; one needs a weight above 0")
    return rescaled(factors)
