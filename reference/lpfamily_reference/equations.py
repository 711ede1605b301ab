"""The paper's equations in order, each on one example: a 1-D float64 gradient.

Lyu, Huang and Liang, "A Unified Gradient Regularization Family for Adversarial Examples" (2015).
Throughout, `grad` is the gradient of the loss L with respect to the input x, `sigma` the radius of the
Lp ball in the units of x, and p* = p / (p - 1) the dual exponent. A function returns the value that its
equation states; if the equation states an equality of two quantities, it returns both sides, left first.
Jacobians have one row per entry of x, as in the paper's chain rule grad_x L = J_y(x) grad_y L.
A zero gradient has no direction; as sign(0) = 0, every perturbation of it is zero.
"""

import math

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def eq2(loss: float, grad: Array, epsilon: Array) -> float:
    """Eq. 2, the linearised inner objective: L + grad . epsilon. Its constraint is eq. 34's."""
    return float(loss + grad @ epsilon)


def eq3(grad: Array, p: float, sigma: float) -> Array:
    """Eq. 3, the maximiser of eq. 2: sigma sign(grad) (|grad| / ||grad||_{p*})^(1/(p-1)).

    p = inf and p = 1 are its limits, eq. 8 and eq. 11. The power multiplies the rounding of its base
    by 1 / (p - 1), so it loses that many units in the last place as p approaches 1.
    """
    if p == 1:
        return eq11(grad, sigma)
    if p == math.inf:
        return eq8(grad, sigma)
    return sigma * np.sign(grad) * _over(np.abs(grad), _norm(grad, _dual(p))) ** (1 / (p - 1))


def eq4(loss: float, grad: Array, p: float, sigma: float) -> float:
    """Eq. 4, the regularised loss, eq. 2 at its maximum: L + sigma ||grad||_{p*}."""
    return loss + sigma * _norm(grad, _dual(p))


def eq5(grad: Array, sigma: float, p: float = 1e9) -> Array:
    """Eq. 5, eq. 3 as p grows to inf: a large p stands for the limit, with an error of order 1/p."""
    return eq3(grad, p, sigma)


def eq6(grad: Array, sigma: float) -> Array:
    """Eq. 6, the limit inside the power: sigma sign(grad) (|grad| / ||grad||_1)^0, with 0^0 = 1."""
    return sigma * np.sign(grad) * _over(np.abs(grad), _norm(grad, 1)) ** 0


def eq7(grad: Array) -> bool:
    """Eq. 7, the assumption of eq. 6: |grad| > 0 in every entry. Elsewhere sign(0) = 0 decides."""
    return bool(np.all(np.abs(grad) > 0))


def eq8(grad: Array, sigma: float) -> Array:
    """Eq. 8, p = inf, the fast gradient sign method: sigma sign(grad)."""
    return sigma * np.sign(grad)


def eq9(grad: Array, sigma: float, p: float = 1 + 2.0**-24) -> Array:
    """Eq. 9, eq. 3 as p falls to 1: the error is of order p - 1, plus rounding that grows as 1/(p - 1)."""
    return eq3(grad, p, sigma)


def eq10(grad: Array, sigma: float) -> Array:
    """Eq. 10, the limit inside the power: sigma sign(grad) (|grad| / ||grad||_inf)^inf / k.

    Printed without k, the number of entries of largest magnitude. The base of eq. 9 is not
    |grad| / ||grad||_inf at those but k^(-1/p*), and (k^(-1/p*))^(1/(p-1)) = k^(-1/p) tends to 1/k.
    """
    chosen = _over(np.abs(grad), _norm(grad, math.inf)) ** np.inf
    return sigma * np.sign(grad) * _over(chosen, float(np.sum(chosen)))


def eq11(grad: Array, sigma: float) -> Array:
    """Eq. 11, p = 1: sigma sign(grad_i) / k where |grad_i| = max_j |grad_j|, k entries, else 0.

    Printed with sigma for every grad_i = max_j L_j: no gradient on the right, no absolute value, no
    sign, and outside the ball when entries tie. Ties share the budget, which is the limit of eq. 3.
    """
    epsilon = np.zeros_like(grad)
    chosen = np.abs(grad) == np.max(np.abs(grad))
    epsilon[chosen] = sigma * np.sign(grad[chosen]) / np.sum(chosen)
    return epsilon


def eq12(grad: Array, sigma: float) -> Array:
    """Eq. 12, p = 2: sigma sign(grad) (|grad| / ||grad||_2)^1.

    Printed with the norm ||grad|| in the numerator instead of the absolute values of its entries.
    The second line, sigma grad / ||grad||_2, is eq. 22.
    """
    return sigma * np.sign(grad) * _over(np.abs(grad), _norm(grad, 2)) ** 1


def eq13(loss: float, grad: Array, hessian: Array, sigma: float) -> float:
    """Eq. 13, second order: L + sigma ||grad||_2 + epsilon' H_L(x) epsilon / 2, epsilon of eq. 12."""
    epsilon = eq12(grad, sigma)
    return float(loss + sigma * _norm(grad, 2) + epsilon @ hessian @ epsilon / 2)


