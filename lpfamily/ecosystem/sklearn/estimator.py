"""The base of the estimators: their parameters and their training."""

# ruff: noqa: N803 (X is scikit-learn's name)

# no postponed annotations: those of the fields are evaluated in the modules of the subclasses, too
import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, replace
from numbers import Integral, Real
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator
from sklearn.model_selection import train_test_split
from sklearn.utils import check_random_state
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data

from lpfamily._arrays import Bounds, Numbers
from lpfamily.ascent import ascend
from lpfamily.training import Trained, backends, evaluation, recipes
from lpfamily.training.choices import COUNT, COUNT_OR_ZERO, Range, options
from lpfamily.training.losses import LOSSES, LossName
from lpfamily.training.networks import Array, Floats, Network, State, at_rest, evaluated, initial_state
from lpfamily.training.progress import Progress
from lpfamily.training.protocol.epochs import Standing, finite, train
from lpfamily.training.recipes import Recipe
from lpfamily.training.tasks import Machine, Rates
from lpfamily_numpy import backend as numpy_backend

SHARE = 0.05
"""The distance by which `sigma=None` moves each coordinate at p = inf: 1/20 of a standard deviation."""

MOMENTUM = 0.9

MOST_VISITS = 10**9
"""The largest number of visits in an epoch, which is the sum of the weights."""

OBJECTIVES = "plain", "noise", "perturb", "penalty"
"""The objectives that have a meaning for both numbers and classes."""
FIELDS = {name: name for name in ("p", "sigma", "steps", "clean_weight", "batch_size", "ema")} | {
    "max_iter": "epochs",
    "learning_rate_init": "lr",
}
"""By the name of a parameter, the field of the recipe that it sets."""

RANGES: dict[str, Any] = {
    "pieces": COUNT_OR_ZERO,
    **{name: options(Recipe)[field].values for name, field in FIELDS.items()},
    "n_iter_no_change": COUNT,
    "validation_fraction": Range("a number between 0 and 1", lambda v: 0 < v < 1),
}
"""The values that each number may have; the units of hidden layers are checked apart."""

REMEDY = "bring X to one scale, as StandardScaler does, or lower learning_rate_init or sigma"

OPTIONAL = ("sigma", "n_iter_no_change")
"""The numbers that may be None."""

HeldOut = tuple[Floats, Array, Floats]
"""Inputs, targets and weights of the held-out examples."""


