"""foolbox's JAX models: the attacks are the same, and give JAX arrays."""

import math

import numpy as np
import pytest
from numpy.testing import assert_allclose

from helpers.backends_under_test import NAMES
from helpers.laws import norms

if "jax" not in NAMES:
    pytest.skip("JAX is not under test", allow_module_level=True)

import foolbox
import jax

from lpfamily import certify
from lpfamily.ecosystem.foolbox import LpAscentAttack, LpFastGradientAttack

pytestmark = pytest.mark.jax


@pytest.mark.parametrize("p", [2, math.inf])
def test_a_linear_model_in_jax(p):
    rng = np.random.default_rng(0)
    x, weights = rng.random((6, 2, 4), "float32"), 40 * rng.standard_normal((8, 3), "float32")
    model = foolbox.JAXModel(lambda x: x.reshape(-1, 8) @ weights, (0, 1))
    labels = np.asarray(model(jax.numpy.asarray(x))).argmax(1)
    given = jax.numpy.asarray(x), jax.numpy.asarray(labels)
    _, adversarial, _ = LpFastGradientAttack(p)(model, *given, epsilons=0.2)
    assert isinstance(adversarial, jax.Array)
    assert adversarial.dtype == "float32"
    # the gradient by hand, in float64: the softmax of the wrong classes, less the right one
    z = x.reshape(6, 8).astype("float64") @ weights
    right = np.eye(3, dtype=bool)[labels]
    share = np.exp(z - np.where(right, -math.inf, z).max(1, keepdims=True))
    share = np.where(right, 0, share) / np.where(right, 0, share).sum(1, keepdims=True)
    grad = ((share - right) @ weights.T).reshape(x.shape)
    eps = np.asarray(adversarial) - x.astype("float64")
    assert_allclose(certify(grad, eps, p, 0.2, x.astype("float64"), (0, 1)).gain, 1, rtol=1e-5)
    if p < math.inf:
        return  # many steps are compiled one by one, which takes long
    _, many, _ = LpAscentAttack(p, steps=3)(model, *given, epsilons=0.2)
    assert np.all((np.asarray(many) >= 0) & (np.asarray(many) <= 1))
    assert np.all(norms((np.asarray(many) - x).reshape(6, 8), p) <= 0.2 * (1 + 1e-5))
