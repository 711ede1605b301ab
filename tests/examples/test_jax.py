"""The example for JAX runs in small size, and the regularised network withstands more."""

import runpy

import pytest

from helpers import ROOT
from helpers.backends_under_test import NAMES

if "jax" not in NAMES:
    pytest.skip("JAX is not under test", allow_module_level=True)

pytestmark = pytest.mark.jax

EXAMPLES = ROOT / "examples"


def test_the_regularised_network_withstands_more(capsys):
    runpy.run_path(str(EXAMPLES / "jax_flax_cnn.py"))["main"](["--epochs", "6", "--sigma", "0.4"])
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.split() == ["plain", "regularised"]
    assert len(rows) == 6 + 2
    figures = [[float(figure.rstrip("%")) for figure in row.split()[-2:]] for row in rows]
    assert all(plain < regularised for plain, regularised in figures[:6])  # one is of x, one of x + eps
    assert max(figures[6]) < 20
    assert figures[7][1] < figures[7][0]
