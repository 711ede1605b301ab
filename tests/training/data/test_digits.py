"""The digits of scikit-learn: the same split every time, and a hint where scikit-learn is missing."""

import importlib
import re
import sys

import numpy as np
import pytest
from numpy.typing import NDArray

from helpers.data_files import assert_same
from lpfamily.training import data
from lpfamily.training.errors import BadInput


def test_digits_are_split_the_same_way_every_time() -> None:
    """1,797 real digits, 300 of them for testing; a change of the split changes the pinned labels."""
    digits = data.load("digits")
    assert (digits.name, digits.classes, digits.shape) == ("digits", 10, (1, 8, 8))
    assert digits.train.x.shape == (1497, 64)
    assert digits.test.x.shape == (300, 64)
    assert_same(digits, data.load("digits"))
    assert digits.test.labels[:10].tolist() == [6, 6, 6, 2, 5, 6, 6, 2, 2, 1]
    for split in (digits.train, digits.test):
        assert (split.x.dtype.name, split.labels.dtype.name) == ("float32", "int64")
        assert (split.x.min(), split.x.max()) == (0, 1)
        assert set(split.labels.tolist()) == set(range(10))


def test_digits_splits_are_disjoint_and_complete() -> None:
    """Together the splits are scikit-learn's examples, each once with its label."""
    digits = data.load("digits")
    x = np.concatenate([digits.train.x, digits.test.x])
    labels = np.concatenate([digits.train.labels, digits.test.labels])
    pixels, targets = importlib.import_module("sklearn.datasets").load_digits(return_X_y=True)

    def rows(values: NDArray[np.float64], names: NDArray[np.int64]) -> list[list[float]]:
        return sorted(np.column_stack([values, names]).tolist())

    assert len(np.unique(x, axis=0)) == len(x)
    assert rows(16.0 * x, labels) == rows(pixels, targets)


def test_digits_without_scikit_learn_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """The refusal is an install line."""
    monkeypatch.setitem(sys.modules, "sklearn", None)
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(BadInput, match=re.escape('pip install "lpfamily[train]"')):
        data.load("digits")
