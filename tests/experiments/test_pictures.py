"""Section III: decompositions against the network written out, matched steps, transfer, and what is drawn."""

import json
import math

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy.special import log_softmax, softmax

from helpers import findings
from helpers.backends_under_test import NETWORK, trainer_on_digits
from helpers.commandline import trained
from helpers.figures import readable
from lpfamily import epsilon
from lpfamily.experiments import networks as trained_networks
from lpfamily.experiments.definitions import Setting
from lpfamily.experiments.pictures import measure as pictures
from lpfamily.experiments.pictures.report import CHAPTER
from lpfamily.report.contents import Plot, Table
from lpfamily.training import data
from lpfamily_reference import networks
from lpfamily_reference.definitions import central_difference

DIGITS = data.load("digits")


class Linear:
    """A linear softmax, that keeps what it is asked to classify."""

    def __init__(self, weights):
        self.weights, self.seen = np.asarray(weights, float), []

    def logits(self, x):
        self.seen.append(x)
        return x @ self.weights

    def losses(self, x, labels):
        return -log_softmax(x @ self.weights, axis=1)[np.arange(len(x)), labels]

    def input_gradients(self, x, labels):
        right = np.arange(self.weights.shape[1]) == labels[:, None]
        return (softmax(np.where(right, -np.inf, x @ self.weights), axis=1) - right) @ self.weights.T


class Saturating:
    """L = 2 min(x_1, 0.1) + min(x_2, 0.1), which no step along x_1 alone can raise above 0.2."""

    def losses(self, x, labels):
        return np.minimum(x, 0.1) @ [2.0, 1.0]

    def input_gradients(self, x, labels):
        return np.tile([2.0, 1.0], (len(x), 1))


def written_out(trainer, x):
    """Return the logits of one input."""
    state, x = trainer.state(), x[None]
    for index in range(len(NETWORK.layers)):
        x = networks.dense(x, state[f"layers.{index}.weight"], state[f"layers.{index}.bias"])
        x = x if index == len(NETWORK.layers) - 1 else networks.sigmoid(x)
    return x[0]


# What a perturbation is made of (eq. 25)


def test_contributions_are_those_of_the_networks_jacobian():
    trainer, x, labels = trainer_on_digits("float64")
    coefficients, parts = pictures.contributions(trainer, x[:4], labels[:4], 10)
    for image, label, coefficient, part in zip(x[:4], labels[:4], coefficients, parts, strict=True):
        y_minus_t = softmax(written_out(trainer, image)) - np.eye(10)[label]
        jacobian = central_difference(lambda at: written_out(trainer, at), image, 1e-5).T
        assert_allclose(coefficient, y_minus_t, rtol=1e-9, atol=1e-15)
        assert_allclose(part, y_minus_t[:, None] * (jacobian - jacobian.mean(axis=0)), atol=1e-8)


def test_contributions_sum_to_the_gradient_of_the_loss():
    trainer, x, labels = trainer_on_digits("float64")
    _, parts = pictures.contributions(trainer, x[:4], labels[:4], 10)
    for image, label, part in zip(x[:4], labels[:4], parts, strict=True):

        def loss(at, label=label):
            return -log_softmax(written_out(trainer, at))[label]

        assert_allclose(part.sum(axis=0), central_difference(loss, image, 1e-5), atol=1e-8)


def test_contributions_survive_a_confident_network_in_float32():
    single, x, labels = trainer_on_digits("float32", confidence=8.0)
    double, _, _ = trainer_on_digits("float64", confidence=8.0)
    sure = np.flatnonzero(double.losses(x.astype(float), labels) < 1e-9)[:5]
    assert len(sure)
    wanted = pictures.contributions(double, x[sure].astype(float), labels[sure], 10)
    found = pictures.contributions(single, x[sure], labels[sure], 10)
    for one, other in zip(found, wanted, strict=True):
        assert_allclose(
            one, other, rtol=1e-3, atol=1e-4 * np.max(np.abs(other), axis=-1, keepdims=True).min()
        )


