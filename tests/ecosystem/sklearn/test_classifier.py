"""The scikit-learn classifier: one network on every backend, class weights, and a real effect."""

import copy
import math
import pickle

import mpmath
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy.special import softmax
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.datasets import load_breast_cancer, load_digits, load_iris, load_wine
from sklearn.ensemble import AdaBoostClassifier
from sklearn.metrics import log_loss
from sklearn.model_selection import GridSearchCV, cross_val_score, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.class_weight import compute_sample_weight

from helpers.backends_under_test import NAMES
from helpers.commandline import python
from helpers.laws import norms
from lpfamily.ecosystem.sklearn import LpRegularizedClassifier
from lpfamily.training.networks import initial_state
from lpfamily.training.testing import oracle
from lpfamily_reference.equations import eq3

SMALL = {"hidden_layer_sizes": (4,), "max_iter": 8, "learning_rate_init": 0.3, "random_state": 0}
OBJECTIVES = {
    "plain": {"objective": "plain"},
    "noise": {"objective": "noise", "sigma": 0.3},
    "perturb": {"p": 1.5, "steps": 2, "clean_weight": 0.3, "pieces": 2, "n_iter_no_change": 3},
    "penalty": {"objective": "penalty", "p": 1, "hidden_layer_sizes": (5, 4)},
}
BALLS = 1, 2, math.inf


def scaled(load):
    x, y = load(return_X_y=True)
    return StandardScaler().fit_transform(x), y


@pytest.fixture(scope="module")
def iris():
    return scaled(load_iris)


def small(**options):
    return LpRegularizedClassifier(**SMALL | options)


@pytest.fixture(scope="module", params=[name for name in NAMES if name != "numpy"])
def other(request, iris):
    """A backend besides NumPy's, and what it has trained."""
    return request.param, small(backend=request.param, **OBJECTIVES["perturb"]).fit(*iris)


def test_every_backend_trains_the_same_network(other, iris):
    _, found = other
    expected = clone(found).set_params(backend="numpy").fit(*iris)
    for key, array in expected.trained_.parameters.items():
        assert_allclose(found.trained_.parameters[key], array, rtol=1e-9, atol=1e-11)
    assert_allclose(found.loss_curve_, expected.loss_curve_, rtol=1e-9)
    assert_allclose(found.validation_loss_curve_, expected.validation_loss_curve_, rtol=1e-9)


WITHOUT = """
import pickle, sys
import numpy as np

class Without:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in sys.argv[1:]:
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Without())
with open("model", "rb") as file:
    model = pickle.load(file)
np.save("found.npy", model.predict_log_proba(np.load("x.npy")))
"""


