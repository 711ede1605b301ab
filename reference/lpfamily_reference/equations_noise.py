"""Section V, eq. 26-33: the probability that Gaussian noise changes a prediction.

eta ~ N(0, sigma^2 I_d) is the noise. `perturbations` has one row a_i, the minimum perturbation, for each
direction in which a prediction can be changed. Expectations are integrated numerically, so that each line of
the chain from eq. 30 to eq. 32 is computed independently.
"""

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.integrate import quad

Array = NDArray[np.float64]


def eq26(eta: Array, perturbations: Array) -> bool:
    """Eq. 26, the prediction changes: eta' e_i >= a_i' e_i for some i, with e_i = a_i / ||a_i||."""
    directions = perturbations / np.linalg.norm(perturbations, axis=1, keepdims=True)
    return bool(np.any(directions @ eta >= np.sum(perturbations * directions, axis=1)))


def eq27(perturbations: Array, sigma: float) -> float:
    """Eq. 27, the union bound: sum_i P(eta' e_i >= a_i' e_i), where eta' e_i ~ N(0, sigma^2 e_i' e_i).

    Printed as a lower bound; it bounds P(A) from above, and is not tight where directions overlap.
    """
    directions = perturbations / np.linalg.norm(perturbations, axis=1, keepdims=True)
    reach = np.sum(perturbations * directions, axis=1)
    std = sigma * np.sqrt(np.sum(directions * directions, axis=1))
    return float(sum(_tail(a / s) for a, s in zip(reach, std, strict=True)))


def eq28(distance: float, sigma: float) -> float:
    """Eq. 28, one term of eq. 27: P(eta_0 >= ||a_i||), independent of the dimension."""
    return _tail(distance / sigma)


def eq29(n: float, d: float) -> float:
    """Eq. 29, n equal distances with sigma = ||a|| / sqrt(d): n P(eta_0 / sigma >= sqrt(d)).

    The paper sets the mean distortion equal to the variance; the equation needs the standard deviation.
    """
    return n * _tail(math.sqrt(d))


def eq30(n: float, mean: float, std: float, sigma: float) -> float:
    """Eq. 30: n P(eta_0 >= ||a||) for ||a|| ~ N(mean, std^2), eq. 28 averaged over ||a||.

    The normal distribution allows a negative ||a||, to which the formula applies unchanged.
    """
    return n * _average(lambda a: _tail(a / sigma), mean, std)


def eq31(n: float, mean: float, std: float, sigma: float) -> float:
    """Eq. 31: n P(eta_0 - ||a|| >= 0), P(||a|| <= eta_0) averaged over eta_0."""
    return n * _average(lambda eta: _tail((mean - eta) / std), 0, sigma)


def eq32(n: float, mean: float, std: float, sigma: float) -> float:
    """Eq. 32: n P(delta >= 0) for delta = eta_0 - ||a|| ~ N(-mean, sigma^2 + std^2)."""
    return n * _tail(mean / math.sqrt(sigma**2 + std**2))


def eq33(error: float, n: float, mean: float, std: float, sigma: float) -> float:
    """Eq. 33: P(miss) + (1 - P(miss)) P(delta >= 0), in n directions.

    Column 0 of Table VIII is the measured error, not eq. 33 at sigma = 0. The equation assumes that noise
    corrects nothing, which is false: on MNIST it corrects nearly as many as it spoils at sigma = 0.01.
    """
    return error + (1 - error) * eq32(n, mean, std, sigma)


def table9(error: float, intercept: float, slope: float, sigma: float) -> float:
    """Table IX: (1 - P(miss)) times eq. 28 averaged over the density intercept + slope a, a >= 0.

    The paper gives no formula; its numbers are those of intercept = 0 and of
    slope = P(0 <= a < 0.1) / 0.005. The density it shows in Fig. 7 is not zero at zero.
    """
    far = 40 * sigma  # beyond, the tail is below the smallest float64
    added, _ = quad(lambda a: (intercept + slope * a) * eq28(a, sigma), 0, far, points=[sigma, 8 * sigma])
    return float((1 - error) * added)


def _tail(x: float) -> float:
    return math.erfc(x / math.sqrt(2)) / 2


def _average(function: Callable[[float], float], mean: float, std: float) -> float:
    # over a normal variable, in units of its standard deviation
    def weighted(u: float) -> float:
        return function(mean + std * u) * math.exp(-u * u / 2) / math.sqrt(2 * math.pi)

    value, _ = quad(weighted, -39, 39, points=np.linspace(-8, 8, 33), limit=500, epsabs=1e-15, epsrel=1e-12)
    return float(value)