def eq14(loss: float, grad: Array, jacobian: Array, hessian_y: Array, sigma: float) -> float:
    """Eq. 14, eq. 13 with J_y(x) H_L(y) J_y(x)' for the Hessian.

    With y the probabilities this is not the generalised Gauss-Newton matrix of the logits but, by Lemma
    B.1, the rank-one grad grad'. It equals the Hessian on average over the model's own labels (Fisher's
    identity), not example by example.
    """
    return eq13(loss, grad, jacobian @ hessian_y @ jacobian.T, sigma)


def eq15(loss: float, grad: Array, sigma: float) -> float:
    """Eq. 15, eq. 14 by Lemma B.1: L + sigma ||grad||_2 + epsilon' grad grad' epsilon / 2."""
    return eq13(loss, grad, np.outer(grad, grad), sigma)


def eq16(loss: float, grad: Array, sigma: float) -> float:
    """Eq. 16: L + sigma ||grad||_2 + sigma^2 (grad'grad grad'grad) / (2 ||grad||_2^2)."""
    ratio = _over(np.atleast_1d((grad @ grad) ** 2), _norm(grad, 2) ** 2)[0]
    return float(loss + sigma * _norm(grad, 2) + sigma**2 / 2 * ratio)


def eq17(loss: float, grad: Array, sigma: float) -> float:
    """Eq. 17: L + sigma ||grad||_2 + sigma^2 grad'grad / 2."""
    return float(loss + sigma * _norm(grad, 2) + sigma**2 / 2 * (grad @ grad))


def eq18(loss: float, grad: Array, sigma: float) -> float:
    """Eq. 18: L + sigma ||grad||_2 + sigma^2 Tr(grad grad') / 2."""
    return float(loss + sigma * _norm(grad, 2) + sigma**2 / 2 * np.trace(np.outer(grad, grad)))


def eq19(loss: float, grad: Array, jacobian: Array, hessian_y: Array, sigma: float) -> float:
    """Eq. 19, eq. 18 by Lemma B.1: L + sigma ||grad||_2 + sigma^2 Tr(J_y(x) H_L(y) J_y(x)') / 2."""
    return eq20(loss, grad, jacobian @ hessian_y @ jacobian.T, sigma)


def eq20(loss: float, grad: Array, hessian: Array, sigma: float) -> float:
    """Eq. 20: L + sigma ||grad||_2 + sigma^2 Tr(H_L(x)) / 2.

    The last term is what Gaussian noise adds when sigma is its standard deviation in each of the d
    entries. Such noise has norm sigma sqrt(d), not the sigma of eq. 12.
    """
    return float(loss + sigma * _norm(grad, 2) + sigma**2 / 2 * np.trace(hessian))


def remark2(grad: Array, p: float, sigma: float) -> float:
    """Remark 2, the second-order term for any p: sigma^2 ||grad||_{p*}^2 / 2.

    It is epsilon' grad grad' epsilon / 2 with the epsilon of eq. 3: the last term of eq. 17, with the
    limitation of eq. 14.
    """
    return sigma**2 / 2 * _norm(grad, _dual(p)) ** 2


def eq21(t: Array, theta: Array, x: Array, epsilon: Array, p: float, sigma: float) -> tuple[float, float]:
    """Eq. 21, the objective ||t - Theta (x + epsilon)||_2 and the slack sigma - ||epsilon||_p, which is >= 0.

    For a fixed Theta it is easier than the paper says: a convex function is largest at an extreme point, and
    at p = 2 its square is a trust-region problem.
    """
    return _norm(t - theta @ (x + epsilon), 2), sigma - _norm(epsilon, p)


def eq22(grad: Array, sigma: float) -> Array:
    """Eq. 22, p = 2: sigma (grad / ||grad||_2)."""
    return sigma * _over(grad, _norm(grad, 2))


def eq23(grad: Array, sigma: float) -> Array:
    """Eq. 23, the factor in front: (sigma / ||grad||_2) grad."""
    return _over(np.full_like(grad, sigma), _norm(grad, 2)) * grad


def eq24(grad_y: Array, jacobian: Array, sigma: float) -> Array:
    """Eq. 24, eq. 23 with grad = J_y(x) grad_y L.

    Printed as grad_y L J_y(x), a row vector times the transpose of the Jacobian of eq. 14.
    """
    return eq23(jacobian @ grad_y, sigma)


def eq25(y: Array, t: Array, jacobian_logits: Array, sigma: float) -> Array:
    """Eq. 25, eq. 23 with grad = J_o(x) (y - t), the softmax's logits o and a one-hot t.

    Printed transposed, as eq. 24 is. Only the true class's entry of y - t is negative, whatever the
    prediction; the paper calls the whole of it negative.
    """
    return eq23(jacobian_logits @ (y - t), sigma)


def eq34(grad: Array, epsilon: Array, p: float, sigma: float) -> tuple[float, float]:
    """Eq. 34, the objective grad . epsilon and the slack sigma - ||epsilon||_p, which must be >= 0."""
    return float(grad @ epsilon), sigma - _norm(epsilon, p)