def test_a_trained_classifier_predicts_without_its_backend(other, iris, tmp_path):
    name, model = other
    (tmp_path / "model").write_bytes(pickle.dumps(model))
    np.save(tmp_path / "x.npy", iris[0])
    done = python(WITHOUT, name, f"lpfamily_{name}", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert_array_equal(np.load(tmp_path / "found.npy"), model.predict_log_proba(iris[0]))


def test_float32_inputs_give_float32_parameters_and_probabilities(iris):
    x, y = iris
    model = small().fit(x.astype(np.float32), y)
    assert {array.dtype.name for array in model.trained_.parameters.values()} == {"float32"}
    assert model.predict_proba(x).dtype == np.float32
    assert_allclose(model.predict_proba(x), small().fit(x, y).predict_proba(x), atol=1e-5)


@pytest.mark.parametrize("objective", ["noise", "perturb", "penalty"])
def test_nothing_moves_where_sigma_is_zero(objective, iris):
    plain, same = (small(objective=name, sigma=0.0).fit(*iris) for name in ("plain", objective))
    assert_allclose(same.predict_proba(iris[0]), plain.predict_proba(iris[0]), rtol=1e-9)
    moved = small(objective=objective, sigma=0.5).fit(*iris)
    assert np.abs(moved.predict_proba(iris[0]) - plain.predict_proba(iris[0])).max() > 1e-3


def test_a_clean_loss_alone_is_plain_training(iris):
    plain, same = (small(**options).fit(*iris) for options in ({"objective": "plain"}, {"clean_weight": 1.0}))
    assert_allclose(same.predict_proba(iris[0]), plain.predict_proba(iris[0]), rtol=1e-9)


@pytest.mark.parametrize(
    "option",
    [
        {"hidden_layer_sizes": (4, 4)}, {"pieces": 2}, {"p": 1.0}, {"sigma": 0.5}, {"steps": 3},
        {"clean_weight": 0.5}, {"max_iter": 7}, {"batch_size": 16}, {"learning_rate_init": 0.2},
        {"ema": 0.9}, {"random_state": 1},
    ],
    ids=lambda option: next(iter(option)),
)  # fmt: skip
def test_every_parameter_changes_the_network(option, iris):
    given = {"sigma": 1.0}
    before, after = (small(**options).fit(*iris) for options in (given, given | option))
    assert np.abs(after.predict_proba(iris[0]) - before.predict_proba(iris[0])).max() > 1e-3


@pytest.mark.parametrize("options", OBJECTIVES.values(), ids=OBJECTIVES)
def test_it_predicts_what_the_definition_does(options, iris):
    x, y = iris
    names = np.array(["versicolor", "setosa", "virginica"])[y]
    model = small(**options).fit(x, names)
    z = np.exp(oracle.logits(model.trained_.network, model.trained_.parameters, x))
    assert_allclose(model.predict_proba(x), z / z.sum(axis=1, keepdims=True), rtol=1e-12)
    assert_array_equal(model.classes_, ["setosa", "versicolor", "virginica"])
    assert_array_equal(model.predict(x), model.classes_[z.argmax(axis=1)])


def test_logarithms_are_exact_where_probabilities_are_not():
    x, y = scaled(load_wine)
    model = LpRegularizedClassifier(random_state=0).fit(x, y)
    for array in model.trained_.parameters.values():
        array *= 10
    found = model.predict_log_proba(x)
    logits = oracle.logits(model.trained_.network, model.trained_.parameters, x)
    with mpmath.workdps(400):
        for row, z in zip(found[:20], logits, strict=False):
            total = mpmath.log(sum(mpmath.exp(mpmath.mpf(entry)) for entry in z))
            assert_allclose(row, [float(mpmath.mpf(entry) - total) for entry in z], rtol=1e-12)
    assert np.all(found[:20] < 0)
    assert np.any(model.predict_proba(x)[:20] == 1)


@pytest.mark.parametrize("p", [1, 1.5, 2, math.inf])
def test_perturb_is_eq_3_or_zero_where_eq_3_does_not_mislead(p, iris):
    x, y = iris
    model = small(hidden_layer_sizes=(30,)).fit(x, y)
    eps = model.perturb(x, y, p=p, sigma=0.4)
    network, parameters = model.trained_.network, model.trained_.parameters
    odds = [oracle.error_log_odds(oracle.logits(network, parameters, at), y) for at in (x, x + eps)]
    grad = oracle.input_gradient(oracle.error_log_odds, network, parameters, x, y)
    expected = np.array([eq3(row, p, 0.4) for row in grad])
    stays = ~eps.any(axis=1)
    assert np.mean(stays) < 0.1
    assert_allclose(eps[~stays], expected[~stays], rtol=1e-8, atol=1e-12)
    assert np.all(odds[1][~stays] > odds[0][~stays])
    mask = np.array([True, False, True, True])
    many = model.perturb(x, y, p=p, sigma=0.4, steps=5, bounds=(x.min(axis=0), x.max(axis=0)), mask=mask)
    assert not many[:, 1].any()
    assert norms(many, p).max() <= 0.4 * (1 + 1e-12)
    assert np.all((x + many >= x.min(axis=0) - 1e-12) & (x + many <= x.max(axis=0) + 1e-12))


def test_the_default_radius_is_as_strong_as_that_of_training(iris):
    x, y = iris
    for p in BALLS:
        model = small(p=p).fit(x, y)
        for q in BALLS:
            assert_allclose(norms(model.perturb(x, y, p=q), q).max(), 0.05 * 4 ** (1 / q), rtol=1e-12)
    assert_allclose(norms(model.perturb(x, y), math.inf).max(), 0.05, rtol=1e-12)
    assert small(objective="noise").fit(x, y).trained_.recipe.sigma == 0.05


COUNTS = np.random.default_rng(0).integers(0, 4, 150)
FRACTIONS = np.random.default_rng(1).uniform(0.1, 2, 150)


def same_network(first, second):
    assert_array_equal(first.classes_, second.classes_)
    assert first.loss_curve_ == second.loss_curve_
    for name, array in first.trained_.parameters.items():
        assert_array_equal(array, second.trained_.parameters[name])


@pytest.mark.parametrize("class_weight", [None, "balanced"])
@pytest.mark.parametrize("options", [OBJECTIVES[name] for name in ("noise", "penalty")], ids=str)
def test_a_sample_weight_counts_repetitions_of_an_example(options, class_weight, iris):
    x, y = iris
    model = small(class_weight=class_weight, **options)
    repeated = clone(model).fit(x.repeat(COUNTS, axis=0), y.repeat(COUNTS))
    same_network(clone(model).fit(x, y, sample_weight=COUNTS), repeated)


def test_sample_weights_mean_the_same_on_every_backend(other, iris):
    name, _ = other
    found, expected = (small(backend=backend).fit(*iris, FRACTIONS) for backend in (name, "numpy"))
    for key, array in expected.trained_.parameters.items():
        assert_allclose(found.trained_.parameters[key], array, rtol=1e-9, atol=1e-11)


def test_an_example_without_weight_is_not_in_the_held_out_set(iris):
    x, y = iris
    weights = np.where(np.arange(150) % 3, FRACTIONS, 0)
    used, model = weights > 0, small(n_iter_no_change=3, class_weight="balanced")
    same_network(clone(model).fit(x, y, weights), clone(model).fit(x[used], y[used], weights[used]))
    without = small().fit(x, y, sample_weight=y != 1)
    assert_array_equal(without.classes_, [0, 2])


def test_the_held_out_loss_is_weighted(iris):
    x, y = iris
    model = small(n_iter_no_change=8, class_weight={1: 2.5}).fit(x, y, FRACTIONS)
    _, held_x, _, held_y, _, weights = train_test_split(
        x, y, FRACTIONS, test_size=0.1, stratify=y, random_state=model.trained_.recipe.seed
    )
    weights = np.where(held_y == 1, 2.5, 1) * weights
    expected = log_loss(held_y, model.predict_proba(held_x), sample_weight=weights)
    assert_allclose(min(model.validation_loss_curve_), expected, rtol=1e-9)


@pytest.mark.parametrize("class_weight", ["balanced", {"setosa": 3, "virginica": 0.4}], ids=str)
def test_class_weights_are_the_sample_weights_that_they_mean(class_weight, iris):
    x, y = iris[0][20:], np.array(["setosa", "versicolor", "virginica"])[iris[1]][20:]
    weights = compute_sample_weight(class_weight, y)
    weights /= weights.mean()
    same_network(small(class_weight=class_weight).fit(x, y), small().fit(x, y, weights))
    assert small(class_weight={"setosa": 1}).fit(x, y).loss_curve_ == small().fit(x, y).loss_curve_


def test_small_weights_are_relative(iris):
    same_network(small().fit(*iris, FRACTIONS / 1024), small().fit(*iris, FRACTIONS / 4))
    same_network(small().fit(*iris, np.full(150, 5e-324)), small().fit(*iris, np.full(150, 0.25)))
    for weight in 1e-320, 1e307:
        classes = dict.fromkeys(range(3), weight)
        same_network(small(class_weight=classes).fit(*iris), small().fit(*iris, np.ones(150)))
    boosted = AdaBoostClassifier(small(hidden_layer_sizes=()), n_estimators=3, random_state=0)
    assert boosted.fit(*iris).score(*iris) > 0.9  # its weights sum to 1


@pytest.mark.parametrize("ema", [0.0, 0.2])
@pytest.mark.parametrize("weights", [np.ones(150), COUNTS], ids=["even", "weighted"])
def test_partial_fit_is_gradient_descent_with_momentum(weights, ema, iris):
    x, y = iris
    model = small(hidden_layer_sizes=(), objective="plain", batch_size=1000, ema=ema)
    for _ in range(4):
        model.partial_fit(x, y, classes=[0, 1, 2], sample_weight=weights)
    network, recipe = model.trained_.network, model.trained_.recipe
    weight, bias, *velocities = initial_state(network, recipe.seed, "float64").values()
    lr, losses, average = SMALL["learning_rate_init"], [], (weight, bias)
    for step in range(4):
        y_hat = softmax(x @ weight + bias, axis=1)
        losses.append(log_loss(y, y_hat, sample_weight=weights))
        delta = (y_hat - np.eye(3)[y]) * (weights / weights.sum())[:, None]
        velocities = [
            0.9 * v - lr * gradient
            for v, gradient in zip(velocities, (x.T @ delta, delta.sum(0)), strict=True)
        ]
        weight, bias = weight + velocities[0], bias + velocities[1]
        kept = min(ema, (1 + step) / (10 + step))
        average = [kept * a + (1 - kept) * w for a, w in zip(average, (weight, bias), strict=True)]
    assert_allclose(model.predict_proba(x), softmax(x @ average[0] + average[1], axis=1), rtol=1e-9)
    assert_allclose(model.loss_curve_, losses, rtol=1e-9)
    assert model.n_iter_ == model.trained_.epoch == 4


def test_partial_fit_learns_from_a_stream_and_goes_on_after_fit(iris):
    x, y = iris[0].astype(np.float32), np.array(["a", "b", "c"])[iris[1]]

    def streamed():
        model = small(hidden_layer_sizes=(), class_weight={"a": 2})
        for chunk in np.array_split(np.random.default_rng(0).permutation(150), 6) * 4:
            model.partial_fit(x[chunk], y[chunk], classes=["c", "b", "a"])
        return model

    halved, doubled = small(class_weight={"a": 0.5}), small()
    for label in ("a", "b", "c") * 2:
        chunk = y == label
        halved.partial_fit(x[chunk], y[chunk], ["a", "b", "c"])
        doubled.partial_fit(x[chunk], y[chunk], ["a", "b", "c"], np.full(50, 1 if label == "a" else 2))
    same_network(halved, doubled)
    model = streamed()
    same_network(model, streamed())
    assert model.score(x, y) > 0.9
    assert len(model.loss_curve_) == model.n_iter_ == 24
    fitted = small().fit(x, y)
    before, loss = fitted.n_iter_, log_loss(y, fitted.predict_proba(x))
    for _ in range(5):
        fitted.partial_fit(x, y)
    assert fitted.n_iter_ == before + 5
    assert log_loss(y, fitted.predict_proba(x)) < loss
    copied = copy.deepcopy(fitted)
    same_network(fitted.partial_fit(x, y), copied.partial_fit(x, y))
    same_network(fitted.fit(x, y), small().fit(x, y))


def errors(model, x, y):
    """Return the error after a step of 0.2 in every pixel, or as strong at other p."""
    radii = {p: 0.2 * 64 ** (1 / p) for p in BALLS}
    return {p: 1 - model.score(x + model.perturb(x, y, p=p, sigma=radii[p]), y) for p in BALLS}


def test_training_in_a_ball_lowers_the_error_in_it():
    x, y = scaled(load_digits)
    x, test_x, y, test_y = train_test_split(x, y, train_size=600, random_state=0)
    options = {"max_iter": 30, "random_state": 0}
    plain = LpRegularizedClassifier(objective="plain", **options).fit(x, y)
    lost = errors(plain, test_x, test_y)
    for p in BALLS:
        model = LpRegularizedClassifier(p=p, sigma=0.2 * 64 ** (1 / p), **options).fit(x, y)
        assert errors(model, test_x, test_y)[p] < 0.8 * lost[p]
    mild = LpRegularizedClassifier(**options).fit(x, y)
    assert log_loss(test_y, mild.predict_proba(test_x)) < log_loss(test_y, plain.predict_proba(test_x))


def test_early_stopping_keeps_the_epoch_of_the_least_loss():
    x, y = scaled(load_breast_cancer)
    model = small(n_iter_no_change=5, validation_fraction=0.2, max_iter=60).fit(x, y)
    losses = model.validation_loss_curve_
    assert len(losses) == len(model.loss_curve_) == model.n_iter_ < 60
    assert model.n_iter_ - 1 - np.argmin(losses) == 5
    seed = model.trained_.recipe.seed
    _, held_x, _, held_y = train_test_split(x, y, test_size=0.2, stratify=y, random_state=seed)
    assert_allclose(log_loss(held_y, model.predict_proba(held_x)), min(losses), rtol=1e-9)
    assert small().fit(x, y).validation_loss_curve_ is None


def test_it_is_searched_calibrated_and_cloned(iris):
    pipeline = make_pipeline(StandardScaler(), small(hidden_layer_sizes=(10,)))
    grid = {"p": [1, np.inf], "sigma": np.array([0.1, 5.0]), "batch_size": np.array([16])}
    grid = {f"lpregularizedclassifier__{name}": values for name, values in grid.items()}
    found = GridSearchCV(pipeline, grid, cv=2, error_score="raise").fit(*iris)
    assert found.best_params_["lpregularizedclassifier__sigma"] == 0.1
    assert cross_val_score(clone(found.best_estimator_), *iris, cv=3).min() > 0.8
    weighed = GridSearchCV(pipeline, {"lpregularizedclassifier__class_weight": [None, "balanced"]}, cv=2)
    weighed.fit(*iris, lpregularizedclassifier__sample_weight=COUNTS)
    assert weighed.score(*iris) > 0.8
    calibrated = CalibratedClassifierCV(pipeline, cv=2).fit(*iris)
    assert_allclose(calibrated.predict_proba(iris[0]).sum(axis=1), 1, rtol=1e-12)
    assert calibrated.score(*iris) > 0.8


def test_progress_is_shown_if_it_is_asked_for(iris, capsys):
    small(verbose=True, n_iter_no_change=8).fit(*iris)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 8
    assert "epoch 8/8: loss" in lines[-1]
    assert "held-out loss" in lines[-1]
    small().fit(*iris)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"p": 0.5}, r"p must be a number of at least 1, or inf: below 1 the ball is not convex; got 0\.5"),
        ({"p": None}, "p must be"),
        ({"p": "two"}, "p must be"),
        ({"sigma": -1}, "sigma must be a finite number, 0 or more; got -1"),
        ({"sigma": math.nan}, "sigma must be"),
        ({"steps": 0}, "steps must be a whole number"),
        ({"clean_weight": 1.5}, "clean_weight must be a number from 0 to 1"),
        ({"hidden_layer_sizes": (10, 0)}, "hidden_layer_sizes must be a whole number.*; got 0"),
        ({"hidden_layer_sizes": 10.5}, "hidden_layer_sizes must be"),
        ({"pieces": -1}, "pieces must be a whole number"),
        ({"max_iter": 0}, "max_iter must be"),
        ({"max_iter": True}, "max_iter must be"),
        ({"batch_size": 2.5}, "batch_size must be"),
        ({"learning_rate_init": 0}, "learning_rate_init must be"),
        ({"n_iter_no_change": 0}, "n_iter_no_change must be"),
        ({"validation_fraction": 1.0}, "validation_fraction must be a number between 0 and 1"),
        ({"objective": "dropout"}, "objective must be one of plain, noise, perturb, penalty; got 'dropout'"),
        ({"backend": "abacus"}, "unknown backend 'abacus'; installed: .*numpy"),
        ({"class_weight": "even"}, "class_weight"),
        ({"class_weight": {0: -1}}, "class_weight must hold finite numbers, 0 or more; got"),
        ({"class_weight": {0: 0, 1: 0, 2: 0}}, "class_weight is 0 for every example"),
        ({"class_weight": {7: 2}}, "not in class_weight"),
        ({"device": "tpu:7"}, "computes on cpu; got .*tpu:7"),
    ],
)
def test_a_parameter_out_of_its_range_is_named(options, message, iris):
    with pytest.raises(ValueError, match=message):
        small(**options).fit(*iris)


