"""What the classifier and the regressor have in common: scikit-learn's checks, their help, their refusals."""

import inspect

import numpy as np
import pytest
from sklearn.exceptions import NotFittedError
from sklearn.utils.estimator_checks import parametrize_with_checks

from lpfamily.ecosystem.sklearn import LpRegularizedClassifier, LpRegularizedRegressor
from lpfamily.training.protocol import NotFinite

SMALL = {"hidden_layer_sizes": (4,), "max_iter": 8, "random_state": 0}
CLASSIFIER = LpRegularizedClassifier(**SMALL, learning_rate_init=0.3)
REGRESSOR = LpRegularizedRegressor(**SMALL, learning_rate_init=0.1)
KINDS = pytest.mark.parametrize("kind", [LpRegularizedClassifier, LpRegularizedRegressor])


@pytest.fixture(scope="module")
def data():
    """Return 120 inputs, and targets that are classes to a classifier and numbers to a regressor."""
    rng = np.random.default_rng(1)
    x = rng.standard_normal((120, 5))
    return x, (x[:, 0] > 0).astype(int)


@parametrize_with_checks([CLASSIFIER, REGRESSOR])
def test_it_is_an_estimator_of_scikit_learns(estimator, check):
    check(estimator)


@KINDS
def test_help_documents_each_parameter_and_attribute(kind, data):
    lines = inspect.getdoc(kind).splitlines()
    entries = {name for line in lines if not line.startswith(" ") for name in line.split(", ")}
    model = kind(max_iter=1).fit(*data)
    fitted = {name for name in vars(model) if name.endswith("_")}
    assert entries >= {*model.get_params(), *fitted}
    assert "NetworkEstimator" not in "".join(lines)


@KINDS
def test_an_estimator_refuses_what_it_cannot_train(kind, data):
    def small(**options):
        return kind(**SMALL | options)

    x, y = data
    few = 4 if kind is LpRegularizedClassifier else 1  # too few for one of each class, or for any
    with pytest.raises(
        ValueError, match=r"n_iter_no_change holds out 0.1 of the examples: raise validation_"
    ):
        small(n_iter_no_change=2).fit(x[:few], [0, 1, 0, 1][:few])
    with pytest.raises(NotFinite, match="is not finite; bring X to one scale"):
        small(learning_rate_init=1e308).fit(x, y)
    with pytest.raises(NotFittedError):
        small().perturb(x, y)
    classes = {"classes": [0, 1]} if kind is LpRegularizedClassifier else {}
    with pytest.raises(ValueError, match="pass n_iter_no_change=None"):
        small(n_iter_no_change=3).partial_fit(x, y, **classes)
    with pytest.raises(ValueError, match="call fit for a new one"):
        small().fit(x, y).set_params(hidden_layer_sizes=(5,)).partial_fit(x, y)
    with pytest.raises(ValueError, match=r"(?i)sample.weight.*zero|sample_weight is 0"):
        small().fit(x, y, np.zeros(120))