def test_contributions_of_classes_sum_to_the_step():
    trainer, x, labels = trainer_on_digits("float64")
    eps = epsilon(trainer.input_gradients(x[:6], labels[:6]), 2.0, 1.0)
    for each, label, step in zip(
        pictures.class_parts(trainer, x[:6], labels[:6]), labels[:6], eps, strict=True
    ):
        assert each["classes"][0] == label
        assert len(set(each["classes"])) == len(each["parts"]) == len(each["shares"]) == pictures.SHOWN + 1
        assert_allclose(np.sum(each["parts"], axis=0), step, atol=5e-5)
        assert_allclose(np.sum(each["shares"]), 1, atol=5e-4)
        assert_allclose(np.sum(each["coefficients"]), 0, atol=1e-12)
        assert each["coefficients"][0] < 0 <= min(each["coefficients"][1:])


# Steps of every p that raise the loss alike


@pytest.mark.parametrize("p", pictures.EXPONENTS)
def test_matched_steps_raise_the_loss_alike(p):
    trainer, x, labels = trainer_on_digits("float64")
    x, labels = x[:20], labels[:20]
    goal = trainer.losses(x + epsilon(trainer.input_gradients(x, labels), 2.0, 1.0), labels)
    sigma, eps = pictures.matched_steps(trainer, x, labels, p)
    found = np.isfinite(sigma)
    assert found.sum() >= 15
    assert_allclose(np.linalg.norm(eps, p, axis=1)[found], sigma[found])
    assert_allclose(trainer.losses(x + eps, labels)[found], goal[found], rtol=1e-4)
    assert np.all((trainer.losses(x + 0.99 * eps, labels) < goal)[found])
    if p == 2:
        assert_allclose(sigma, 1, rtol=1e-5)


def test_a_rise_that_no_radius_reaches_has_a_nan_radius():
    x, labels = np.zeros((1, 2)), np.zeros(1, int)
    assert_allclose(pictures.matched_steps(Saturating(), x, labels, 2.0)[0], math.sqrt(0.05), rtol=1e-4)
    sigma, eps = pictures.matched_steps(Saturating(), x, labels, 1.0)
    assert_array_equal(np.isnan(sigma), [True])
    assert_array_equal(eps, [[0, 0]])


# Predictions


def test_digits_are_classified_as_the_network_does():
    trainer, x, labels = trainer_on_digits("float64")
    found = pictures.perturbed_digits(trainer, x[:8], labels[:8])
    eps = np.array([step / np.linalg.norm(step) for step in trainer.input_gradients(x[:8], labels[:8])])
    assert_allclose(found["eps"], eps, atol=1e-5)
    for sigma in 0, 1, 10:
        y = np.array([softmax(written_out(trainer, image)) for image in x[:8] + sigma * eps])
        assert_array_equal(found["predicted"][f"{sigma}"]["label"], y.argmax(axis=1))
        assert_allclose(found["predicted"][f"{sigma}"]["probability"], y.max(axis=1), atol=1e-6)


def test_perturbed_examples_are_counted_by_their_new_class():
    # The first goes to its runner-up. The second keeps its class at sigma 1, and at 10 the class whose logit
    # grows fastest overtakes its runner-up.
    x, labels = np.array([[1, 0.9, -5], [4, 1, 0.2]]), np.zeros(2, int)
    found = pictures.led_to(Linear(np.diag([1, 1, 3])), x, labels)
    assert found == {
        "1": {"right": 0.5, "runner_up": 0.5, "other": 0.0},
        "10": {"right": 0.0, "runner_up": 0.5, "other": 0.5},
    }


def test_perturbations_transfer_between_networks_that_use_the_same_inputs():
    rng = np.random.default_rng(0)
    labels = np.arange(50) % 2
    x = np.zeros((50, 4))
    x[np.arange(50), labels] = x[np.arange(50), 2 + labels] = 0.6
    first, second = [[1, 0], [0, 1], [0, 0], [0, 0]], [[0, 0], [0, 0], [1, 0], [0, 1]]
    trainers = {"a": Linear(first), "same": Linear(5 * np.array(first)), "apart": Linear(second)}
    ticks = []
    found = pictures.transfer(
        trainers, x + 1e-3 * rng.random(x.shape), labels, lambda *said: ticks.append(said)
    )
    assert found["clean"] == {"a": 0.0, "same": 0.0, "apart": 0.0}
    assert found["perturbed"] == {
        "a": {"a": 1.0, "same": 1.0, "apart": 0.0},
        "same": {"a": 1.0, "same": 1.0, "apart": 0.0},
        "apart": {"a": 0.0, "same": 0.0, "apart": 1.0},
    }
    assert [done / of for done, of, _ in ticks] == [0, 1 / 3, 2 / 3]
    clean, *moved = trainers["a"].seen
    assert len(moved) == 4
    for each in moved:
        assert_allclose(np.linalg.norm(each - clean, axis=1), 1)


