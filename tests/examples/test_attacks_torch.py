"""The examples of attacks run, and what they print is true."""

import re
import runpy

import numpy as np
import pytest

from helpers import ROOT
from helpers.backends_under_test import NAMES

if "torch" not in NAMES:
    pytest.skip("torch is not under test", allow_module_level=True)

pytestmark = pytest.mark.torch

EXAMPLES = ROOT / "examples"


@pytest.mark.parametrize(
    ("name", "options"),
    [("attack_foolbox", ["--updates", "60"]), ("attack_art", ["--epochs", "8"])],
)
def test_an_example_prints_that_no_more_withstand_than_of_theirs(name, options, capsys):
    runpy.run_path(str(EXAMPLES / f"{name}.py"))["main"]([*options, "--examples", "60", "--steps", "3"])
    first, _, *rows = capsys.readouterr().out.splitlines()
    accuracy = float(re.match(r"accuracy (0\.\d+)", first)[1])
    assert accuracy > 0.7
    table = [[float(number) for number in row.split()] for row in rows]
    assert [row[0] for row in table][-1] == np.inf
    for _, _, *own, one, many in table:
        assert max(one, many) <= accuracy
        assert all(one <= share for share in own)
