"""`lpfamily.evaluate --model`: any model of any library, and one line for what cannot be measured."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from helpers.backends_under_test import NAMES
from lpfamily import evaluate, robustness

MODULE = """
import numpy as np

WEIGHTS = np.random.default_rng(0).standard_normal((12, 4)).astype("f4")


def of_numpy():
    return lambda x: (x @ WEIGHTS, lambda cotangent: cotangent @ WEIGHTS.T)


def of_jax():
    import jax.numpy as jnp

    return lambda x: x @ jnp.asarray(WEIGHTS)


def of_torch():
    import torch

    model = torch.nn.Linear(12, 4, bias=False)
    model.weight.data = torch.tensor(WEIGHTS.T)
    return model


def nothing():
    return None


def breaks():
    raise RuntimeError("no weights\\nhere")


def one_logit():
    return lambda x: (x @ WEIGHTS[:, :1], lambda cotangent: cotangent)


def alone():
    return lambda x: x @ WEIGHTS


def fails_inside():
    return lambda x: x @ WEIGHTS[:5]


def fails_on_several():
    def model(x):
        if len(x) > 1:
            raise RuntimeError("one at a time")
        return of_numpy()(x)

    return model


def leaves():
    raise SystemExit("no weights")
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    sys.modules.pop("mine", None)


def arrays(folder, name="data.npz", **changes):
    import mine

    x = np.random.default_rng(1).random((30, 12)).astype("f4")
    saved = {"x": x, "y": (x @ mine.WEIGHTS).argmax(axis=1)} | changes
    np.savez(folder / name, **{key: value for key, value in saved.items() if value is not None})
    return saved["x"], saved["y"]


def flags(model, *more, data="data.npz"):
    return ["--model", f"mine:{model}", "--data", data, "--p", "2,inf", "--quiet", *more]


BALLS = ("--sigma", "1/8,0.3", "--bounds", "0,1", "--effort", "quick")


def test_the_script_looks_for_the_module_where_python_m_does(folder):
    """A program in another folder has that on its path, and not the current one."""
    arrays(folder)
    elsewhere = folder / "bin"
    elsewhere.mkdir()
    (elsewhere / "script.py").write_text("from lpfamily.__main__ import start\n\nstart()\n")
    command = [sys.executable, elsewhere / "script.py", "evaluate", *flags("of_numpy", *BALLS)]
    safe, usual = (
        subprocess.run([command[0], *option, *command[1:]], capture_output=True, text=True)
        for option in (["-P"], [])
    )
    assert (safe.returncode, usual.returncode) == (2, 0), usual.stderr
    assert "there is no module 'mine' here" in safe.stderr


def without_quantiles(table):
    return re.sub(r"(?<=\d% )\d\.\d+", "", table)


@pytest.mark.parametrize("name", NAMES)
def test_a_model_is_measured_as_its_librarys_robustness_does(name, folder, capsys):
    x, y = arrays(folder)
    import mine

    assert evaluate.main([*flags(f"of_{name}", *BALLS), "--examples", "20"]) == 0
    printed = capsys.readouterr()
    expected = robustness(
        mine.of_numpy(),
        x[:20],
        y[:20],
        p=(2, np.inf),
        sigma=(1 / 8, 0.3),
        bounds=(0, 1),
        effort="quick",
        progress=False,
    )
    assert without_quantiles(printed.out) == without_quantiles(f"{expected.table()}\n")
    result = json.loads((folder / "robustness/robustness.json").read_text())
    assert result["balls"]["2"]["sigma"] == [0.125, 0.3]
    for p, ball in expected.balls.items():  # float32 rounds otherwise in every library
        smallest = [np.inf if radius is None else radius for radius in result["balls"][f"{p:g}"]["smallest"]]
        assert_allclose(smallest, ball.smallest, rtol=0.02)
    assert_array_equal(result["labels"], y[:20])
    assert (folder / "robustness/index.html").exists()
    assert evaluate.main(flags(f"of_{name}", *BALLS)) == 2
    assert "robustness: has an earlier result; give --force" in capsys.readouterr().err
    assert evaluate.main([*flags(f"of_{name}", *BALLS), "--force"]) == 0
    assert len(json.loads((folder / "robustness/robustness.json").read_text())["labels"]) == 30


@pytest.mark.parametrize(
    ("model", "part"),
    [
        ("nothing", "--model mine:nothing: must return a torch module, a JAX function of x, or a NumPy one"),
        ("breaks", "--model mine:breaks: breaks() raised RuntimeError in mine.py, line 30: no weights here"),
        ("one_logit", "must map examples to logits, (n, classes); for one it gives shape (1, 1)"),
        ("alone", "it returns a function from x to numpy.ndarray"),
        ("fails_inside", "calling it on one example raised ValueError in mine.py"),
        ("fails_on_several", "measuring it raised RuntimeError in mine.py, line 48: one at a time"),
        ("leaves", "leaves() raised SystemExit in mine.py, line 55: no weights"),
        ("missing", "--model mine:missing: mine has no function 'missing'"),
    ],
)
def test_a_model_that_cannot_be_measured_is_refused_in_one_line(model, part, folder, capsys):
    arrays(folder)
    assert evaluate.main(flags(model, *BALLS)) == 2
    assert_one_line(capsys, part)