def test_neighbours_agree_in_strokes_and_not_in_noise():
    rows, columns = np.mgrid[:32, :32]
    assert_allclose(pictures.neighbours_agree([np.ones(32 * 32), -2 * np.ones(32 * 32)]), 1)
    assert_allclose(pictures.neighbours_agree([(-1.0) ** (rows + columns).ravel()]), -1)
    assert_allclose(pictures.neighbours_agree([(-1.0) ** rows.ravel()]), 0, atol=1e-12)
    noise = np.random.default_rng(0).standard_normal((50, 32 * 32))
    assert_allclose(pictures.neighbours_agree(noise), 0, atol=0.02)


# Figures, tables and findings, on digits


@pytest.fixture(scope="module")
def contents(tmp_path_factory):
    """The reports of all experiments, with one network under all names."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    trained(folder, "--model", "sigmoid-mlp", "--units", "20,20", "--lr", 0.5, "--epochs", 3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            trained_networks, "all_finished", lambda setting, wanted, tick: [folder for _ in wanted]
        )
        patch.setattr(data, "load", lambda name, data_dir: DIGITS)
        setting, kept, found = Setting(folder.parent, None), {}, []
        for experiment in CHAPTER.experiments:
            for each in experiment.measurements:
                if each.name not in kept:
                    kept[each.name] = json.loads(
                        json.dumps(each.measure(setting, lambda *said: None), allow_nan=False)
                    )
            results = [kept[each.name] for each in experiment.measurements]
            found += experiment.report(setting, *results)
            if experiment.finding:
                findings.check(experiment, setting, *results)
    return {each.name: each for each in found}


NAMES = ("figure1", "figure2", "figure3", "figure4", "figure-p", "figure-classes")


@pytest.mark.parametrize("name", NAMES)
def test_figures_are_readable_on_any_page(contents, name, tmp_path):
    plot = contents[name]
    assert isinstance(plot, Plot)
    assert plot.alt
    readable(plot, tmp_path)


@pytest.mark.parametrize("name", ["figure4-digits", "figure4-classes", "table-transfer"])
def test_tables_have_a_cell_per_column(contents, name):
    table = contents[name]
    assert isinstance(table, Table)
    assert table.notes
    for row in table.rows:
        assert len(row) == len(table.columns)
        for value, column in zip(row, table.columns, strict=True):
            assert isinstance(value, str) or value is None or column.format.format(value)


def test_every_network_has_a_row_and_a_column_in_the_transfer(contents):
    table = contents["table-transfer"]
    heads = [column.head for column in table.columns[1:]]
    assert (
        [row[0] for row in table.rows[2:]]
        == heads
        == [trained_networks.NETWORKS[n].label for n in pictures.TRANSFER]
    )
    assert f"All {len(DIGITS.test.x)} test examples" in " ".join(table.notes)


def test_a_network_that_has_not_learned_is_not_in_the_averages():
    runs = {name: {"epochs": 1, "clean": 0.9, "seed": 0} for name in ("softmax", "sigmoid-p2", "maxout-p2")}
    runs["maxout-p2"]["test_examples"] = 300  # the others are of an earlier version, which did not keep it
    clean = {"softmax": 0.1, "sigmoid-p2": 0.3, "maxout-p2": 0.9}
    perturbed = {
        "softmax": {"softmax": 0.6, "sigmoid-p2": 0.4, "maxout-p2": 0.9},
        "sigmoid-p2": {"softmax": 0.3, "sigmoid-p2": 0.8, "maxout-p2": 0.9},
        "maxout-p2": {"softmax": 0.2, "sigmoid-p2": 0.3, "maxout-p2": 0.9},
    }
    found = {"runs": runs, "examples": 9, "clean": clean, "noise": clean, "perturbed": perturbed}
    (experiment,) = (each for each in CHAPTER.experiments if each.name == "table-transfer")
    (table,) = experiment.report(Setting(None, None), found)
    averages, left_out = table.notes[:2]
    assert "35.00% under perturbations" in findings.check(experiment, Setting(None, None), found)
    assert "20.00% clean" in averages
    assert "35.00% under another network's perturbations" in averages
    assert "70.00% under a network's own" in averages
    assert left_out.startswith("Maxout + dropout + gradient p = 2 has learned too little")
    assert ["Maxout" in note for note in table.notes if "is at chance" in note] == [True]
