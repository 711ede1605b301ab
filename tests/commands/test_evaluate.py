"""The evaluate command: what it leaves and says, what it compares, and how it refuses bad input."""

import csv
import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest

from helpers.backends_under_test import NAMES
from helpers.commandline import begun_with
from lpfamily import evaluate, train
from lpfamily.report import plots
from lpfamily.training import robustness


def test_a_picture_that_cannot_be_drawn_gives_a_warning_and_keeps_the_result(
    run, tmp_path, capsys, monkeypatch
):
    def fail(figure, result):
        assert json.loads((tmp_path / "here.json").read_text())["examples"] == 40
        raise RuntimeError("latex could not be\nfound")

    monkeypatch.setattr(plots, "robustness_curves", fail)
    capsys.readouterr()
    assert evaluate.main([str(run), *FAST, "--quiet", "--out", str(tmp_path / "here.json")]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("robustness (digits, 40 test examples")
    assert err == (
        f"warning: {tmp_path / 'here.png'} could not be drawn (latex could not be found); "
        "nothing else depends on it\n"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["here.json"]


@pytest.mark.parametrize("name", ["here.json", "here.png"])
def test_a_link_is_replaced_and_its_target_unchanged(run, tmp_path, name):
    (tmp_path / "mine").write_text("mine")
    (tmp_path / name).symlink_to("mine")
    flags = [str(run), *FAST, "--quiet", "--force", "--out", str(tmp_path / "here.json")]
    assert evaluate.main(flags) == 0
    assert (tmp_path / "mine").read_text() == "mine"
    assert not (tmp_path / name).is_symlink()


@pytest.fixture(scope="module", params=NAMES)
def run(request, tmp_path_factory):
    """The folder of a run of each backend."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    flags = ("--backend", request.param, "--units", "20", "--epochs", "3", "--quiet", "--out", str(folder))
    assert train.main(list(flags)) == 0
    return folder


FAST = ("--steps", "3", "--examples", "40")


def no_constant(text):
    raise AssertionError(f"{text} is not JSON")


def test_the_command_leaves_a_table_a_json_and_curves(run, capsys):
    capsys.readouterr()
    argv = [str(run), "--multiples", "0.5,1", "--steps", "3", "--examples", "0"]
    assert evaluate.main(argv) == 0
    printed = capsys.readouterr()
    result = json.loads((run / "robustness.json").read_text(), parse_constant=no_constant)
    trained = json.loads((run / "result.json").read_text())["test_error"]
    assert result["command"] == f"python -m lpfamily.evaluate {' '.join(argv)}"
    assert result["versions"]["numpy"] == np.__version__
    assert (result["examples"], result["seed"], result["epoch"]) == (300, 0, 3)
    assert result["clean"] == trained["clean"]
    assert {p: ball["one_step"][2] for p, ball in result["balls"].items()} == trained["one_step"]
    assert (run / "robustness.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    first, *rows = printed.out.splitlines()
    assert first == "robustness (digits, 300 test examples, a standard error of 2.89% at most)"
    assert f"  clean {trained['clean']:.2%}" in rows
    steps = [row.split()[2:] for row in rows if row.startswith("  one step")]
    assert [row[2] for row in steps[::2]] == [f"{error:.2%}" for error in trained["one_step"].values()]
    assert re.fullmatch("robustness: begun\nrobustness: done in \\d+ s\n", printed.err)


def test_the_flags_set_what_is_measured(run, tmp_path, capsys):
    capsys.readouterr()
    out = tmp_path / "here.json"
    flags = (*FAST, "--p", "1.5,inf", "--sigmas", "3", "--seed", "7", "--quiet", "--out", str(out))
    assert evaluate.main([str(run), "--backend", "numpy", "--device", "cpu", *flags]) == 0
    assert capsys.readouterr().err == ""
    result = json.loads(out.read_text())
    assert (result["examples"], result["steps"], result["seed"]) == (40, 3, 7)
    assert {p: ball["sigma"] for p, ball in result["balls"].items()} == {
        p: [0, 3 * ball["matched"]] for p, ball in result["balls"].items()
    }
    assert list(result["balls"]) == ["1.5", "inf"]
    assert (result["backend"], result["device"], result["findings"]) == (
        "numpy",
        "cpu",
        robustness.findings(result),
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["here.json", "here.png"]


def test_only_force_replaces_an_earlier_result(run, tmp_path, capsys):
    out = tmp_path / "here.json"
    flags = [str(run), *FAST, "--p", "2", "--sigma", "1/8,0.5", "--quiet", "--out", str(out)]
    assert evaluate.main(flags) == 0
    kept = out.read_bytes()
    assert json.loads(kept)["balls"]["2"]["sigma"] == [0, 0.125, 0.5]
    capsys.readouterr()
    assert evaluate.main(flags) == 2
    assert "here.json: has an earlier result; give --force to replace it" in capsys.readouterr().err
    assert out.read_bytes() == kept
    picture = out.rename(tmp_path / "kept.json").with_name("here.png")
    assert evaluate.main(flags) == 2
    assert f"{picture}: has an earlier result" in capsys.readouterr().err
    assert evaluate.main([*flags, "--seed", "1", "--force"]) == 0
    assert out.read_bytes() != kept


def test_runs_are_compared_in_the_same_balls(run, tmp_path, capsys):
    other = tmp_path / "other"
    flags = ["--units", "10", "--epochs", "1", "--p", "inf", "--quiet", "--out", str(other)]
    assert train.main(flags) == 0
    folder = tmp_path / "page"
    flags = [*FAST, "--p", "2,inf", "--quiet", "--out", str(folder)]
    capsys.readouterr()
    assert evaluate.main([str(run), str(other), *flags]) == 0
    printed = capsys.readouterr().out
    results = json.loads((folder / "robustness.json").read_text(), parse_constant=no_constant)
    assert list(results) == [str(run), str(other)]
    with (folder / "errors.csv").open(newline="") as file:
        head, *rows = csv.reader(file)
    assert head[2::2] == list(results)
    lines = [line.split() for line in printed.partition("error in the ball")[2].splitlines()[1:]]
    assert len(lines) == len(rows) == 12
    for row, line in zip(rows, lines, strict=True):
        p, sigma, *numbers = row
        for k, result in enumerate(results.values()):
            ball = result["balls"][p]
            error = ball["multi_step"][ball["sigma"].index(float(sigma))]
            assert float(numbers[2 * k]) == error
            assert f"{error:.2%}" == line[6 + 3 * k]
    assert (folder / "index.html").exists()
    assert not (other / "robustness.json").exists()
    assert evaluate.main([str(run), str(other), *flags]) == 2
    assert "has an earlier result" in capsys.readouterr().err


def test_runs_of_other_data_are_not_compared(run, tmp_path, capsys, monkeypatch):
    other = shutil.copytree(run, tmp_path / "other")
    opened = evaluate._Opened.of

    def of(folder, given):
        found = opened(folder, given)
        return replace(found, recipe=replace(found.recipe, data="mnist")) if folder == other else found

    monkeypatch.setattr(evaluate._Opened, "of", of)
    capsys.readouterr()
    assert evaluate.main([str(run), str(other), "--out", str(tmp_path / "page")]) == 2
    assert "only runs on the same data can be compared" in capsys.readouterr().err


def test_a_run_without_a_radius_is_tested_at_the_published_one(tmp_path, capsys):
    folder = tmp_path / "run"
    assert (
        train.main(["--model", "softmax", "--epochs", "1", "--sigma", "0", "--quiet", "--out", str(folder)])
        == 0
    )
    assert evaluate.main([str(folder), "--quiet", "--p", "2", *FAST]) == 0
    result = json.loads((folder / "robustness.json").read_text())
    assert result["balls"]["2"]["matched"] == pytest.approx(8 / 28)  # sqrt(64) / 28


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        (("RUN", "--step", "3"), ("unknown option --step; did you mean --steps?",)),
        (("RUN", "--p", "0.5"), ("--p: must be a number of at least 1, or inf", "got 0.5")),
        (("RUN", "--p", "none"), ("--p none: give an exponent",)),
        (("RUN", "--p", "2,2.0000001,3"), ("--p: 2 is given twice", "leave one out")),
        (("RUN", "--examples", "301"), ("--examples 301: the run has 300 test examples", "0 for all")),
        (("RUN", "--sigmas", "0"), ("--multiples 0", "one must be above 0")),
        (("RUN", "--sigmas", "1,-1"), ("--multiples/--sigmas: must be a finite number, 0 or more; got -1",)),
        (("RUN", "--sigmas", "5e-324"), ("--multiples 4.94066e-324: too small for float32",)),
        (("RUN", "--sigmas", "1e-38"), ("--multiples 1e-38: too small for float32",)),
        (("RUN", "--sigmas", "1e30"), ("--multiples 1e+30: too large for float32",)),
        (("RUN", "--steps", "0"), ("--steps: must be a whole number from 1 to 10^9; got 0",)),
        (("RUN", "--force", "--backend", "fortran"), ("unknown backend 'fortran'; installed: ",)),
        (("RUN", "--force", "--device", "abacus"), ("abacus",)),
        (("RUN", "--out", "here"), ("--out here: must end in .json",)),
        (("RUN", "--out", f"{'x' * 300}.json"), ("--out xxx", "cannot be written (File name too long)")),
        (("RUN", "--out", f"{'x' * 250}.json"), ("--out xxx", "cannot be written (File name too long)")),
        (("RUN", "--out", f"{'d/' * 3000}x.json"), ("--out d/d/", "cannot be written (File name too long)")),
        (("RUN", "--out", "nowhere/here.json"), ("--out nowhere/here.json: cannot be written",)),
        (("nothing",), ("nothing: holds no config.json, so it is not a run",)),
        (("RUN", "--sigma", "1/0"), ("--sigma: must be a finite number or fraction, 0 or more; got 1/0",)),
        (("RUN", "--sigma", "0"), ("--sigma 0", "one must be above 0")),
        (("RUN", "--sigma", "1", "--multiples", "1"), ("--sigma and --multiples: give only one of them",)),
        (("RUN", "--effort", "quick"), ("--effort has an effect only with --model; leave it out",)),
        (("RUN", "RUN"), ("is given twice; leave one out",)),
        (("RUN", "RUN/."), ("is given twice; leave one out",)),
        (("RUN", "--model", "mine:load"), ("give runs or --model, not both",)),
        ((), ("give a run folder, or --model with --data",)),
    ],
    ids=lambda value: str(value)[:80],
)
def test_bad_input_is_refused_in_one_line(run, capsys, flags, parts):
    capsys.readouterr()
    before = sorted(run.iterdir())
    assert evaluate.main([flag.replace("RUN", str(run)) for flag in flags]) == 2
    printed = capsys.readouterr()
    assert (printed.out, len(printed.err.splitlines())) == ("", 1)
    assert printed.err.startswith("python -m lpfamily.evaluate: ")
    for part in parts:
        assert part in printed.err
    assert sorted(run.iterdir()) == before


@pytest.mark.parametrize("name", ["config.json", "result.json", "curves.json"])
def test_a_file_of_a_run_is_not_replaced(run, tmp_path, capsys, name):
    other = shutil.copytree(run, tmp_path / "other")
    before = {path.name: path.read_bytes() for path in other.iterdir()}
    assert evaluate.main([str(run), "--out", str(other / name)]) == 2
    assert "would replace a file of the run" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in other.iterdir()} == before


@pytest.mark.parametrize("name", ["data_dir", "data_sha256", "backend", "device"])
def test_a_config_that_lacks_something_is_named(run, tmp_path, capsys, name):
    folder = shutil.copytree(run, tmp_path / "run")
    begun_with(folder, lambda config: config.pop(name))
    capsys.readouterr()
    assert evaluate.main([str(folder)]) == 2
    line = f"python -m lpfamily.evaluate: {folder / 'config.json'}: not the config of a run"
    assert capsys.readouterr().err.startswith(line)


def test_other_data_than_the_runs_is_refused(run, tmp_path, capsys):
    for name in "config.json", "checkpoint.safetensors":
        (tmp_path / name).write_bytes((run / name).read_bytes())
    begun_with(tmp_path, lambda config: config.update(data_sha256="0" * 64))
    capsys.readouterr()
    assert evaluate.main([str(tmp_path)]) == 2
    assert "the run used other digits data; give its --data-dir" in capsys.readouterr().err
