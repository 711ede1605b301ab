"""Attacks for foolbox: one steepest step in an Lp ball, or many."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import lpfamily
from lpfamily._arrays import Array, Bounds, check_p
from lpfamily._packages import needs
from lpfamily.ascent import Method
from lpfamily.ecosystem._attacks import RandomStart, checked, start_of

with needs("pip install foolbox", "foolbox", "eagerpy"):
    import eagerpy as ep
    import foolbox
    from foolbox.attacks.base import FixedEpsilonAttack, T, get_criterion, raise_if_kwargs
    from foolbox.devutils import atleast_kd

Evaluate = Callable[[Array], tuple[Array, Array]]
"""Maps inputs to the value of each example and its gradient."""


class LpDistance(foolbox.distances.LpDistance):
    """The Lp distance for every p in [1, inf], computed so that |x| ** p neither underflows nor overflows.

    A p outside [1, inf] raises ValueError when the distance is computed.
    """

    def __call__(self, references: T, perturbed: T) -> T:
        """Return ||perturbed - references||_p of each example."""
        (x, y), restore_type = ep.astensors_(references, perturbed)
        return restore_type(ep.astensor(lpfamily.norm((y - x).raw, self.p, batch_ndim=1)))

    def clip_perturbation(self, references: T, perturbed: T, epsilon: float) -> T:
        """Return perturbed, moved towards references if its distance exceeds epsilon.

        Every entry stays between its values in `references` and `perturbed`, so that rounding cannot take it
        outside the model's bounds.
        """
        if epsilon == 0:
            return references
        (x, y), restore_type = ep.astensors_(references, perturbed)
        nearer = x + atleast_kd(epsilon / ep.maximum(self(x, y), epsilon), x.ndim) * (y - x)
        return restore_type(ep.minimum(ep.maximum(nearer, ep.minimum(x, y)), ep.maximum(x, y)))


class _LpAttack(FixedEpsilonAttack):
    def __init__(self, p: float):
        self.p = check_p(p)

    @property
    def distance(self) -> LpDistance:
        return LpDistance(self.p)

    def run(self, model: foolbox.Model, inputs: T, criterion: Any, *, epsilon: float, **kwargs: Any) -> T:
        """Return the perturbed inputs, inside the ball and the model's bounds."""
        raise_if_kwargs(kwargs)
        x, restore_type = ep.astensor_(inputs)
        if isinstance(x, ep.NumPyTensor):
            raise TypeError(
                "a NumPy model has no gradients to attack with: pass a PyTorchModel or a JAXModel"
            )
        criterion = get_criterion(criterion)
        if isinstance(criterion, foolbox.Misclassification):
            sign, labels = 1, criterion.labels.raw
        elif isinstance(criterion, foolbox.TargetedMisclassification):
            sign, labels = -1, criterion.target_classes.raw
        else:
            raise ValueError(
                f"criterion must be Misclassification or TargetedMisclassification; got {criterion!r}"
            )

        def value(x: Array) -> Array:
            return sign * lpfamily.error_log_odds(model(x), labels)

        eps = self._perturbation(lambda x: _value_and_grad(value, x), x.raw, epsilon, model.bounds)
        return restore_type(ep.clip(x + ep.astensor(checked(eps, epsilon)), *model.bounds))

    @abstractmethod
    def _perturbation(self, value_and_grad: Evaluate, x: Array, epsilon: float, bounds: Bounds) -> Array: ...


class LpFastGradientAttack(_LpAttack):
    """An attack of one steepest step of Lp norm epsilon, for a foolbox model.

    The step is eq. 3 at the gradient of `lpfamily.error_log_odds`, which has the direction of the
    cross-entropy's gradient and does not round to zero where the model is confident. It maximises the
    linearised loss in the ball and the model's bounds together. At p = 1 the entries with the largest
    gradients go to their bounds until the budget is spent; p = 2 goes along the gradient; p = inf is the fast
    gradient sign method. A targeted attack lowers the error log-odds of the target class.

    The model's outputs must be logits. Torch and JAX models keep their dtype and device, and a torch model
    keeps its `param.grad` and mode. The attack does not move an example whose gradient is zero or not finite,
    and warns with the number of such examples.

    Parameters
    ----------
    p
        A number in [1, inf].

    Raises
    ------
    TypeError, ValueError
        For a p outside [1, inf]. When the attack runs, for a NumPy model, which has no gradients, and for a
        criterion that is neither Misclassification nor TargetedMisclassification.

    References
    ----------
    Lyu, Huang, Liang: A Unified Gradient Regularization Family for Adversarial Examples, 2015, eq. 3.
    """

    def _perturbation(self, value_and_grad: Evaluate, x: Array, epsilon: float, bounds: Bounds) -> Array:
        grad = value_and_grad(x)[1]
        return lpfamily.epsilon(grad, self.p, epsilon, batch_ndim=1, x=x, bounds=bounds)


class LpAscentAttack(_LpAttack):
    """An attack of many steepest steps in the Lp ball, for a foolbox model: `lpfamily.ascend`.

    It is the inner maximum of eq. 1 over ball and bounds, with the gradient of `LpFastGradientAttack`. At p =
    inf and with method "projected" it is PGD. For each example the iterate with the largest error log-odds is
    kept, so that more steps, or a random start, never make an attack weaker than its start.

    Parameters
    ----------
    p
        A number in [1, inf].
    steps, step_size, method
        As in `lpfamily.ascend`: the number of gradients; the Lp norm of a projected step, or None for 2.5
        epsilon / steps; "adaptive", "projected" or "frank-wolfe", or None for "projected" if there is a
        step_size, else "adaptive".
    random_start
        True starts from a uniform point of the ball; a NumPy or torch generator makes that repeatable.
        `attack.repeat(n)` keeps the best of n starts.

    Raises
    ------
    TypeError, ValueError
        As in `LpFastGradientAttack` and, when it runs, in `lpfamily.ascend`.

    References
    ----------
    Madry, Makelov, Schmidt, Tsipras, Vladu: Towards Deep Learning Models Resistant to Adversarial
    Attacks, 2018; Lyu, Huang, Liang 2015, eq. 1 and 3.
    """

    def __init__(
        self,
        p: float,
        *,
        steps: int = 10,
        step_size: float | None = None,
        random_start: RandomStart = False,
        method: Method | None = None,
    ):
        super().__init__(p)
        self.steps = steps
        self.step_size = step_size
        self.random_start = random_start
        self.method = method

    def _perturbation(self, value_and_grad: Evaluate, x: Array, epsilon: float, bounds: Bounds) -> Array:
        how = self.steps, self.step_size, start_of(self.random_start), bounds
        return lpfamily.ascend(value_and_grad, x, self.p, epsilon, *how, batch_ndim=1, method=self.method)


def _value_and_grad(value: Callable[[Array], Array], x: Array) -> tuple[Array, Array]:
    if isinstance(ep.astensor(x), ep.PyTorchTensor):  # eagerpy's backward() would change the parameters' grad
        import torch

        with torch.enable_grad():
            x = x.detach().requires_grad_()
            values = value(x)
            (grad,) = torch.autograd.grad(values.sum(), x)
        return values.detach(), grad

    def total(x: ep.Tensor) -> tuple[ep.Tensor, ep.Tensor]:
        values = ep.astensor(value(x.raw))
        return values.sum(), values

    _, values, grad = ep.value_aux_and_grad(total, ep.astensor(x))
    return values.raw, grad.raw