def assert_one_line(capsys, part):
    printed = capsys.readouterr()
    assert (printed.out, len(printed.err.splitlines())) == ("", 1)
    assert part in printed.err


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"x": None}, "has no array 'x', only y"),
        ({"y": None}, "has no array 'y', only x"),
        ({"x": np.zeros((30, 12), np.uint8)}, "x must be floating; got uint8; divide by 255"),
        ({"x": np.zeros(30)}, "x must have an axis of examples and others; got shape (30,)"),
        ({"x": np.full((30, 12), np.nan)}, "x is not finite in 30 of 30 examples"),
        ({"y": np.array(["cat"] * 30)}, "y must be integers, one class per example, of shape (30,); got <U3"),
        ({"y": np.zeros(29, int)}, "y must be integers, one class per example, of shape (30,); got int64"),
        ({"y": np.array([object()] * 30)}, "cannot be read (not an .npz file of plain arrays, or damaged)"),
        ({"y": np.full(30, 4)}, "y has classes from 4 to 4, and mine:of_numpy returns 4 logits, for 0 to 3"),
        ({"y": np.full(30, -1)}, "y has classes from -1 to -1"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_data_that_cannot_be_used_are_refused_in_one_line(changes, part, folder, capsys):
    arrays(folder, **changes)
    assert evaluate.main(flags("of_numpy", *BALLS)) == 2
    assert_one_line(capsys, part)


def test_files_that_are_no_archive_of_arrays_are_refused_in_one_line(folder, capsys):
    arrays(folder)
    whole = (folder / "data.npz").read_bytes()
    (folder / "half.npz").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.npz").write_bytes(b"")
    np.save(folder / "one.npy", np.zeros(3))
    for name, part in (
        ("half.npz", "cannot be read (not an .npz file"),
        ("empty.npz", "cannot be read (not an .npz file"),
        ("one.npy", "is one array; save x and y with numpy.savez"),
        ("none.npz", "cannot be read (No such file or directory)"),
    ):
        assert evaluate.main(flags("of_numpy", *BALLS, data=name)) == 2
        assert_one_line(capsys, f"--data {name}: {part}")


@pytest.mark.parametrize(
    ("more", "part"),
    [
        ((), "--model needs --sigma"),
        (("--sigma", "0"), "--sigma 0.0: one must be above 0"),
        (("--sigma", "1", "--bounds", "1,0"), "--bounds: must be low,high with low below high; got 1.0,0.0"),
        (("--sigma", "1", "--bounds", "0.5,1"), "clip x"),
        (("--sigma", "1", "--steps", "3"), "--steps has an effect only for runs; leave it out"),
        (("--sigma", "1", "--examples", "31"), "--examples 31: data.npz has 30 test examples"),
        (("--sigma", "1", "--device", "cpu"), "--device cpu: is for torch modules"),
        (("--sigma", "1", "--out", "mine.py"), "--out mine.py: is a file; give a folder"),
    ],
)
def test_flags_that_do_not_fit_are_refused_in_one_line(more, part, folder, capsys):
    arrays(folder)
    assert evaluate.main(flags("of_numpy", *more)) == 2
    assert_one_line(capsys, part)


@pytest.mark.parametrize("bounds", ["-1,1", "-inf,inf", "-1/2,1"])
def test_bounds_may_be_negative(bounds, folder):
    arrays(folder)
    more = ("--sigma", ".1", "--bounds", bounds, "--effort", "quick")
    assert evaluate.main(flags("of_numpy", *more)) == 0


@pytest.mark.torch
@pytest.mark.skipif("torch" not in NAMES, reason="torch is not under test")
def test_a_device_that_torch_cannot_use_is_named(folder, capsys):
    arrays(folder)
    assert evaluate.main(flags("of_torch", *BALLS, "--device", "cuda:99")) == 2
    assert_one_line(capsys, "--device cuda:99: torch cannot use it (")


def test_a_module_that_cannot_be_imported_is_named(folder, capsys):
    arrays(folder)
    (folder / "broken.py").write_text("1 / 0")
    (folder / "unfinished.py").write_text("def load(:")
    for name, part in (
        ("broken:load", "importing broken raised ZeroDivisionError in broken.py, line 1: division by zero"),
        ("unfinished:load", "importing unfinished raised SyntaxError"),
        (".relative:load", "importing .relative raised TypeError"),
    ):
        assert evaluate.main(["--model", name, "--data", "data.npz", *BALLS]) == 2
        assert_one_line(capsys, f"--model {name}: {part}")
    for name, part in (
        ("nowhere:load", "there is no module 'nowhere' here"),
        ("mine", "must be package.module"),
    ):
        assert evaluate.main(["--model", name, "--data", "data.npz", *BALLS]) == 2
        assert_one_line(capsys, part)
