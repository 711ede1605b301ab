"""The example of tabular data runs, and its table says what it is to show."""

import runpy

import numpy as np
from numpy.testing import assert_allclose

from helpers import ROOT

EXAMPLE = ROOT / "examples" / "tabular_sklearn.py"


def test_training_at_each_p_withstands_its_own_step_more_than_plain_training(capsys):
    runpy.run_path(str(EXAMPLE))["main"](["--folds", "2", "--epochs", "40"])
    _, exponents, radii, *rows = capsys.readouterr().out.splitlines()
    p, sigma = (np.array([float(word) for word in line.split()[-9:]]) for line in (exponents, radii))
    assert_allclose(sigma, np.tile([0.05, 0.1, 0.2], 3) * 30 ** (1 / p), rtol=1e-2)
    table = np.array([[float(word) for word in row.split()[-10:]] for row in rows])
    assert table.shape == (4, 10)
    assert table[:, 0].min() > 93
    worst = table[:, 1:].reshape(4, 3, 3)
    assert np.all(np.diff(worst, axis=2) <= 0)
    for ball in range(3):
        assert worst[1 + ball, ball, 2] > worst[0, ball, 2] + 2