@dataclass(eq=False, repr=False)
class NetworkEstimator(BaseEstimator, ABC):
    """A dense network, trained at inputs that the steepest step in an Lp ball has moved.

    Parameters
    ----------
    hidden_layer_sizes
        The number of units of each hidden layer; () is a linear model.
    pieces
        The number of linear pieces of each maxout unit; 0 means sigmoid units.
    objective
        The objective that a step of training minimises, where L is the loss of an example:

        - "perturb": clean_weight * L(x) + (1 - clean_weight) * L(x + eps), eps held constant.
        - "penalty": L(x) + sigma * ||grad L(x)||_p* (eq. 4).
        - "noise": L(x + eta), eta Gaussian with standard deviation sigma in each coordinate (Remark 1).
        - "plain": L(x).
    p
        The exponent of the ball, from 1 to inf; the string "inf" means infinity.
    sigma
        The radius of the ball, the factor of the penalty, or the standard deviation of the noise, in units
        of X. None means 0.05 * n_features ** (1 / p), the same strength at every p, and 0.05 for noise.
    steps
        The number of gradients with which "perturb" finds eps: 1 is eq. 3, more are Frank-Wolfe's method.
        Other objectives ignore it.
    clean_weight
        The weight of L(x) in "perturb", from 0 to 1. Other objectives ignore it.
    max_iter
        The largest number of epochs.
    batch_size
        The number of examples in a minibatch.
    learning_rate_init
        The initial learning rate of gradient descent with momentum 0.9. It falls by the same amount in each
        epoch, to a hundredth in the last of `max_iter`. Maxout units need a lower one.
    ema
        The share that an exponential moving average of the parameters keeps of itself in a step, such as
        0.999; it is lower in the first steps. The average then predicts, and n_iter_no_change uses its
        losses. 0 means no average.
    n_iter_no_change
        Stop after this many epochs without a new smallest loss of held-out examples, and keep the parameters
        with the smallest loss. None holds no examples out.
    validation_fraction
        The fraction of the examples that `n_iter_no_change` holds out.
    backend
        The backend that trains: "numpy", "torch", "jax", or another that is installed. In float64 all of
        them train the same network, to rounding.
    device
        A device of the backend, such as "cuda".
    random_state
        A number, a `numpy.random.RandomState`, or None for NumPy's global one.
    verbose
        Whether to show progress on stderr.

    Attributes
    ----------
    n_features_in_, feature_names_in_
        As in any estimator.
    n_iter_
        The number of epochs trained by `fit` and by each `partial_fit` since.
    trained_
        The network as a `lpfamily.training.Trained`, plain data and NumPy arrays of X's dtype, float32 or
        float64. `trained_.recipe.sigma` is the sigma of the training, `trained_.model("torch")` a torch
        module. Predictions need only NumPy, whichever backend has trained it.
    """

    hidden_layer_sizes: int | Sequence[int] = (100,)
    _: KW_ONLY
    pieces: int = 0
    objective: Literal["plain", "noise", "perturb", "penalty"] = "perturb"
    p: float | Literal["inf"] = 2.0
    sigma: float | None = None
    steps: int = 1
    clean_weight: float = 0.0
    max_iter: int = 100
    batch_size: int = 32
    learning_rate_init: float = 0.05
    ema: float = 0.0
    n_iter_no_change: int | None = None
    validation_fraction: float = 0.1
    backend: str = "numpy"
    device: str = "cpu"
    random_state: int | np.random.RandomState | None = None
    verbose: bool = False

    _loss: ClassVar[LossName]

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
        """Return eps in the Lp ball that raises the error of the network, found by its gradients.

        It is `lpfamily.ascend` of `lpfamily.error_log_odds`, or of a regressor's absolute error. One step is
        eq. 3; an example whose error it does not raise, such as one that is predicted exactly, keeps eps = 0.
        The score at X + eps is an upper bound of the network's score in the ball.

        Parameters
        ----------
        X, y
            Inputs, (n_samples, n_features), and their labels or values.
        p
            The exponent of the ball; None means that of the training.
        sigma
            The radius in units of X, a number or one per sample; None means that of the training, times
            n_features ** (1 / p - 1 / p_training).
        steps
            The number of gradients.
        bounds
            The smallest and the largest values of X + eps: numbers, or arrays such as one value per feature.
        mask
            A boolean array that broadcasts to X, True where entries may move, for example in the features
            that can be wrong.

        Returns
        -------
        ndarray
            eps, like X, in the dtype of the training.

        Raises
        ------
        ValueError
            As in `fit` and `lpfamily.ascend`, for labels that are not in `classes_`, and for values of
            another shape than those of the training.
        """
        check_is_fitted(self)
        recipe, trainer = self.trained_.recipe, self.trained_.trainer("numpy")
        x, y = self._checked(X, y, dtype=recipe.dtype, reset=False)
        targets, inner = self._targets(y), LOSSES[self._loss].inner

        def value_and_grad(at: Floats) -> tuple[Floats, Floats]:
            outputs, gradients = backends.logits_and_gradients(trainer, at, targets)
            return inner(outputs, targets), gradients

        p = recipe.p if p is None else float(p)
        sigma = recipes.matched_radius(recipe, p, x.shape[1]) if sigma is None else sigma
        return np.asarray(ascend(value_and_grad, x, p, sigma, steps, bounds=bounds, mask=mask))

    @abstractmethod
    def _checked(self, X: ArrayLike, y: ArrayLike, **how: Any) -> tuple[Floats, Array]:
        """Return X and y as arrays; raise if `validate_data` or this kind of estimator refuses them."""

    @abstractmethod
    def _targets(self, y: Array) -> Array:
        """Return the targets of the network."""

    def _outputs(self, X: ArrayLike) -> Floats:
        check_is_fitted(self)
        x: Floats = validate_data(self, X, reset=False, dtype=self.trained_.recipe.dtype)
        # trained_.model would search for installed backends, which takes 10 ms
        model = numpy_backend.model(self.trained_.network, self.trained_.parameters)
        return evaluation.in_chunks(model, x)

    @property
    def _is_new(self) -> bool:
        return not hasattr(self, "trained_")

    def _examples(
        self, X: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None, *, new: bool
    ) -> tuple[Floats, Array, Floats]:
        """Return inputs, y and weights of the examples whose weight is not 0."""
        dtype = (np.float64, np.float32) if new else self.trained_.recipe.dtype
        x, y = self._checked(X, y, dtype=dtype, reset=new)
        weights = _check_sample_weight(sample_weight, x, dtype=np.float64)
        if np.any(weights < 0):
            raise ValueError(f"sample_weight must be 0 or more; got {weights.min()}")
        used = weights > 0
        if not used.any():
            raise ValueError("sample_weight is 0 for every example; one needs a weight above 0")
        return (x, y, weights) if used.all() else (x[used], y[used], weights[used])

    def _fit(
        self,
        numbers: dict[str, Any],
        x: Floats,
        targets: Array,
        weights: Floats,
        outputs: int,
        classes: Array | None = None,
    ) -> None:
        """Train a new network; with `classes`, the held-out examples are stratified by class."""
        recipe, held_out = self._recipe(numbers, x, outputs), None
        if recipe.patience:
            share, seed = numbers["validation_fraction"], recipe.seed
            try:
                x, out_x, targets, out_targets, weights, out_weights = train_test_split(
                    x, targets, weights, test_size=share, stratify=classes, random_state=seed
                )
            except ValueError as cause:
                raise ValueError(
                    f"{cause} n_iter_no_change holds out {share:g} of the examples: raise "
                    f"validation_fraction, or pass n_iter_no_change=None"
                ) from cause
            recipe, held_out = replace(recipe, validation=len(out_x)), (out_x, out_targets, out_weights)
        network = self._network(recipe, x, outputs)
        begin = initial_state(network, recipe.seed, recipe.dtype, recipe.ema > 0)
        trainer = self._trainer(recipe, network, x, targets, begin)
        state, epoch, lines = self._train(trainer, recipe, weights, held_out, Standing())
        self.n_iter_ = len(lines)
        self.loss_curve_ = [line["loss"] for line in lines]
        self.validation_loss_curve_ = [line["held_out_loss"] for line in lines] if held_out else None
        self.trained_ = Trained(network, recipe, evaluated(network, state), epoch, None)
        self._state: State = {}

    def _continue(
        self, numbers: dict[str, Any], x: Floats, targets: Array, weights: Floats, outputs: int
    ) -> None:
        """Train the current network, or a new one, for one epoch."""
        first = self._is_new
        if self.n_iter_no_change is not None:
            raise ValueError("partial_fit holds nothing out; pass n_iter_no_change=None")
        recipe = replace(self._recipe(numbers, x, outputs), lr_decay="none")
        network = self._network(recipe, x, outputs)
        averaged, done = recipe.ema > 0, 0
        state = initial_state(network, recipe.seed, recipe.dtype, averaged)
        if not first:
            if network != self.trained_.network:
                raise ValueError(
                    "hidden_layer_sizes and pieces must stay those of the network that partial_fit "
                    "continues with; call fit for a new one"
                )
            recipe = replace(recipe, seed=self.trained_.recipe.seed)
            done, state = self.n_iter_, at_rest(self.trained_.parameters, averaged)
            state |= {name: self._state[name] for name in state.keys() & self._state.keys()}
        trainer = self._trainer(recipe, network, x, targets, state)
        recipe = replace(recipe, epochs=done + 1)
        state, epoch, (line,) = self._train(trainer, recipe, weights, None, Standing(done))
        self.n_iter_ = epoch
        self.loss_curve_ = [*([] if first else self.loss_curve_), line["loss"]]
        if first:
            self.validation_loss_curve_ = None
        self.trained_ = Trained(network, recipe, evaluated(network, state), epoch, None)
        self._state = state

    def _network(self, recipe: Recipe, x: Floats, outputs: int) -> Network:
        return replace(recipes.network_of(recipe, (1, 1, x.shape[1]), outputs), loss=self._loss)

    def _trainer(
        self, recipe: Recipe, network: Network, x: Floats, targets: Array, state: State
    ) -> backends.Trainer:
        backend = backends.find_for(self.backend, network)
        backends.check_options(self.backend, backend, recipe)
        backend.check_device(self.device)
        task = recipes.task_of(recipe, network, x, targets, Machine(self.device))
        return backend.trainer(task, state)

    def _train(
        self,
        trainer: backends.Trainer,
        recipe: Recipe,
        weights: Floats,
        held_out: HeldOut | None,
        start: Standing,
    ) -> tuple[State, int, list[backends.Metrics]]:
        """Return the best state, its epoch, and the metrics of every epoch."""
        best_state: State = {}
        lines: list[backends.Metrics] = []
        best_epoch, visits = 0, _visits(weights)

        def measure(rates: Rates) -> backends.Metrics:
            if not held_out:
                return {}
            x, targets, weights = held_out
            losses = evaluation.in_chunks(trainer.losses, x, targets)
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
                judged="held_out_loss" if held_out else "",
                tick=shown.tick,
                remedy=lambda: REMEDY,
            ):
                lines.append(epoch.metrics)
                if self._loss != "cross-entropy":
                    del epoch.metrics["error"]  # progress would show it as a fraction
                if not held_out or epoch.is_best:
                    best_state, best_epoch = epoch.state, epoch.standing.epoch
                to_come = epoch.standing.to_come(recipe.epochs, recipe.patience if held_out else 0)
                shown.report(epoch.metrics, visits, *to_come)
        return best_state, best_epoch, lines

    def _numbers(self) -> dict[str, Any]:
        """Return the numeric parameters as Python numbers."""
        name, units = "hidden_layer_sizes", np.atleast_1d(self.hidden_layer_sizes).tolist()
        numbers: dict[str, Any] = {name: tuple(_within(COUNT, name, unit) for unit in units)}
        for name, range_ in RANGES.items():
            value = getattr(self, name)
            value = math.inf if name == "p" and isinstance(value, str) and value == "inf" else value
            if not (value is None and name in OPTIONAL):
                numbers[name] = _within(range_, name, value)
        return numbers

    def _recipe(self, numbers: dict[str, Any], x: Floats, outputs: int) -> Recipe:
        """Return the recipe of the training."""
        if self.objective not in OBJECTIVES:
            raise ValueError(f"objective must be one of {', '.join(OBJECTIVES)}; got {self.objective!r}")
        inputs, units, pieces = x.shape[1], numbers["hidden_layer_sizes"], numbers["pieces"]
        exponent = 0 if self.objective == "noise" else 1 / numbers["p"]
        numbers = {"sigma": SHARE * inputs**exponent} | numbers
        return Recipe(
            data="tabular",
            model="maxout" if pieces else "sigmoid-mlp",
            units=units,
            pieces=(pieces,) if pieces else (),
            max_norm=(0.0,),
            init=math.sqrt(6 / (inputs + (*units, outputs)[0])),
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
    """Return a number that lies in its range; raise ValueError otherwise."""
    number = isinstance(value, Integral if range_.kind is int else Real)
    if not number or isinstance(value, bool) or not range_.accepts(value):
        raise ValueError(f"{name} must be {range_.what}; got {value!r}")
    return range_.kind(value)


def _visits(weights: Floats) -> int:
    """Return the number of visits to examples in an epoch."""
    total = float(weights.sum())
    if not total <= MOST_VISITS:
        raise ValueError(
            f"the weights of the examples sum to {total:.3g}, which is the number of visits in an epoch; "
            f"divide sample_weight by its mean"
        )
    return max(round(total), int(np.count_nonzero(weights)))
