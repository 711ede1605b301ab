"""The examples for torch run, in small size, and say what they find."""

import importlib
import re
import sys
from pathlib import Path

import pytest
from conftest import NAMES

if "torch" not in NAMES:
    pytest.skip("torch is not under test", allow_module_level=True)

pytestmark = pytest.mark.torch

EXAMPLES = {
    "torch_vit": ["--epochs", "1"],
    "text_embeddings": ["--epochs", "1", "--seeds", "1"],
    "lightning_digits": ["--epochs", "1"],
}


@pytest.mark.filterwarnings("ignore")  # Lightning's advice
@pytest.mark.parametrize("name", EXAMPLES)
def test_torch_example(name, capsys, monkeypatch):
    monkeypatch.setattr(sys, "path", [str(Path(__file__).parent.parent / "examples"), *sys.path])
    importlib.import_module(name).main(EXAMPLES[name])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    for line in lines:
        errors = [float(figure) for figure in re.findall(r"([\d.]+)%", line)]
        assert len(errors) >= 2
        assert 0 <= errors[0] <= errors[-1] <= 100  # perturbed inputs are no easier