def test_inf_may_be_a_string(iris):
    number, text = (small(p=p).fit(*iris) for p in (math.inf, "inf"))
    for name, expected in number.trained_.parameters.items():
        assert_array_equal(text.trained_.parameters[name], expected)
    assert clone(text).p == "inf"
    assert_array_equal(text.perturb(*iris, p="inf"), number.perturb(*iris))


def test_wrong_arguments_are_named(iris):
    x, y = iris
    with pytest.raises(ValueError, match="y holds 1 class, a; a classifier needs two or more"):
        small().fit(x, ["a"] * len(x))
    model = small().fit(x, y)
    with pytest.raises(ValueError, match="previously unseen labels"):
        model.perturb(x, y + 1)
    for weights, message in (
        (-np.ones(150), "sample_weight must be 0 or more; got -1"),
        (np.full(150, np.nan), "NaN"),
        (np.ones(149), "sample_weight"),
        (np.full(150, 1e9), "sum to 1.5e[+]11.*divide sample_weight by its mean"),
    ):
        with pytest.raises(ValueError, match=message):
            small().fit(x, y, weights)
    with pytest.raises(ValueError, match="the first call of partial_fit needs classes"):
        small().partial_fit(x, y)
    with pytest.raises(ValueError, match="cannot balance their classes: pass"):
        small(class_weight="balanced").partial_fit(x, y, [0, 1, 2])
    with pytest.raises(ValueError, match="must stay those of the first call"):
        small().fit(x, y).partial_fit(x, y, [0, 1])
    with pytest.raises(ValueError, match="previously unseen labels"):
        small().partial_fit(x, y, [0, 1])
    with pytest.raises(ValueError, match="sigma is the ball's radius"):
        model.perturb(x, y, sigma=-1.0)
