"""Which p to train with: table-p measured on small networks, and what it says of numbers."""

import math

import pytest

from helpers import findings
from helpers.commandline import small_mnist
from lpfamily import epsilon
from lpfamily.experiments import catalogue, networks
from lpfamily.experiments.definitions import Setting
from lpfamily.experiments.exponents import measure, report
from lpfamily.experiments.networks import NETWORKS, QUICK, RADII, of_kinds, recipe_of
from lpfamily.training import data, load
from lpfamily.training.progress import silent

SMALL = ("--validation", "5", "--epochs", "3", "--lr-epochs", "3", "--batch-size", "10", "--units", "8")


@pytest.fixture
def setting(tmp_path, monkeypatch):
    small_mnist(tmp_path / "data" / "mnist")
    monkeypatch.setitem(QUICK, "exponents-mnist", SMALL)
    networks.recipe_of.cache_clear()
    yield Setting(tmp_path / "out", tmp_path / "data")
    networks.recipe_of.cache_clear()


def test_every_training_is_a_recipe_of_its_own_and_attacked_alike(setting):
    recipes = [recipe_of(setting, name) for name in of_kinds("exponents-mnist")]
    assert len(set(recipes)) == len(recipes) == 14
    assert {recipe.objective for recipe in recipes} == {"plain", "noise", "perturb", "penalty", "trades"}
    passes = {recipe.passes for recipe in recipes if recipe.steps > 1}
    assert passes == {18}  # a gradient is three
    assert {p for p in RADII["mnist"] if p in measure.ATTACKED} == set(measure.ATTACKED)


def test_the_measurement_is_of_the_networks_in_their_balls(setting, monkeypatch):
    names = "mnist-plain", "mnist-trades-pinf"
    monkeypatch.setattr(measure, "of_kinds", lambda kind: names)
    found = measure.measurement("mnist", 1.0).measure(setting, silent)
    assert list(found) == list(names)
    test = data.load("mnist", setting.data_dir).test.astype("float32")
    for name, (run,) in found.items():
        assert (run["attacked"], run["seed"]) == (20, 0)
        trainer = load(setting.out / "runs" / f"{name}-0").trainer("numpy")
        wrong = trainer.logits(test.x).argmax(axis=1) != test.labels
        assert run["clean"] == wrong.mean()
        for p in measure.ATTACKED:
            step = epsilon(trainer.input_gradients(test.x, test.labels), p, RADII["mnist"][p])
            moved = trainer.logits(test.x + step).argmax(axis=1) != test.labels
            assert run["fooled"][f"{p:g}"] >= (wrong | moved).mean()


def ended(clean, fooled, seed, passes=3):
    noise = {std: {"mean": clean + 0.01, "standard_error": 0.001} for std in ("0.1", "0.3")}
    each = dict(zip(report.BALLS, fooled, strict=True))
    return {
        "clean": clean,
        "noise": noise,
        "fooled": each,
        "passes": passes,
        "seed": seed,
        "test_examples": 10_000,
        "attacked": 1000,
    }


@pytest.mark.parametrize(("name", "source"), [("table-p", "mnist"), ("table-p-cifar10", "cifar10")])
def test_the_table_has_means_standard_errors_and_the_worst_ball_of_each_seed(tmp_path, name, source):
    experiment = catalogue.EXPERIMENTS[name]
    found = {
        each: [ended(0.02, (0.5, 0.3, 0.4), 0, 6), ended(0.03, (0.3, 0.2, 0.7), 1, 6)]
        for each in of_kinds(f"exponents-{source}")
    }
    found[f"{source}-plain"] = [ended(0.05, (0.9, 0.8, 0.85), 0), ended(0.05, (0.9, 0.8, 0.85), 1)]
    found[f"{source}-p4"] = [ended(0.02, (0.5, 0.3, 0.4), 0, 6), ended(0.03, (0.3, 0.2, 0.6), 1, 6)]
    setting = Setting(tmp_path, None, budget="paper")
    (table,) = experiment.report(setting, found)
    rows = {row[0]: row[1:] for row in table.rows}
    # of two seeds, half of the distance
    errors = [0.005, 0.1, 0.05, 0.1, 0.05, 0.005]
    means = [0.025, 0.4, 0.25, 0.5, 0.55, 0.035]
    expected = [number for pair in zip(means, errors, strict=True) for number in pair]
    row = rows["one step, p = 4"]
    assert row == pytest.approx([*expected, 2.0])
    assert len(table.rows) == len(found) == 14
    said = findings.check(experiment, setting, found)
    assert 'is 55.00%, after training with "one step, p = 4"' in said
    assert "90.00%" in said


def test_with_one_seed_the_standard_errors_are_those_over_the_images(tmp_path):
    found = {each: [ended(0.02, (0.5, 0.3, 0.4), 0)] for each in of_kinds("exponents-mnist")}
    (table,) = catalogue.EXPERIMENTS["table-p"].report(Setting(tmp_path, None), found)
    row = table.rows[0][1:]
    assert row[1] == pytest.approx(math.sqrt(0.02 * 0.98 / 10_000))
    assert row[3] == pytest.approx(math.sqrt(0.5 * 0.5 / 1000))
    assert any(" ".join(QUICK["exponents-mnist"]) in note for note in table.notes)
    assert NETWORKS["mnist-plain"].label == table.rows[0][0]
