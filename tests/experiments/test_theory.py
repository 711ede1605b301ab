"""Eq. 4 to 20 beside the loss: exact where the loss is quadratic, and of the right order where it is not."""

import json
import math

import numpy as np
import pytest
from numpy.testing import assert_allclose

from helpers import findings
from helpers.backends_under_test import trainer_on_digits
from helpers.commandline import trained
from helpers.figures import readable
from lpfamily import epsilon
from lpfamily.curvature import LossFunctions, loss_of
from lpfamily.experiments import networks
from lpfamily.experiments.definitions import Setting
from lpfamily.experiments.theory import measure as theory
from lpfamily.experiments.theory.report import CHAPTER
from lpfamily.training import data

DIGITS = data.load("digits")
SIGMAS = (0.1, 1.0, 10.0)
CURVATURE = np.array([0.5, 1.0, 2.0, 3.0])
X = np.random.default_rng(0).uniform(1, 2, (6, 4))

QUADRATIC = LossFunctions(lambda x: x**2 @ CURVATURE / 2, lambda x: CURVATURE * x, lambda x, v: CURVATURE * v)
QUARTIC = LossFunctions(lambda x: (x**4).sum(axis=1), lambda x: 4 * x**3, lambda x, v: 12 * x**2 * v)


def written(ratios, sigmas=(1.0, 2.0, 3.0, 4.0)):
    """Return measurements of these ratios."""
    return [
        {"sigma": sigma, "measured": 0.5, "predicted": {"eq4": 0.5 * ratio}}
        for sigma, ratio in zip(sigmas, ratios, strict=True)
    ]


@pytest.mark.parametrize("p", theory.EXPONENTS)
def test_the_second_order_is_exact_for_a_quadratic_loss(p):
    for each in theory.first_to_second(QUADRATIC, X, p, SIGMAS, probes=4):
        sigma, eps = each["sigma"], epsilon(CURVATURE * X, p, each["sigma"])
        first = np.mean(np.sum(eps * CURVATURE * X, axis=1))
        lengths = np.linalg.norm(CURVATURE * X, {1: math.inf, 2: 2, math.inf: 1}[p], axis=1)
        assert_allclose(each["measured"], first + np.mean(eps**2 @ CURVATURE) / 2)
        assert_allclose(each["predicted"]["eq4"], first)
        assert_allclose(each["predicted"]["eq13"], each["measured"])
        assert_allclose(each["predicted"]["eq17"], first + sigma**2 / 2 * np.mean(lengths**2))
        assert_allclose(each["predicted"]["eq20"], first + sigma**2 / 2 * CURVATURE.sum())
        assert_allclose(each["trace_error"], 0, atol=1e-12 * sigma**2)
        own = np.sum(eps * CURVATURE * X, axis=1)
        gap = np.abs(1 - own / (own + eps**2 @ CURVATURE / 2))
        assert each["within"] == np.mean(gap <= theory.TOLERANCE)


def test_some_examples_are_within_the_tolerance_and_some_are_not():
    flat = LossFunctions(lambda x: x[:, 0] + x[:, 0] ** 2, lambda x: 1 + 2 * x[:, :1], lambda x, v: 2 * v)
    found = theory.first_to_second(flat, np.array([[0.0], [4.25]]), 2.0, [1.0], probes=1)
    assert found[0]["within"] == 0.5
    assert found[0]["trace_error"] is None


def test_the_trace_is_what_noise_adds_to_a_quadratic_loss():
    for each in theory.noise_to_trace(QUADRATIC, X, SIGMAS, draws=400):
        assert_allclose(each["predicted"]["remark1"], each["measured"])
        assert_allclose(each["measured"], each["sigma"] ** 2 / 2 * CURVATURE.sum(), rtol=0.1)


def test_noise_adds_more_than_the_trace_to_a_quartic_loss():
    x = np.ones((50, 100))
    for each in theory.noise_to_trace(QUARTIC, x, (0.1, 0.5, 1.0), draws=8):
        s = each["sigma"]
        assert_allclose(each["measured"], 100 * (6 * s**2 + 3 * s**4), rtol=0.05)
        assert_allclose(each["predicted"]["remark1"], 100 * 6 * s**2, rtol=0.05)


