"""A scikit-learn classifier: a dense network trained with the Lp family."""

# ruff: noqa: N803 (X is scikit-learn's name)

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from numbers import Integral, Real
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import log_softmax, softmax

from lpfamily._arrays import Bounds, Numbers
from lpfamily._packages import needs
from lpfamily.ascent import ascend
from lpfamily.classification import cross_entropy, error_log_odds
from lpfamily.training import Trained, backends, evaluation, recipes
from lpfamily.training.choices import COUNT, COUNT_OR_NONE, Range, options
from lpfamily.training.data import Split
from lpfamily.training.networks import Floats, Ints, Network, State, initial_state, parameter_shapes
from lpfamily.training.progress import Progress
from lpfamily.training.protocol.epochs import Standing, finite, train
from lpfamily.training.recipes import Recipe
from lpfamily.training.tasks import Machine, Rates
from lpfamily_numpy import backend as numpy_backend

with needs('pip install "lpfamily[train]"', "sklearn"):
    from sklearn.base import BaseEstimator, ClassifierMixin
    from sklearn.model_selection import train_test_split
    from sklearn.preprocessing import LabelEncoder
    from sklearn.utils import check_random_state
    from sklearn.utils.class_weight import compute_class_weight
    from sklearn.utils.multiclass import check_classification_targets
    from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data

SHARE = 0.05
"""How far `sigma=None` moves each coordinate at p = inf: a twentieth of a standard deviation."""

MOMENTUM = 0.9

MOST_VISITS = 10**9
"""How many examples an epoch may visit, by the sum of the weights."""

FIELDS = {name: name for name in ("p", "sigma", "steps", "clean_weight", "batch_size")} | {
    "max_iter": "epochs",
    "learning_rate_init": "lr",
}
"""The recipe's fields that parameters are."""

RANGES: dict[str, Any] = {
    "pieces": COUNT_OR_NONE,
    **{name: options(Recipe)[field].values for name, field in FIELDS.items()},
    "n_iter_no_change": COUNT,
    "validation_fraction": Range("a number between 0 and 1", lambda v: 0 < v < 1),
}
"""What each number may be, beside the units of the hidden layers."""

REMEDY = "bring X to one scale, as StandardScaler does, or lower learning_rate_init or sigma"

OPTIONAL = ("sigma", "n_iter_no_change")
"""Those that may be None."""