def eq35(grad: Array, epsilon: Array, p: float, sigma: float) -> tuple[float, float]:
    """Eq. 35, the objective and the residual ||epsilon||_p - sigma, which must be 0.

    A point inside the ball with a gain above 0 gains more if it is scaled up to the sphere.
    """
    return float(grad @ epsilon), _norm(epsilon, p) - sigma


def eq36(grad: Array, norm_gradient: Array, multiplier: float) -> tuple[Array, Array]:
    """Eq. 36, stationarity: grad f = lambda grad g, for f = grad . epsilon and g = ||epsilon||_p."""
    return grad, multiplier * norm_gradient


def eq37(grad: Array, epsilon: Array, multiplier: float, p: float) -> tuple[Array, Array]:
    """Eq. 37: grad = lambda sign(epsilon) |epsilon|^(p-1) / (sum_i |epsilon_i|^p)^(1-1/p).

    Printed with a factor 1/p, which the derivative of the norm cancels, and without absolute values
    and sign. Both stay through eq. 43; the multiplier absorbs the factor, so eq. 44 is right.
    """
    powers = np.sign(epsilon) * np.abs(epsilon) ** (p - 1)
    return grad, multiplier * powers / np.sum(np.abs(epsilon) ** p) ** (1 - 1 / p)


def eq38(grad: Array, epsilon: Array, multiplier: float, p: float, sigma: float) -> tuple[Array, Array]:
    """Eq. 38, eq. 37 on the sphere: grad = lambda sign(epsilon) (|epsilon| / sigma)^(p-1)."""
    return grad, multiplier * np.sign(epsilon) * (np.abs(epsilon) / sigma) ** (p - 1)


def eq39(grad: Array, epsilon: Array, multiplier: float, p: float, sigma: float) -> tuple[Array, Array]:
    """Eq. 39: |grad|^p* = lambda^p* (|epsilon| / sigma)^p. Eq. 40 is the number of an empty line."""
    return np.abs(grad) ** _dual(p), multiplier ** _dual(p) * (np.abs(epsilon) / sigma) ** p


def eq41(grad: Array, epsilon: Array, multiplier: float, p: float, sigma: float) -> tuple[float, float]:
    """Eq. 41, eq. 39 summed over the entries."""
    left, right = eq39(grad, epsilon, multiplier, p, sigma)
    return float(np.sum(left)), float(np.sum(right))


def eq42(grad: Array, multiplier: float, p: float) -> tuple[float, float]:
    """Eq. 42, eq. 41 on the sphere: ||grad||_{p*}^p* = lambda^p*."""
    return _norm(grad, _dual(p)) ** _dual(p), multiplier ** _dual(p)


def eq43(grad: Array, p: float) -> float:
    """Eq. 43, the multiplier: lambda = ||grad||_{p*}, the gain per unit of sigma. Printed as lambda/p."""
    return _norm(grad, _dual(p))


def eq44(grad: Array, p: float, sigma: float) -> Array:
    """Eq. 44, eq. 38 solved for epsilon with eq. 43's multiplier, for 1 < p < inf: eq. 3 again."""
    return sigma * np.sign(grad) * _over(np.abs(grad), eq43(grad, p)) ** (1 / (p - 1))


def eq45(y: Array, t: Array) -> Array:
    """Eq. 45, the gradient of L = -sum_i t_i log y_i with respect to the probabilities y: -t / y."""
    return -t / y


def eq46(y: Array, t: Array) -> Array:
    """Eq. 46, the Hessian of L = -sum_i t_i log y_i with respect to y: diag(t / y^2)."""
    return np.diag(t / y**2)


def lemma_b1(jacobian: Array, y: Array, t: Array) -> tuple[Array, Array]:
    """Lemma B.1: grad_x L grad_x L' = J_y(x) H_L(y) J_y(x)', for a one-hot t.

    The hypothesis is printed as delta_il = 0 for i != l, which does not mention t; it means t_i = delta_il.
    With a soft t the outer product of the gradient has entries off the diagonal, which eq. 46 lacks.
    """
    grad = jacobian @ eq45(y, t)
    return np.outer(grad, grad), jacobian @ eq46(y, t) @ jacobian.T


def _dual(p: float) -> float:
    if not p >= 1:
        raise ValueError(f"p must lie in [1, inf]; got {p}: below 1 the ball is not convex")
    if p == 1:
        return math.inf
    return 1.0 if p == math.inf else p / (p - 1)


def _norm(x: Array, p: float) -> float:
    # Divided by the largest entry: |x|^p* soon leaves float64, as p* = 1001 already at p = 1.001.
    largest = float(np.max(np.abs(x)))
    if p == math.inf or largest == 0:
        return largest
    return float(largest * np.sum((np.abs(x) / largest) ** p) ** (1 / p))


def _over(numerator: Array, norm: float) -> Array:
    # Only a zero gradient has a zero norm, and its direction is zero.
    return numerator / norm if norm > 0 else np.zeros_like(numerator)
