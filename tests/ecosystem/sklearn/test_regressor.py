"""The scikit-learn regressor: without hidden layers it is the linear model that it should be."""

import copy
import math
import pickle

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy.optimize import minimize
from sklearn.base import clone
from sklearn.datasets import load_diabetes, load_linnerud
from sklearn.linear_model import LinearRegression, Ridge
from sklearn.metrics import mean_squared_error
from sklearn.model_selection import GridSearchCV, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from helpers.backends_under_test import NAMES
from helpers.laws import norms
from lpfamily.ecosystem.sklearn import LpRegularizedClassifier, LpRegularizedRegressor
from lpfamily.training import backends
from lpfamily.training.networks import initial_state
from lpfamily.training.testing import oracle
from lpfamily_numpy.trainer import NumpyBackend
from lpfamily_reference.equations import eq3

SMALL = {"hidden_layer_sizes": (4,), "max_iter": 8, "learning_rate_init": 0.1, "random_state": 0}
LINEAR = {"hidden_layer_sizes": (), "batch_size": 1000, "random_state": 0}
OBJECTIVES = {
    "plain": {"objective": "plain"},
    "noise": {"objective": "noise", "sigma": 0.3},
    "perturb": {"p": 1.5, "steps": 2, "clean_weight": 0.3, "pieces": 2, "n_iter_no_change": 3},
    "penalty": {"objective": "penalty", "p": 1, "hidden_layer_sizes": (5, 4)},
}
BALLS = 1, 2, math.inf

RNG = np.random.default_rng(0)
COUNTS, FRACTIONS = RNG.integers(0, 4, 120), RNG.uniform(0.1, 2, 120)


def problem(outputs=()):
    """Return 120 inputs, and noisy values of a curved function of them, of several units."""
    rng = np.random.default_rng(1)
    x = rng.standard_normal((120, 5))
    weight = rng.standard_normal((5, *outputs))
    y = x @ weight + np.sin(2 * x @ weight) + 0.3 * rng.standard_normal((120, *outputs))
    return x, y * np.resize([30.0, 0.02, 5.0], outputs) + np.resize([900.0, 0.0, -4.0], outputs)


@pytest.fixture(scope="module")
def one():
    return problem()


@pytest.fixture(scope="module")
def three():
    return problem((3,))


def small(**options):
    return LpRegularizedRegressor(**SMALL | options)


def standardised(model, y):
    return ((y - model.target_mean_) / model.target_scale_).reshape(len(y), -1)


def outputs_of(model, x):
    return oracle.logits(model.trained_.network, model.trained_.parameters, x)


def assert_same(found, expected, **tolerance):
    assert_allclose(found.loss_curve_, expected.loss_curve_, **tolerance)
    assert_allclose(found.target_scale_, expected.target_scale_, **tolerance)
    for name, array in expected.trained_.parameters.items():
        assert_allclose(found.trained_.parameters[name], array, **tolerance)


@pytest.fixture(scope="module", params=[name for name in NAMES if name != "numpy"])
def other(request):
    return request.param


