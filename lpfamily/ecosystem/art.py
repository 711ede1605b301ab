"""An attack for the Adversarial Robustness Toolbox: one steepest step in an Lp ball, or many."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

import lpfamily
from lpfamily._arrays import Array, Numbers, check_p
from lpfamily._packages import needs
from lpfamily.ascent import Method, check_ascent
from lpfamily.ecosystem._attacks import RandomStart, checked, start_of
from lpfamily.training.networks import Floats

with needs("pip install adversarial-robustness-toolbox", "art"):
    from art.attacks.attack import EvasionAttack
    from art.config import ART_NUMPY_DTYPE
    from art.estimators.classification.classifier import ClassifierMixin
    from art.estimators.classification.pytorch import PyTorchClassifier
    from art.estimators.estimator import BaseEstimator, LossGradientsMixin
    from art.estimators.pytorch import PyTorchEstimator
    from art.utils import check_and_transform_label_format

Mask = NDArray[np.bool_]
Labels = Any
"""Indices or one-hot rows; for an estimator that is not a classifier, whatever its loss takes."""


class LpGradientMethod(EvasionAttack):
    """An attack of one steepest step of Lp norm eps, or of many, for any ART estimator with loss gradients.

    One step is eq. 3 at the gradient. It maximises the linearised loss in the ball and `clip_values`
    together. At p = 1 the entries with the largest gradients go to their bounds until the budget is spent;
    p = 2 goes along the gradient; p = inf is the fast gradient sign method. With more steps, or a random
    start, the attack is `lpfamily.ascend`.

    For a PyTorchClassifier with CrossEntropyLoss (without label smoothing) or NLLLoss, the attack takes the
    gradient of `lpfamily.error_log_odds`. It has the direction of the loss gradient and the same cost, and
    does not round to zero where the classifier is confident. For each example the iterate with the largest
    value is kept. For any other estimator the attack takes the gradient of the estimator's loss, and keeps
    the last iterate. The entry p_y - 1 of a cross-entropy's gradient then has few bits left or none, for
    example in float32 from p_y = 1 - 1e-7 on, so the direction is wrong or zero.

    The attack restores the modes and `param.grad` of a torch model. It does not move an example whose
    gradient is zero or not finite, and warns with the number of such examples.

    Parameters
    ----------
    estimator
        An estimator with `loss_gradient`; its `clip_values` are the box.
    p
        A number in [1, inf].
    eps
        The radius in units of x, a number >= 0 or, as in ART's attacks, an array that broadcasts to x: of
        shape (n, 1, ..., 1) for one radius per example.
    steps, step_size, method
        As in `lpfamily.ascend`: the number of gradients; the Lp norm of a projected step, a number, or None
        for 2.5 eps / steps; "adaptive", "projected" or "frank-wolfe". None means "adaptive" without a
        step_size if the log-odds are known, else "projected". "adaptive" needs values, so it is an error if
        the log-odds are not known.
    random_start
        True starts from a uniform point of the ball; a `numpy.random.Generator` makes that repeatable.
    targeted
        Whether y holds the classes to reach; otherwise y holds the classes to leave.
    batch_size
        The number of examples per gradient.

    Raises
    ------
    TypeError, ValueError
        For a parameter that is not as above.
    art.exceptions.EstimatorError
        For an estimator without loss gradients.

    References
    ----------
    Lyu, Huang, Liang: A Unified Gradient Regularization Family for Adversarial Examples, 2015, eq. 3.
    """

    attack_params: ClassVar[list[str]] = [
        *EvasionAttack.attack_params,
        *("p", "eps", "steps", "step_size", "method", "random_start", "targeted", "batch_size"),
    ]
    _estimator_requirements = (BaseEstimator, LossGradientsMixin)

    def __init__(
        self,
        estimator: BaseEstimator,
        p: float = 2,
        eps: Numbers = 0.3,
        steps: int = 1,
        *,
        step_size: float | None = None,
        method: Method | None = None,
        random_start: RandomStart = False,
        targeted: bool = False,
        batch_size: int = 128,
    ):
        super().__init__(estimator=estimator)
        self.p = p
        self.eps = eps
        self.steps = steps
        self.step_size = step_size
        self.method = method
        self.random_start = random_start
        self.targeted = targeted
        self.batch_size = batch_size
        self._check_params()

    def _check_params(self) -> None:
        check_p(self.p)
        if not np.all(np.asarray(self.eps) >= 0):
            raise ValueError(f"eps must be at least 0; got {self.eps}")
        check_ascent(self.steps, self.method, self.step_size)
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1; got {self.batch_size}")

    def generate(self, x: Floats, y: Labels | None = None, mask: ArrayLike | None = None) -> Floats:
        """Return x + eps, of x's shape and dtype (ART's dtype if x has integers).

        Parameters
        ----------
        x
            The inputs, inside `clip_values`.
        y
            Labels, as indices or one-hot. None means the predictions of the estimator, so that no label
            leaks. A targeted attack needs its targets. For an estimator that is not a classifier, y is
            whatever its loss takes.
        mask
            An array that broadcasts to x. Entries where it is zero or False do not move and spend no budget.

        Returns
        -------
        numpy.ndarray
            The perturbed inputs.

        Raises
        ------
        ValueError
            For a targeted attack without y, an eps that varies within an example, shapes that do not fit,
            and as in `lpfamily.epsilon`.
        """
        if not np.issubdtype(x.dtype, np.floating):
            x = x.astype(ART_NUMPY_DTYPE)
        radius = self._radius(x)
        mask = None if mask is None else np.broadcast_to(np.asarray(mask) != 0, x.shape)
        at = x.astype(_dtype_of(self.estimator, x), copy=False)
        eps = np.zeros_like(at)
        with _unchanged(self.estimator):
            y = self._labels(at, y)
            for i in range(0, len(x), self.batch_size):
                rows = slice(i, i + self.batch_size)
                mask_of_rows = None if mask is None else mask[rows]
                eps[rows] = self._perturbation(at[rows], y[rows], radius[rows], mask_of_rows)
        eps = checked(eps, radius)
        low, high = (-np.inf, np.inf) if self.estimator.clip_values is None else self.estimator.clip_values
        return np.asarray(np.clip(x + eps, low, high), x.dtype)

    def _radius(self, x: Floats) -> Floats:
        eps, inner = np.asarray(self.eps, float), x.ndim - 1
        whole: Any = np.broadcast_to(eps, x.shape)
        radius: Floats = whole[(slice(None), *[0] * inner)]
        if np.any(eps != radius.reshape(-1, *[1] * inner)):
            raise ValueError(
                f"eps must be one radius per example, of shape {(len(x), *[1] * inner)}; got an array of "
                f"shape {eps.shape} that varies within an example"
            )
        return radius

    def _labels(self, x: Floats, y: Labels | None) -> Labels:
        if y is None and self.targeted:
            raise ValueError("a targeted attack needs y, the classes to reach; got None")
        if not isinstance(self.estimator, ClassifierMixin):
            return self.estimator.predict(x, batch_size=self.batch_size) if y is None else y
        if y is None:
            y = self.estimator.predict(x, batch_size=self.batch_size)
            if y.ndim != 2 or y.shape[1] < 2:
                raise ValueError(
                    f"predictions of shape {y.shape} name no class: pass y, or an estimator with one output "
                    "per class"
                )
            y = np.argmax(y, axis=1)
        return check_and_transform_label_format(y, nb_classes=self.estimator.nb_classes)

    def _perturbation(self, x: Floats, y: Labels, radius: Floats, mask: Mask | None) -> Floats:
        sign, time = -1 if self.targeted else 1, itertools.count()
        bounds = None if self.estimator.clip_values is None else tuple(self.estimator.clip_values)
        options: dict[str, Any] = {"batch_ndim": 1, "mask": mask, "bounds": bounds}
        with _odds(self.estimator, y) as odds:

            def value_and_grad(at: Floats) -> tuple[Floats, Floats]:
                grad = self.estimator.loss_gradient(at.astype(x.dtype, copy=False), y)
                # a loss that has rounded to zero ranks no iterates, so values that count up keep the last one
                value = np.full(len(x), float(next(time))) if odds is None else sign * odds.pop()
                return value, sign * grad

            start = start_of(self.random_start)
            if self.steps == 1 and start is None:
                grad = value_and_grad(x)[1]
                return lpfamily.epsilon(grad, self.p, radius, x=None if bounds is None else x, **options)
            how, method = (self.steps, self.step_size, start), self.method
            if odds is None and method == "adaptive":
                raise ValueError(
                    "method='adaptive' needs the value of each example, which is known for a "
                    "PyTorchClassifier with CrossEntropyLoss or NLLLoss and hard labels: pass 'projected' or "
                    "'frank-wolfe'"
                )
            if odds is None:
                method = method or "projected"
            return lpfamily.ascend(value_and_grad, x, self.p, radius, *how, method=method, **options)


def _dtype_of(estimator: BaseEstimator, x: Floats) -> DTypeLike:
    """Return the dtype that the estimator takes; for a torch model it is that of its weights."""
    if isinstance(estimator, PyTorchEstimator):
        for weight in estimator.model.parameters():
            if weight.is_floating_point():
                return np.float64 if weight.dtype.itemsize == 8 else ART_NUMPY_DTYPE
    return x.dtype


@contextlib.contextmanager
def _unchanged(estimator: BaseEstimator) -> Iterator[None]:
    """Restore the modes and gradients of a torch model on exit; inside, its weights need no gradient."""
    if not isinstance(estimator, PyTorchEstimator):
        yield
        return
    modes = [(module, module.training) for module in estimator.model.modules()]
    weights = [(w, w.grad, w.requires_grad) for w in estimator.model.parameters()]
    for weight, _, _ in weights:
        weight.requires_grad_(False)
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
        for weight, grad, requires_grad in weights:
            weight.requires_grad_(requires_grad)
            weight.grad = grad


@contextlib.contextmanager
def _odds(estimator: BaseEstimator, y: Labels) -> Iterator[list[Floats] | None]:
    """Make `loss_gradient` return that of the error log-odds, and yield the list that receives its values.

    Yield None instead if the outputs are not known to be logits, or if the labels are soft.
    """
    loss = getattr(estimator, "_loss", None)
    hard = np.ndim(y) == 2 and np.all((y == 0) | (y == 1)) and np.all(np.sum(y, axis=1) == 1)
    not_overridden = type(estimator).loss_gradient is PyTorchClassifier.loss_gradient
    if not (not_overridden and hard and _is_cross_entropy(loss)):
        yield None
        return
    values: list[Floats] = []

    def error_log_odds(outputs: Array, labels: Array) -> Array:
        odds = lpfamily.error_log_odds(outputs, labels)
        values.append(odds.detach().cpu().numpy())
        return odds.sum()

    estimator._loss = error_log_odds
    try:
        yield values
    finally:
        estimator._loss = loss


def _is_cross_entropy(loss: object) -> bool:
    import torch

    return type(loss) is torch.nn.NLLLoss or (
        type(loss) is torch.nn.CrossEntropyLoss and loss.label_smoothing == 0
    )