class LpRegularizedClassifier(ClassifierMixin, BaseEstimator):
    """A dense network that is trained where the steepest step in an Lp ball takes its inputs.

    Each step of training minimises the cross-entropy at x + eps, with eq. 3's eps at the gradient g of the
    network as it is:

        eps = sigma * sign(g) * (|g| / ||g||_p*) ** (1 / (p - 1))        1/p + 1/p* = 1

    The network withstands measurements that are wrong by as much, and often errs less on right ones. p says
    how they are wrong: at p = 1 one of them by much, at p = inf all of them by little, at p = 2 each in
    proportion to its part in the gradient. sigma is one for all columns of X: bring them to one scale first,
    as `sklearn.preprocessing.StandardScaler` does.

    Parameters
    ----------
    hidden_layer_sizes
        The units of each hidden layer; () is softmax regression.
    pieces
        The linear pieces of each maxout unit; 0 makes them sigmoid units.
    objective
        What a step of training minimises, L being the cross-entropy of an example:

        - "perturb": clean_weight * L(x) + (1 - clean_weight) * L(x + eps), eps held constant.
        - "penalty": L(x) + sigma * ||grad L(x)||_p* (eq. 4).
        - "noise": L(x + eta), eta Gaussian with standard deviation sigma in each coordinate (Remark 1).
        - "plain": L(x).
    p
        The exponent of the ball, from 1 to inf; the string "inf" is infinity too.
    sigma
        The radius of the ball, the factor of the penalty, or the standard deviation of the noise, in units
        of X. None is 0.05 * n_features ** (1 / p), the same strength at every p, and 0.05 for noise.
    steps
        How many gradients `perturb` finds eps by: one is eq. 3, more are Frank-Wolfe's method.
    clean_weight
        The weight of L(x) in `perturb`, from 0 to 1.
    max_iter
        The most epochs.
    batch_size
        Examples in a minibatch.
    learning_rate_init
        The rate of the gradient descent, whose momentum is 0.9, before the first epoch. Each epoch lowers it
        by as much, and the last of `max_iter` has a hundredth of it. Maxout units want a lower one.
    n_iter_no_change
        Stop after so many epochs without a new least cross-entropy of held-out examples, and keep the
        parameters of the least; None holds nothing out.
    validation_fraction
        The part of the examples that `n_iter_no_change` holds out.
    class_weight
        What each label multiplies the weight of its examples by, relative to the others: a dict, in which
        labels that are absent have 1; "balanced", which gives each class the same total weight; or None.
    backend
        What trains: "numpy", "torch", "jax", or another that is installed. In float64 all of them train
        the same network, to rounding.
    device
        One of the backend's, such as "cuda".
    random_state
        A number, a `numpy.random.RandomState`, or None for NumPy's global one.
    verbose
        Whether to show progress on stderr.

    Attributes
    ----------
    classes_
        The labels, sorted.
    n_features_in_, feature_names_in_
        As in any estimator.
    n_iter_
        How many epochs were trained, of `fit` and of each `partial_fit` since.
    loss_curve_
        The mean objective of each epoch.
    validation_loss_curve_
        The cross-entropy of the held-out examples after each epoch; None without any. `partial_fit` adds
        nothing to it.
    trained_
        The network as a `lpfamily.training.Trained`, plain data and NumPy arrays of X's dtype, float32 or
        float64. `trained_.recipe.sigma` is the sigma of the training, `trained_.model("torch")` a module of
        torch's. Predictions need NumPy alone, whatever has trained it.

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

    def __init__(
        self,
        hidden_layer_sizes: int | Sequence[int] = (100,),
        *,
        pieces: int = 0,
        objective: backends.ObjectiveName = "perturb",
        p: float | Literal["inf"] = 2.0,
        sigma: float | None = None,
        steps: int = 1,
        clean_weight: float = 0.0,
        max_iter: int = 100,
        batch_size: int = 32,
        learning_rate_init: float = 0.05,
        n_iter_no_change: int | None = None,
        validation_fraction: float = 0.1,
        class_weight: Mapping[Any, float] | Literal["balanced"] | None = None,
        backend: str = "numpy",
        device: str = "cpu",
        random_state: int | np.random.RandomState | None = None,
        verbose: bool = False,
    ) -> None:
        self.hidden_layer_sizes = hidden_layer_sizes
        self.pieces = pieces
        self.objective = objective
        self.p = p
        self.sigma = sigma
        self.steps = steps
        self.clean_weight = clean_weight
        self.max_iter = max_iter
        self.batch_size = batch_size
        self.learning_rate_init = learning_rate_init
        self.n_iter_no_change = n_iter_no_change
        self.validation_fraction = validation_fraction
        self.class_weight = class_weight
        self.backend = backend
        self.device = device
        self.random_state = random_state
        self.verbose = verbose

    def fit(
        self, X: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None = None
    ) -> LpRegularizedClassifier:
        """Train on inputs X, (n_samples, n_features), and labels y, (n_samples,), and return self.

        sample_weight, (n_samples,), is how often an epoch visits each example: one of weight 3 counts like
        three copies of it, and one of weight 0 like none; one of weight 1.5 is visited once or twice, which
        is 1.5 times in the mean over epochs. An epoch makes as many visits as the weights sum to, and at
        least one for each example that has a weight: so small weights are relative, and large ones make an
        epoch long. class_weight multiplies the weights and keeps their sum.

        Raises
        ------
        TypeError
            For X that is sparse.
        ValueError
            For a parameter out of its range; fewer than two classes; X that is not finite, or not of two
            dimensions; weights that are negative, not finite, or all 0; and, as `BadInput`, a backend or
            device that cannot be used.
        NotFinite
            The loss or a weight is no longer a finite number.
        """
        numbers = self._numbers()
        x, targets, weights = self._examples(X, y, sample_weight, (np.float64, np.float32))
        self.classes_, labels = np.unique(targets, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(f"y holds 1 class, {self.classes_[0]}; a classifier needs two or more")
        weighted = weights * _class_factors(self.class_weight, self.classes_, labels, weights)[labels]
        weights = weighted * (weights.sum() / weighted.sum())
        recipe, held = self._recipe(numbers, x, len(self.classes_)), None
        if recipe.patience:
            share, seed = numbers["validation_fraction"], recipe.seed
            try:
                x, held_x, labels, held_labels, weights, held_weights = train_test_split(
                    x, labels, weights, test_size=share, stratify=labels, random_state=seed
                )
            except ValueError as cause:
                raise ValueError(
                    f"{cause} n_iter_no_change holds out {share:g} of the examples: raise "
                    f"validation_fraction, or pass n_iter_no_change=None"
                ) from cause
            recipe, held = replace(recipe, validation=len(held_x)), (held_x, held_labels, held_weights)
        network = recipes.network_of(recipe, (1, 1, x.shape[1]), len(self.classes_))
        state = initial_state(network, recipe.seed, recipe.dtype)
        examples, start = Split(x, labels), Standing()
        state, epoch, lines = self._train(recipe, network, examples, weights, state, held, start)
        self.n_iter_ = len(lines)
        self.loss_curve_ = [line["loss"] for line in lines]
        self.validation_loss_curve_ = [line["held_out_loss"] for line in lines] if held else None
        parameters = {name: state[name] for name in parameter_shapes(network)}
        self.trained_ = Trained(network, recipe, parameters, epoch, None)
        self._velocities: State = {}
        return self

    def partial_fit(
        self,
        X: ArrayLike,
        y: ArrayLike,
        classes: ArrayLike | None = None,
        sample_weight: ArrayLike | None = None,
    ) -> LpRegularizedClassifier:
        """Train for one epoch on these examples, from the network as it is, and return self.

        The first call begins with a new network, and a call after `fit` with what that has trained. The rate
        stays at learning_rate_init, and `max_iter` and `validation_fraction` have no part. Further calls
        have the seed and the dtype of the first. The least class weight counts as 1, so that it means the
        same in every call, whatever classes that has; sample weights do where none is below 1.

        Parameters
        ----------
        X, y, sample_weight
            As in `fit`.
        classes
            All labels that any call will have, in the first call; afterwards None or the same.

        Raises
        ------
        TypeError, ValueError, NotFinite
            As in `fit`, and ValueError for a first call without classes, other classes later, labels that
            are none of them, class_weight="balanced" or n_iter_no_change, which look at all examples, and
            hidden layers that are not those of the network.
        """
        numbers, first = self._numbers(), not hasattr(self, "trained_")
        if self.class_weight == "balanced":
            raise ValueError(
                "partial_fit sees some examples at a time and cannot balance their classes; pass what "
                "sklearn.utils.class_weight.compute_class_weight says of all of them as a dict class_weight"
            )
        if self.n_iter_no_change is not None:
            raise ValueError("partial_fit holds nothing out; pass n_iter_no_change=None")
        if first and classes is None:
            raise ValueError("the first call of partial_fit needs classes, all labels that y will ever hold")
        known = self.classes_ if classes is None else np.unique(np.asarray(classes))
        if not first and not np.array_equal(known, self.classes_):
            raise ValueError(f"classes must stay those of the first call, {self.classes_}; got {known}")
        if len(known) < 2:
            raise ValueError(f"classes holds {len(known)} class; a classifier needs two or more")
        dtype = (np.float64, np.float32) if first else self.trained_.recipe.dtype
        x, targets, weights = self._examples(X, y, sample_weight, dtype, reset=first)
        labels = LabelEncoder().fit(known).transform(targets)
        factors = _class_factors(self.class_weight, known, labels, weights)
        weights = weights * (factors / factors[factors > 0].min())[labels]
        recipe = replace(self._recipe(numbers, x, len(known)), lr_decay="none")
        network = recipes.network_of(recipe, (1, 1, x.shape[1]), len(known))
        done, state = 0, initial_state(network, recipe.seed, recipe.dtype)
        if not first:
            if network != self.trained_.network:
                raise ValueError(
                    "hidden_layer_sizes and pieces must stay those of the network that partial_fit goes on "
                    "with; call fit for a new one"
                )
            recipe = replace(recipe, seed=self.trained_.recipe.seed)
            done, state = self.n_iter_, state | self.trained_.parameters | self._velocities
        recipe, examples, start = replace(recipe, epochs=done + 1), Split(x, labels), Standing(done)
        state, epoch, (line,) = self._train(recipe, network, examples, weights, state, None, start)
        self.classes_, self.n_iter_ = known, epoch
        self.loss_curve_ = [*([] if first else self.loss_curve_), line["loss"]]
        if first:
            self.validation_loss_curve_ = None
        parameters = {name: state.pop(name) for name in parameter_shapes(network)}
        self.trained_, self._velocities = Trained(network, recipe, parameters, epoch, None), state
        return self

    def predict(self, X: ArrayLike) -> NDArray[np.generic]:
        """Return the label of the largest probability for each of (n_samples, n_features) inputs."""
        most = self._logits(X).argmax(axis=1)
        return np.asarray(self.classes_[most])

    def predict_proba(self, X: ArrayLike) -> Floats:
        """Return the probabilities, (n_samples, n_classes), in the order of `classes_`."""
        return np.asarray(softmax(self._logits(X), axis=1))

    def predict_log_proba(self, X: ArrayLike) -> Floats:
        """Return the logarithms of the probabilities, exact also where one rounds to 1 or to 0."""
        logits = self._logits(X)
        result, most = np.asarray(log_softmax(logits, axis=1)), logits.argmax(axis=1)
        result[np.arange(len(most)), most] = -cross_entropy(logits, most)
        return result

    def perturb(
        self,
        X: ArrayLike,
        y: ArrayLike,
        *,
        p: float | Literal["inf"] | None = None,
        sigma: Numbers | None = None,
        steps: int = 1,
        bounds: Bounds | None = None,
        mask: ArrayLike | None = None,
    ) -> Floats:
        """Return eps in the Lp ball, the step that the network withstands least by its gradient.

        `lpfamily.ascend` of `lpfamily.error_log_odds`: one step is eq. 3, or none for an example whose
        log-odds it does not raise. The accuracy at X + eps is what the network keeps in the ball at most.

        Parameters
        ----------
        X, y
            Inputs, (n_samples, n_features), and their labels.
        p
            The exponent of the ball; None is that of the training.
        sigma
            Its radius in units of X, a number or one for each sample; None is that of the training, times
            n_features ** (1 / p - 1 / p_training).
        steps
            How many gradients to take.
        bounds
            The least and the largest values of X + eps, numbers or arrays, such as one for each feature.
        mask
            Boolean, broadcastable to X: what may move, such as the features that can be wrong.

        Returns
        -------
        ndarray
            eps, like X, in the dtype of the training.

        Raises
        ------
        ValueError
            As in `fit`, for labels that are not in `classes_`, and as in `lpfamily.ascend`.
        """
        check_is_fitted(self)
        recipe = self.trained_.recipe
        x, y = validate_data(self, X, y, reset=False, dtype=recipe.dtype)
        labels = LabelEncoder().fit(self.classes_).transform(y)
        trainer = self.trained_.trainer("numpy")

        def value_and_grad(at: Floats) -> tuple[Floats, Floats]:
            return error_log_odds(trainer.logits(at), labels), trainer.input_gradients(at, labels)

        p = recipe.p if p is None else float(p)
        sigma = recipes.matched_radius(recipe, p, x.shape[1]) if sigma is None else sigma
        return np.asarray(ascend(value_and_grad, x, p, sigma, steps, bounds=bounds, mask=mask))

    def _logits(self, X: ArrayLike) -> Floats:
        check_is_fitted(self)
        x: Floats = validate_data(self, X, reset=False, dtype=self.trained_.recipe.dtype)
        # not by trained_.model, which looks for the installed backends: that takes 10 ms
        model = numpy_backend.model(self.trained_.network, self.trained_.parameters)
        return evaluation.in_parts(model, x)

    def _examples(
        self, X: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None, dtype: Any, *, reset: bool = True
    ) -> tuple[Floats, NDArray[np.generic], Floats]:
        """Return inputs, labels and weights of the examples whose weight is not 0."""
        x, targets = validate_data(self, X, y, dtype=dtype, reset=reset)
        check_classification_targets(targets)
        weights = _check_sample_weight(sample_weight, x, dtype=np.float64)
        if np.any(weights < 0):
            raise ValueError(f"sample_weight must be 0 or more; got {weights.min()}")
        used = weights > 0
        if not used.any():
            raise ValueError("sample_weight is 0 for every example; one needs a weight above 0")
        return (x, targets, weights) if used.all() else (x[used], targets[used], weights[used])

    def _train(
        self,
        recipe: Recipe,
        network: Network,
        examples: Split,
        weights: Floats,
        state: State,
        held: tuple[Floats, Ints, Floats] | None,
        start: Standing,
    ) -> tuple[State, int, list[backends.Metrics]]:
        """Return the state that is kept, the epoch that it is from, and the metrics of every epoch."""
        backend = backends.find_for(self.backend, network)
        backend.check_device(self.device)
        trainer = backend.trainer(recipes.task_of(recipe, network, examples, Machine(self.device)), state)
        kept: State = {}
        lines: list[backends.Metrics] = []
        best, visits = 0, _visits(weights)

        def measure(rates: Rates) -> backends.Metrics:
            if not held:
                return {}
            x, labels, weights = held
            losses = evaluation.in_parts(trainer.losses, x, labels)
            loss = float(np.average(losses, weights=weights))
            return {"held_out_loss": finite(loss, "the held-out loss", REMEDY)}

        with Progress(quiet=not self.verbose).epochs(recipe.epochs, start.epoch) as shown:
            for epoch in train(
                trainer,
                recipe,
                visits,
                functools.partial(recipes.rates, recipe),
                measure,
                last=recipe.epochs,
                start=start,
                weights=weights,
                judged="held_out_loss" if held else "",
                tick=shown.tick,
                remedy=lambda: REMEDY,
            ):
                lines.append(epoch.metrics)
                if not held or epoch.is_best:
                    kept, best = epoch.state, epoch.standing.epoch
                to_come = epoch.standing.to_come(recipe.epochs, recipe.patience if held else 0)
                shown.report(epoch.metrics, visits, *to_come)
        return kept, best, lines

    def _numbers(self) -> dict[str, Any]:
        """Return the parameters that are numbers, as Python's."""
        name, units = "hidden_layer_sizes", np.atleast_1d(self.hidden_layer_sizes).tolist()
        found: dict[str, Any] = {name: tuple(_within(COUNT, name, unit) for unit in units)}
        for name, range_ in RANGES.items():
            value = getattr(self, name)
            value = math.inf if name == "p" and isinstance(value, str) and value == "inf" else value
            if not (value is None and name in OPTIONAL):
                found[name] = _within(range_, name, value)
        return found

    def _recipe(self, numbers: dict[str, Any], x: Floats, classes: int) -> Recipe:
        """Return what is to be trained."""
        inputs, units, pieces = x.shape[1], numbers["hidden_layer_sizes"], numbers["pieces"]
        exponent = 0 if self.objective == "noise" else 1 / numbers["p"]
        numbers = {"sigma": SHARE * inputs**exponent} | numbers
        return Recipe(
            data="tabular",
            model="maxout" if pieces else "sigmoid-mlp",
            units=units,
            pieces=(pieces,) if pieces else (),
            max_norm=(0.0,),
            init=math.sqrt(6 / (inputs + (*units, classes)[0])),
            objective=self.objective,
            lr_decay="linear",
            lr_epochs=numbers["max_iter"],
            momentum=MOMENTUM,
            momentum_final=MOMENTUM,
            validation=0,
            patience=numbers.get("n_iter_no_change", 0),
            second_stage="none",
            seed=int(check_random_state(self.random_state).randint(10**9)),
            dtype=x.dtype.name,  # type: ignore[arg-type]
            **{field: numbers[name] for name, field in FIELDS.items()},
        )


