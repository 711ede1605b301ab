"""The 8x8 handwritten digits of scikit-learn: real images, without a download."""

import importlib
from pathlib import Path

import numpy as np

from lpfamily.training.data.datasets import Dataset, Source, Split
from lpfamily.training.errors import refusing

TEST_EXAMPLES = 300
SPLIT_SEED = 0


def load(data_dir: Path | None = None) -> Dataset:
    """Load the 1,797 digits, x = pixel / 16 of shape (n, 64). The test set is always the same 300.

    They come with scikit-learn, so `data_dir` is ignored.

    Raises
    ------
    BadInput
        scikit-learn cannot be imported.
    """
    problem = "the digits come with scikit-learn, which cannot be imported"
    with refusing(problem, ': pip install "lpfamily[train]"', ImportError):
        datasets = importlib.import_module("sklearn.datasets")
    pixels, labels = datasets.load_digits(return_X_y=True)
    x, labels = (pixels / 16).astype(np.float32), labels.astype(np.int64)
    order = np.random.default_rng(SPLIT_SEED).permutation(len(x))
    test, train = order[:TEST_EXAMPLES], order[TEST_EXAMPLES:]
    splits = Split(x[train], labels[train]), Split(x[test], labels[test])
    return DIGITS.dataset(*splits)


DIGITS = Source(
    "digits",
    (1, 8, 8),
    10,
    load,
    has_files=False,
    # the paper has no digits: a single stage, which takes seconds
    recipe={"epochs": 100, "validation": 197, "patience": 0, "second_stage": "none"},
    of_models={"sigmoid-mlp": {"units": (300, 300)}},
)