@pytest.mark.parametrize("p", theory.EXPONENTS)
def test_steps_have_the_requested_l2_norms(p):
    grad = np.random.default_rng(1).standard_normal((3, 50))
    for length, sigma in zip(theory.LENGTHS, theory.radii(p, 50), strict=True):
        assert_allclose(np.linalg.norm(epsilon(grad, p, sigma), axis=1), length)


@pytest.mark.parametrize(
    ("ratios", "bound"),
    [
        ((1.0, 0.95, 0.8, 1.0), 2.0),
        ((1.0, 1.09, 1.11, 1.0), 2.0),
        ((0.8, 1.0, 1.0, 1.0), None),
        ((1.0, 1.0, 0.91, 1.05), 4.0),
        ((1.0, -1.0, 1.0, 1.0), 1.0),
    ],
)
def test_the_bound_is_the_last_sigma_before_the_first_that_fails(ratios, bound):
    assert theory.holds_to(written(ratios), "eq4") == bound


def test_a_loss_that_does_not_rise_has_no_ratio():
    found = written((1.0, 1.0, 1.0, 1.0))
    found[1]["measured"] = -0.1
    found[2]["measured"] = 0.0
    assert theory.ratios(found, "eq4") == [1.0, None, None, 1.0]
    assert theory.holds_to(found, "eq4") == 1.0


def test_the_remainder_on_a_trained_network_is_of_the_next_order():
    trainer, x, labels = trainer_on_digits("float64")
    loss = loss_of(trainer, labels[:50])
    small, large = theory.first_to_second(loss, x[:50], 2.0, (1e-3, 2e-3), probes=1)
    for model, order in ("eq4", 2), ("eq13", 3):
        left = [each["predicted"][model] - each["measured"] for each in (small, large)]
        assert_allclose(left[1] / left[0], 2**order, rtol=0.02)


@pytest.fixture(scope="module")
def contents(tmp_path_factory):
    """The result and what is said of it, of one network under all names."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    trained(folder, "--model", "sigmoid-mlp", "--units", "20,20", "--lr", 0.5, "--epochs", 3)
    (experiment,) = CHAPTER.experiments
    (measurement,) = experiment.measurements
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(networks, "all_finished", lambda setting, wanted, tick: [folder for _ in wanted])
        patch.setattr(data, "load", lambda name, data_dir: DIGITS)
        setting = Setting(folder.parent, None)
        found = json.loads(json.dumps(measurement.measure(setting, lambda *said: None), allow_nan=False))
    return found, *experiment.report(setting, found)


def test_the_figure_is_readable_on_any_page(contents, tmp_path):
    _, plot, _ = contents
    figure = readable(plot, tmp_path)
    assert len(figure.axes) == len(theory.NAMES) * (len(theory.EXPONENTS) + 1)


def test_the_notes_say_up_to_which_sigma_eq4_holds(contents):
    found, plot, _ = contents
    for sentence, name in zip(plot.notes, theory.NAMES, strict=False):
        for p, each in found["steps"][name].items():
            bound = theory.holds_to(each, "eq4")
            assert f"p = {p}: " + ("nowhere" if bound is None else f"up to {bound:.2g}") in sentence
    bent = json.loads(json.dumps(found))
    for each in bent["steps"][theory.NAMES[0]]["2"]:
        each["predicted"]["eq4"] = 2 * each["measured"]
    said = next(CHAPTER.experiments[0].report(Setting(None, None), bent)).notes[0]
    assert "p = 2: nowhere" in said
    assert said != plot.notes[0]


def test_the_finding_has_the_numbers_of_the_figure(contents):
    findings.check(CHAPTER.experiments[0], Setting(None, None), contents[0])


def test_the_table_has_a_row_for_all_that_was_measured(contents):
    found, _, table = contents
    panels = len(theory.EXPONENTS) * len(theory.LENGTHS) + len(theory.STDS)
    assert len(table.rows) == len(theory.NAMES) * panels
    first = found["steps"][theory.NAMES[0]]["1"][0]
    assert table.rows[0][2:5] == (first["sigma"], first["measured"], first["predicted"]["eq4"])
    for row in table.rows:
        assert len(row) == len(table.columns)
        for value, column in zip(row, table.columns, strict=True):
            assert isinstance(value, str) or value is None or column.format.format(value)