@pytest.mark.parametrize("options", [OBJECTIVES[name] for name in ("perturb", "penalty")], ids=str)
def test_every_backend_trains_the_same_network(options, other, three):
    expected = small(**options).fit(*three, FRACTIONS)
    found = clone(expected).set_params(backend=other).fit(*three, FRACTIONS)
    assert_same(found, expected, rtol=1e-9, atol=1e-11)
    if "n_iter_no_change" in options:
        assert_allclose(found.validation_loss_curve_, expected.validation_loss_curve_, rtol=1e-9)
        expected.set_params(n_iter_no_change=None)
        found.set_params(n_iter_no_change=None)
    assert_same(found.partial_fit(*three), expected.partial_fit(*three), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(("outputs", "weights"), [((3,), None), ((), COUNTS)], ids=["even", "weighted"])
def test_without_hidden_layers_it_is_least_squares(outputs, weights):
    x, y = problem(outputs)
    model = LpRegularizedRegressor(objective="plain", **LINEAR)
    for _ in range(200):
        model.partial_fit(x, y, weights)
    expected = LinearRegression().fit(x, y, weights)
    assert model.predict(x).shape == y.shape
    found, expected = (standardised(model, each.predict(x)) for each in (model, expected))
    assert_allclose(found, expected, rtol=0, atol=1e-3)


def test_training_with_noise_is_ridge_regression(one):
    """The mean of (w(x + eta) - y)^2 over eta is (wx - y)^2 + sigma^2 |w|^2, of standardised y."""
    x, y = one[0] - one[0].mean(axis=0), one[1]
    model = LpRegularizedRegressor(objective="noise", sigma=0.7, max_iter=2000, **LINEAR).fit(x, y)
    found = model.trained_.parameters["layers.0.weight"][:, 0]
    plain, ridge = (
        fitted.fit(x, standardised(model, y)[:, 0]).coef_
        for fitted in (LinearRegression(), Ridge(alpha=120 * 0.7**2))
    )
    assert np.abs(found - ridge).max() < 0.02 < np.abs(plain - ridge).max() / 4


@pytest.mark.parametrize("p", [1, 1.5, 2, math.inf])
def test_without_hidden_layers_it_is_robust_least_squares(p, one):
    """The largest (w(x + eps) - y)^2 in the ball is (|wx - y| + sigma ||w||_p*)^2, and eq. 3 attains it."""
    x, y = one[0][:40], one[1][:40]
    model = LpRegularizedRegressor(p=p, sigma=0.5, max_iter=600, learning_rate_init=0.02, **LINEAR).fit(x, y)
    z, dual = standardised(model, y)[:, 0], 1 / (1 - 1 / p) if p > 1 else math.inf

    def worst(w):
        return np.mean((np.abs(x @ w[:5] + w[5] - z) + 0.5 * norms(w[None, :5], dual)) ** 2) / 2

    found = np.concatenate([array.ravel() for array in model.trained_.parameters.values()])
    options = {"maxiter": 20_000, "maxfev": 20_000, "xatol": 1e-8, "fatol": 1e-10}
    best = min(
        minimize(worst, start, method="Nelder-Mead", options=options).fun for start in (found, np.zeros(6))
    )
    assert worst(found) < best * 1.001
    plain = LinearRegression().fit(x, z)
    assert worst(np.append(plain.coef_, plain.intercept_)) > best * 1.01


@pytest.mark.parametrize("options", OBJECTIVES.values(), ids=OBJECTIVES)
def test_it_predicts_what_the_definition_does(options, three):
    x, y = three
    model = small(**options).fit(x, y, FRACTIONS)
    assert_allclose(model.target_mean_, np.average(y, axis=0, weights=FRACTIONS), rtol=1e-12)
    variance = np.average((y - model.target_mean_) ** 2, axis=0, weights=FRACTIONS)
    assert_allclose(model.target_scale_, np.sqrt(variance), rtol=1e-12)
    expected = model.target_mean_ + model.target_scale_ * outputs_of(model, x)
    assert_allclose(model.predict(x), expected, rtol=1e-12)


def test_predictions_have_the_shape_and_the_type_of_y(one):
    x, y = one
    for dtypes, expected in (
        (("f4", "f4"), "f4"),
        (("f4", "f8"), "f8"),
        (("f8", "f4"), "f8"),
        (("f4", "i8"), "f8"),
    ):
        model = small().fit(x.astype(dtypes[0]), y.astype(dtypes[1]))
        assert model.predict(x).dtype == expected
        assert {array.dtype for array in model.trained_.parameters.values()} == {np.dtype(dtypes[0])}
    column = small().fit(x, y[:, None])
    assert_array_equal(column.predict(x)[:, 0], small().fit(x, y).predict(x))
    assert column.target_mean_.shape == (1,)
    far = small().fit(x.astype("f4"), y + 1e9)
    assert_allclose(far.predict(x), small().fit(x.astype("f4"), y).predict(x) + 1e9, atol=1e-3, rtol=0)


def test_the_unit_of_y_makes_no_difference(three):
    x, y = three
    model, units = small(), np.array([2.0**60, 2.0**-700, 2.0**900])
    expected, found = (clone(model).fit(x, each) for each in (y, y * units))
    assert_allclose(found.loss_curve_, expected.loss_curve_, rtol=1e-12)
    assert_allclose(found.predict(x), expected.predict(x) * units, rtol=1e-11)
    assert_allclose(found.perturb(x, y * units), expected.perturb(x, y), rtol=1e-9, atol=1e-12)


def test_equal_values_are_learnt_as_they_are(one):
    x, y = one[0], np.full((120, 2), [0.1, -3e8])
    y[:, 0] = one[1]
    model = small(max_iter=60).fit(x, y, FRACTIONS)
    assert model.target_scale_[1] == 1
    assert model.target_mean_[1] == -3e8
    assert_allclose(model.predict(x)[:, 1], -3e8, atol=0.2, rtol=0)
    tiny = small().fit(x, np.arange(120) * 5e-324)  # its deviation rounds
    assert np.all(np.isfinite(tiny.predict(x)))
    alone = small().fit(x[:1], [7.0])
    assert alone.target_mean_ == 7
    assert_allclose(alone.predict(x[:1]), 7, atol=1)


@pytest.mark.parametrize("p", [1, 1.5, 2, math.inf])
def test_perturb_is_eq_3_or_zero_where_eq_3_does_not_mislead(p, three):
    x, y = three
    model = small(hidden_layer_sizes=(30,)).fit(x, y)
    eps, z = model.perturb(x, y, p=p, sigma=0.2), standardised(model, y)
    network, parameters = model.trained_.network, model.trained_.parameters
    grad = oracle.input_gradient(oracle.distance, network, parameters, x, z)
    expected = np.array([eq3(row, p, 0.2) for row in grad])
    stays = ~eps.any(axis=1)
    assert np.mean(stays) < 0.1
    assert_allclose(eps[~stays], expected[~stays], rtol=1e-8, atol=1e-12)
    before, after = (((outputs_of(model, at) - z) ** 2).mean(axis=1) for at in (x, x + eps))
    assert np.all(after[~stays] > before[~stays])
    mask = np.array([True, False, True, True, True])
    many = model.perturb(x, y, p=p, sigma=0.4, steps=5, bounds=(x.min(axis=0), x.max(axis=0)), mask=mask)
    assert not many[:, 1].any()
    assert norms(many, p).max() <= 0.4 * (1 + 1e-12)
    assert np.all((x + many >= x.min(axis=0) - 1e-12) & (x + many <= x.max(axis=0) + 1e-12))


@pytest.mark.parametrize("options", [OBJECTIVES[name] for name in ("noise", "penalty")], ids=str)
def test_a_sample_weight_counts_repetitions_of_an_example(options, one):
    x, y = one
    found = small(**options).fit(x, y, COUNTS)
    assert_same(found, small(**options).fit(x.repeat(COUNTS, axis=0), y.repeat(COUNTS)), rtol=1e-9)
    used, held = COUNTS > 0, small(n_iter_no_change=3)
    assert_same(clone(held).fit(x, y, COUNTS), clone(held).fit(x[used], y[used], COUNTS[used]), rtol=0)


def test_early_stopping_keeps_the_epoch_of_the_least_weighted_loss(three):
    x, y = three
    model = small(n_iter_no_change=5, validation_fraction=0.3, max_iter=60).fit(x, y, FRACTIONS)
    losses = model.validation_loss_curve_
    assert len(losses) == len(model.loss_curve_) == model.n_iter_ < 60
    assert model.n_iter_ - 1 - np.argmin(losses) == 5
    seed = model.trained_.recipe.seed
    _, held_x, _, held_y, _, weights = train_test_split(x, y, FRACTIONS, test_size=0.3, random_state=seed)
    of_each = mean_squared_error(
        held_y, model.predict(held_x), sample_weight=weights, multioutput="raw_values"
    )
    assert_allclose(min(losses), (of_each / model.target_scale_**2).mean() / 2, rtol=1e-9)
    assert small().fit(x, y).validation_loss_curve_ is None


@pytest.mark.parametrize("weights", [np.ones(120), COUNTS], ids=["even", "weighted"])
def test_partial_fit_is_gradient_descent_with_momentum(weights, three):
    x, y = three
    model = LpRegularizedRegressor(objective="plain", learning_rate_init=0.1, **LINEAR)
    for _ in range(4):
        model.partial_fit(x, y, sample_weight=weights)
    z, share = standardised(model, y), (weights / weights.sum())[:, None]
    state = initial_state(model.trained_.network, model.trained_.recipe.seed, "float64")
    weight, bias, *velocities = state.values()
    losses = []
    for _ in range(4):
        residual = x @ weight + bias - z
        losses.append((residual**2 * share).sum() / 6)
        gradients = x.T @ (residual * share) / 3, (residual * share).sum(0) / 3
        velocities = [0.9 * v - 0.1 * grad for v, grad in zip(velocities, gradients, strict=True)]
        weight, bias = weight + velocities[0], bias + velocities[1]
    assert_allclose(standardised(model, model.predict(x)), x @ weight + bias, rtol=1e-9, atol=1e-12)
    assert_allclose(model.loss_curve_, losses, rtol=1e-9)
    assert model.n_iter_ == model.trained_.epoch == 4


def test_partial_fit_keeps_the_scale_and_goes_on_after_fit(one):
    x, y = one
    streamed = small(objective="plain")
    for rows in np.array_split(np.arange(120), 6) * 20:
        streamed.partial_fit(x[rows], y[rows])
    assert_allclose(streamed.target_mean_, y[:20].mean(), rtol=1e-12)
    assert_allclose(streamed.target_scale_, y[:20].std(), rtol=1e-12)
    assert streamed.score(x, y) > 0.7
    fitted = small().fit(x, y)
    before, kept = fitted.score(x, y), fitted.target_mean_
    for _ in range(20):
        fitted.partial_fit(x[::2], y[::2])
    assert fitted.n_iter_ == 28
    assert fitted.target_mean_ == kept
    assert fitted.score(x, y) > before
    copied = copy.deepcopy(fitted)
    assert_same(fitted.partial_fit(x, y), copied.partial_fit(x, y), rtol=0)
    assert_same(fitted.fit(x, y), small().fit(x, y), rtol=0)


def test_training_in_a_ball_lowers_the_error_in_it():
    x, y = load_diabetes(return_X_y=True)
    x, test_x, y, test_y = train_test_split(StandardScaler().fit_transform(x), y, random_state=0)

    def error(model, p, sigma):
        moved = test_x + model.perturb(test_x, test_y, p=p, sigma=sigma)
        return mean_squared_error(test_y, model.predict(moved))

    plain = LpRegularizedRegressor(objective="plain", max_iter=40, random_state=0).fit(x, y)
    for p in BALLS:
        sigma = 0.3 * 10 ** (1 / p)
        lost = error(plain, p, sigma)
        assert mean_squared_error(test_y, plain.predict(test_x)) < 0.8 * lost
        for objective in "perturb", "penalty":
            model = clone(plain).set_params(objective=objective, p=p, sigma=sigma).fit(x, y)
            assert error(model, p, sigma) < 0.9 * lost


def test_it_is_searched_pickled_and_scored(three):
    x, y = three
    pipeline = make_pipeline(StandardScaler(), small(hidden_layer_sizes=(10,)))
    grid = {"lpregularizedregressor__p": [1, "inf"], "lpregularizedregressor__sigma": [0.1, 50.0]}
    found = GridSearchCV(pipeline, grid, cv=2, error_score="raise").fit(x, y)
    assert found.best_params_["lpregularizedregressor__sigma"] == 0.1
    again = pickle.loads(pickle.dumps(found.best_estimator_))  # noqa: S301 (pickled a line before)
    assert_array_equal(again.predict(x), found.predict(x))
    assert 0.4 < again.score(x, y, FRACTIONS) < 1
    exercise, body = load_linnerud(return_X_y=True)
    assert small().fit(exercise, body).predict(exercise).shape == body.shape


def test_progress_shows_no_fraction_of_errors(one, capsys):
    small(verbose=True).fit(*one)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 8
    assert "epoch 8/8: loss" in lines[-1]
    assert "error" not in "".join(lines)


class Earlier(NumpyBackend):
    """A backend from before there were losses."""

    def __getattribute__(self, name):
        if name == "losses":
            raise AttributeError
        return super().__getattribute__(name)


def test_a_backend_that_knows_no_regression_is_refused(one, monkeypatch):
    model, find = small().fit(*one), backends.find
    monkeypatch.setattr(backends, "find", lambda name: Earlier() if name == "earlier" else find(name))
    refusal = "backend 'earlier' does not train with squared-error, only with cross-entropy; choose another"
    for act in (
        lambda: small(backend="earlier").fit(*one),
        lambda: small(backend="earlier").partial_fit(*one),
        lambda: model.trained_.model("earlier"),
        lambda: model.trained_.trainer("earlier"),
    ):
        with pytest.raises(ValueError, match=refusal):
            act()
    LpRegularizedClassifier(max_iter=1, backend="earlier").fit(one[0], one[1] > 900)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (lambda y: np.where(y > y[5], np.nan, y), "Input y contains NaN"),
        (lambda y: np.where(y > y[5], np.inf, y), "Input y contains infinity"),
        (lambda y: y.astype(str), "y must be an array of numbers; got ndarray of <U"),
        (lambda y: ["high"] * 120, "y must be an array of numbers; got list of <U4"),
        (lambda y: np.array(["high"] * 120, object), "could not convert string"),
        (lambda y: y + 1j, "Complex data not supported|y must be an array of numbers"),
        (lambda y: y.astype("datetime64[D]"), "y must be an array of numbers"),
        (lambda y: y.reshape(120, 1, 1), "dim 3"),
        (lambda y: np.zeros((120, 0)), "0 feature"),
        (lambda y: y[:-1], "inconsistent numbers of samples"),
        (lambda y: np.where(y > y[5], 1e308, -1e308), "standard deviation of y is beyond the largest number"),
        (lambda y: None, "y cannot be None|requires y"),
    ],
)  # fmt: skip
def test_an_invalid_y_is_an_error_that_says_why(values, message, one):
    x, y = one
    for train in small().fit, small().partial_fit:
        with pytest.raises(ValueError, match=message):
            train(x, values(y.copy()))


def test_wrong_arguments_are_named(one):
    x, y = one
    with pytest.raises(ValueError, match="p must be a number of at least 1"):
        small(p=0.5).fit(x, y)
    model = small().fit(x, y)
    for act in model.perturb, model.partial_fit:
        with pytest.raises(ValueError, match=r"y must have shape \('n_samples',\) as in the training; got"):
            act(x, y[:, None])