def _within(range_: Range, name: str, value: Any) -> Any:
    """Return a number that lies in its range; raise ValueError for any other."""
    number = isinstance(value, Integral if range_.kind is int else Real)
    if not number or isinstance(value, bool) or not range_.accepts(value):
        raise ValueError(f"{name} must be {range_.what}; got {value!r}")
    return range_.kind(value)


def _class_factors(
    class_weight: Mapping[Any, float] | str | None,
    classes: NDArray[np.generic],
    labels: Ints,
    weights: Floats,
) -> Floats:
    """Return the factor of each class, relative to the others."""
    if class_weight == "balanced":
        # not scikit-learn's, whose lowest version counts every example once, whatever its weight
        return 1 / np.bincount(labels, weights, len(classes))
    factors: Floats = compute_class_weight(class_weight, classes=classes, y=classes)
    if not np.all(np.isfinite(factors) & (factors >= 0)):
        raise ValueError(f"class_weight must hold finite numbers, 0 or more; got {class_weight!r}")
    if not factors[labels].any():
        raise ValueError("class_weight is 0 for every example; one needs a weight above 0")
    return factors


def _visits(weights: Floats) -> int:
    """Return how many examples an epoch visits."""
    total = float(weights.sum())
    if not total <= MOST_VISITS:
        raise ValueError(
            f"the weights of the examples sum to {total:.3g}, and an epoch makes as many visits; "
            f"divide sample_weight by its mean"
        )
    return max(round(total), int(np.count_nonzero(weights)))
