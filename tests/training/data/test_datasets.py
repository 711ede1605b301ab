"""The table of data sets: their names, their entries, and the subsets of their examples."""

import subprocess
import sys

import numpy as np
import pytest

import lpfamily.training
from lpfamily import evaluate
from lpfamily.train import main
from lpfamily.training import data
from lpfamily.training.errors import BadInput


def test_listing_the_names_does_not_import_scikit_learn() -> None:
    """The names need no loader."""
    code = "import sys; from lpfamily.training.data import NAMES; print(*NAMES, 'sklearn' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["digits", "mnist", "cifar10", "False"]


def test_the_error_for_an_unknown_name_lists_the_known_ones() -> None:
    """The refusal holds what was given and what to choose from."""
    with pytest.raises(BadInput, match=r"'svhn'.*digits, mnist, cifar10"):
        data.load("svhn")


def test_a_data_set_is_one_entry_of_the_table(tmp_path, monkeypatch):
    """Its own shape and number of classes, its radius and recipe; commands take it like any other."""
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 3
    x = (rng.random((60, 6)) + np.repeat(np.eye(3), 2, axis=1)[labels]).astype(np.float32)

    def read(folder):
        assert folder is None  # it has no files
        return toy.dataset(data.Split(x[:40], labels[:40]), data.Split(x[40:], labels[40:]))

    chosen = {"epochs": 5, "validation": 6, "patience": 0, "second_stage": "none", "batch_size": 7}
    toy = data.Source("toy", (1, 2, 3), 3, read, radius=0.25, has_files=False, recipe=chosen)
    monkeypatch.setitem(data.SOURCES, "toy", toy)
    assert main(["--data", "toy", "--units", "5", "--out", str(tmp_path / "run"), "--quiet"]) == 0
    trained = lpfamily.training.load(tmp_path / "run")
    assert (trained.network.inputs, trained.network.classes, trained.recipe.sigma) == (6, 3, 0.25)
    assert {name: getattr(trained.recipe, name) for name in chosen} == chosen
    assert trained.result["tested_on"] == "toy, 20 test examples"
    assert evaluate.main([str(tmp_path / "run"), "--quiet", "--examples", "20", "--steps", "2"]) == 0


def test_first_of_each_returns_the_first_example_of_each_class():
    test = data.load("digits").test
    first = test.first_of_each((6, 2))
    np.testing.assert_array_equal(first.labels, [6, 2])
    for image, digit in zip(first.x, (6, 2), strict=True):
        np.testing.assert_array_equal(image, test.x[test.labels.tolist().index(digit)])
