"""The examples for torch run, in small size, and say what they find."""

import importlib
import re
import sys

import pytest

from helpers import ROOT
from helpers.libraries_under_test import NAMES

if "torch" not in NAMES:
    pytest.skip("torch is not under test", allow_module_level=True)

pytestmark = pytest.mark.torch

EXAMPLES = {
    "torch_vit": ["--epochs", "1"],
    "text_embeddings": ["--epochs", "1", "--seeds", "1"],
    "lightning_digits": ["--epochs", "1"],
}


@pytest.fixture
def run(capsys, monkeypatch):
    """Return a function that runs an example and returns the percentages of each line that it prints."""
    monkeypatch.setattr(sys, "path", [str(ROOT / "examples"), *sys.path])

    def figures(name, flags):
        importlib.import_module(name).main(flags)
        lines = capsys.readouterr().out.splitlines()
        return [[float(figure) for figure in re.findall(r"([\d.]+)%", line)] for line in lines]

    return figures


@pytest.mark.filterwarnings("ignore")  # Lightning's advice
@pytest.mark.parametrize("name", EXAMPLES)
def test_torch_example(name, run):
    found = run(name, EXAMPLES[name])
    assert len(found) == 2
    for errors in found:
        assert len(errors) >= 2
        assert 0 <= errors[0] <= errors[-1] <= 100  # perturbed inputs are no easier


def test_weights_that_bear_a_step_learn_fewer_wrong_labels(run):
    plain, *perturbed = run("torch_flat_minima", ["--epochs", "10"])
    assert len(perturbed) == 2
    for unseen, given in perturbed:
        assert 1.5 * unseen < plain[0]
        assert given > plain[1]
