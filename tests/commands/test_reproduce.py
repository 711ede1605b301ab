"""The reproduce command: it keeps what is measured, and says in one line what goes wrong."""

import io
import json
import math
import os
import re
from contextlib import redirect_stdout
from dataclasses import replace

import pytest

from helpers.commandline import unchanged
from helpers.measurements import result
from lpfamily import reproduce
from lpfamily.experiments import catalogue
from lpfamily.experiments.definitions import Chapter, Experiment, Measurement, Setting
from lpfamily.experiments.errors import measure
from lpfamily.experiments.exponents import measure as exponents
from lpfamily.experiments.records import Record, depends, write
from lpfamily.report.contents import Column, Plot, Table

QUIET = ("--quiet", "--backend", "numpy")


@pytest.fixture
def counted(monkeypatch):
    """An experiment whose measurement counts its calls."""
    calls = []

    def measure(setting, tick):
        tick(1, 2, "half")
        calls.append(setting)
        return {"count": len(calls)}

    def report(setting, found):
        return [Table("count", "Count", (Column("what"), Column("count")), (("calls", found["count"]),))]

    def seeds(setting):
        return setting.seeds or 3

    experiment = Experiment("count", (Measurement("counted", measure, seeds=seeds, data=()),), report)
    chapter = Chapter("Counting", "So often.", (experiment,))
    monkeypatch.setattr(catalogue, "CHAPTERS", (chapter,))
    monkeypatch.setattr(catalogue, "EXPERIMENTS", {"count": experiment})
    return calls


def test_measurements_are_kept(counted, tmp_path, capsys):
    out = tmp_path / "out"
    assert reproduce.main(["all", "--out", str(out), *QUIET]) == 0
    assert capsys.readouterr() == (f"{out / 'index.html'}\n", "")
    assert (out / "count.csv").read_text().split() == ["what,count", "calls,1"]
    assert reproduce.main(["count", "--out", str(out), *QUIET]) == 0
    assert reproduce.main(["count", "--out", str(out), "--seeds", "3", *QUIET]) == 0
    assert len(counted) == 1
    assert reproduce.main(["count", "--out", str(out), "--seeds", "2", *QUIET]) == 0
    assert len(counted) == 2
    assert counted[1].seeds == 2
    page = (out / "index.html").read_text()
    assert "python -m lpfamily.reproduce count" in page
    assert "So often." in page


def test_the_page_begins_with_the_three_findings_that_matter_most(counted, monkeypatch, tmp_path):
    experiments = {
        name: replace(
            catalogue.EXPERIMENTS["count"],
            name=name,
            report=lambda setting, found, name=name: [
                Table(name, f"{name}. Title", (Column("n"),), ((found["count"],),))
            ],
            finding=lambda setting, found, name=name: f"{name} is {found['count']}.",
        )
        for name in "abcd"
    }
    monkeypatch.setattr(catalogue, "EXPERIMENTS", experiments)
    monkeypatch.setattr(catalogue, "CHAPTERS", (Chapter("Counting", "", tuple(experiments.values())),))
    monkeypatch.setattr(catalogue, "FINDINGS", ("d", "none", "b", "a", "c"))
    assert reproduce.main(["all", "--out", str(tmp_path), *QUIET]) == 0
    page = (tmp_path / "index.html").read_text()
    said = re.findall(r'<li>(\w) is 1\. <a href="#(\w)">', page)
    assert said == [("d", "d"), ("b", "b"), ("a", "a")]
    assert re.search(r"<dt>date</dt><dd>\d{4}-\d\d-\d\d</dd>", page)
    assert "<dt>budget</dt><dd>quick: " in page
    assert reproduce.main(["all", "--out", str(tmp_path), "--budget", "paper", *QUIET]) == 0
    assert "<dt>budget</dt><dd>paper: " in (tmp_path / "index.html").read_text()


def test_another_number_of_seeds_repeats_no_measurement_without_seeds(tmp_path):
    setting = Setting(tmp_path, None)
    for measurement in {
        m.name: m for experiment in catalogue.EXPERIMENTS.values() for m in experiment.measurements
    }.values():
        one, two = (depends(replace(setting, seeds=n), replace(measurement, data=())) for n in (1, 2))
        of_seeds = measure.DENSE, measure.CONV, measure.CIFAR, exponents.MNIST, exponents.CIFAR
        assert (one != two) == (measurement in of_seeds)


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ({"sigmoid-p2": [result(0.02, 0), result(0.03, 1), result(0.03, 2)]}, ", and seeds 1, 2"),
        ({"sigmoid-p2": [result(0.02, 0)]}, ""),
        ({"sigmoid-p2": {"seed": 0}}, ""),
        ({"runs": {"sigmoid-p2": result(0.02)}, "digits": {"maxout-p2": {}}}, ""),
        ({"sigmoid-p2": [result(0.02) | {"backend": "numpy"}]}, ""),
        (
            {"sigmoid-p2": [result(0.02, 0) | {"backend": "numpy"}, result(0.02, 1) | {"backend": "jax"}]},
            ", and seeds 1; seed 1 was trained by jax",
        ),
    ],
    ids=["seeds", "one", "robustness", "runs", "this backend", "another"],
)
def test_the_page_says_how_its_networks_were_trained(monkeypatch, tmp_path, found, said):
    monkeypatch.setattr(catalogue, "CHAPTERS", ())
    monkeypatch.setattr(catalogue, "EXPERIMENTS", {})
    results = {"some": Record({}, 1.0, found), "none": Record({}, 1.0, {"models": []})}
    page = reproduce._write(Setting(tmp_path, None, budget="paper"), results, [], pytest.fail).read_text()
    rows = dict(re.findall(r'<tr><th scope="row">(.*?)</th><td>(.*?)</td></tr>', page))
    told = "--data mnist --model sigmoid-mlp --p 2 --sigma 1 --seed 0"
    assert (
        rows.pop("Sigmoid MLP + gradient p = 2 (sigmoid-p2)")
        == f"<code>python -m lpfamily.train {told}</code>{said}"
    )
    assert rows.keys() == {"command", "budget", "backend", "seconds", "versions"}


@pytest.mark.parametrize(
    "name", ["table1", "table3", "table6", "figure1", "figure-robustness", "figure-theory"]
)
def test_missing_data_are_bad_input(tmp_path, capsys, name):
    flags = ["--data-dir", str(tmp_path / "nowhere"), "--out", str(tmp_path / "out"), "--backend", "numpy"]
    assert reproduce.main([name, *flags]) == 2
    out, err = capsys.readouterr()
    assert (out, len(err.splitlines())) == ("", 1)
    assert "nowhere" in err
    assert "--data-dir" in err
    assert not (tmp_path / "out").exists()


def test_measurements_of_missing_data_are_left_out(counted, monkeypatch, tmp_path, capsys):
    other = Experiment("other", (Measurement("others", None),), lambda setting, found: [])
    monkeypatch.setitem(catalogue.EXPERIMENTS, "other", other)
    write(kept(tmp_path, "others"), Record({}, 1.0, {}))
    flags = ["--data-dir", str(tmp_path / "nowhere"), "--out", str(tmp_path), *QUIET]
    assert reproduce.main(["count", *flags]) == 0
    assert "others" not in (tmp_path / "index.html").read_text()
    capsys.readouterr()
    assert reproduce.main(["other", *flags]) == 2
    assert "no train-images-idx3-ubyte" in capsys.readouterr().err


def test_progress_is_lines_where_there_is_no_terminal(counted, tmp_path, capsys):
    assert reproduce.main(["count", "--out", str(tmp_path), "--backend", "numpy"]) == 0
    assert capsys.readouterr().err == "counted: begun\ncounted: done in 0 s\n"


def kept(tmp_path, name="counted"):
    return tmp_path / "measured" / f"{name}.json"


def changed(**values):
    """Return an edit that changes values of a saved measurement (None removes one), but not its checksum."""

    def edit(path):
        found = json.loads(path.read_text()) | values
        path.write_text(json.dumps({name: value for name, value in found.items() if value is not None}))

    return edit


UNSEALED = {"format": None, "sha256": None}
MEASURED = {
    "another result": changed(result={"count": 7}),
    "another setting": changed(setting={}),
    "other seconds": changed(seconds=7),
    "no result": changed(result=None),
    "no checksum": changed(sha256=None),
    "no format": changed(format=None),
    "format as text": changed(format="1"),
    "a checksum that is a list": changed(sha256=[]),
    "of old, no setting": changed(**UNSEALED, setting=None),
    "of old, no seconds": changed(**UNSEALED, seconds=None),
    "of old, seconds as text": changed(**UNSEALED, seconds="few"),
    "of old, seconds not a number": changed(**UNSEALED, seconds=math.nan),
    "of old, no result": changed(**UNSEALED, result=None),
    "of old, a result that is a list": changed(**UNSEALED, result=[]),
    "of old, a result not a number": changed(**UNSEALED, result={"count": math.nan}),
    "of old, another measurement": changed(**UNSEALED, result={"models": 1}),
    "not JSON": lambda path: path.write_text("{"),
    "brackets": lambda path: path.write_text(100_000 * "["),
    "nested": lambda path: path.write_text('{"a":' * 100_000 + "1" + "}" * 100_000),
    "half": lambda path: path.write_bytes(path.read_bytes()[:50]),
    "zeros": lambda path: path.write_bytes(bytes(200)),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
}


@pytest.mark.parametrize("damage", MEASURED.values(), ids=MEASURED)
def test_a_damaged_measurement_is_named_in_one_line(counted, tmp_path, capsys, damage):
    flags = ["count", "--out", str(tmp_path), *QUIET]
    assert reproduce.main(flags) == 0
    damage(kept(tmp_path))
    (tmp_path / "index.html").unlink()
    capsys.readouterr()
    assert reproduce.main(flags) == 2
    out, err = capsys.readouterr()
    assert (out, len(err.splitlines()), len(counted)) == ("", 1, 1)
    assert f"{kept(tmp_path)}: " in err
    assert "remove it, to measure anew" in err
    assert not (tmp_path / "index.html").exists()


def test_a_measurement_of_an_earlier_version_is_used_with_a_notice(counted, tmp_path, capsys):
    flags = ["count", "--out", str(tmp_path), "--backend", "numpy"]
    assert reproduce.main(flags) == 0
    changed(**UNSEALED)(kept(tmp_path))
    capsys.readouterr()
    assert reproduce.main(flags) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{kept(tmp_path)}: has no checksum")
    assert len(counted) == 1
    assert (tmp_path / "count.csv").read_text().split() == ["what,count", "calls,1"]


def test_a_measurement_of_a_later_format_is_left_alone(counted, tmp_path, capsys):
    assert reproduce.main(["count", "--out", str(tmp_path), *QUIET]) == 0
    changed(format=2)(kept(tmp_path))
    assert unchanged(tmp_path, lambda: reproduce.main(["count", "--out", str(tmp_path), *QUIET])) == 2
    assert "counted.json: has format 2; this version reads formats up to 1" in capsys.readouterr().err


def test_a_figure_that_cannot_be_drawn_is_replaced_by_its_description(counted, tmp_path, monkeypatch, capsys):
    def fail(figure):
        assert kept(tmp_path).exists()
        raise RuntimeError("latex could not be\nfound")

    experiment = catalogue.EXPERIMENTS["count"]
    experiment = replace(
        experiment, report=lambda setting, found: [Plot("drawn", "Drawn", "Nothing, in words.", fail)]
    )
    monkeypatch.setattr(catalogue, "CHAPTERS", (Chapter("", "", (experiment,)),))
    monkeypatch.setattr(catalogue, "EXPERIMENTS", {"count": experiment})
    assert reproduce.main(["count", "--out", str(tmp_path), *QUIET]) == 0
    out, err = capsys.readouterr()
    assert out == f"{tmp_path / 'index.html'}\n"
    assert err == (
        "warning: drawn could not be drawn (latex could not be found); nothing else depends on it\n"
    )
    page = (tmp_path / "index.html").read_text()
    assert "Nothing, in words." in page
    assert "drawn.png" not in page
    assert sorted(path.name for path in tmp_path.iterdir()) == ["index.html", "measured"]


def test_the_command_may_have_invalid_unicode(counted, tmp_path):
    out = tmp_path / os.fsdecode(b"o\xfft")
    with redirect_stdout(io.StringIO()):
        assert reproduce.main(["count", "--out", str(out), *QUIET]) == 0
    assert "o\\udcfft" in (out / "index.html").read_text()


@pytest.mark.parametrize("name", ["index.html", "count.csv"])
def test_links_are_replaced_and_not_followed(counted, tmp_path, name):
    (tmp_path / "out").mkdir()
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "out" / name).symlink_to(tmp_path / "mine")
    assert reproduce.main(["count", "--out", str(tmp_path / "out"), *QUIET]) == 0
    assert (tmp_path / "mine").read_text() == "mine"


def test_ctrl_c_says_how_to_go_on(counted, tmp_path, capsys, monkeypatch):
    def interrupted(setting, tick):
        raise KeyboardInterrupt

    experiment = Experiment(
        "count", (Measurement("counted", interrupted, data=()),), lambda setting, found: []
    )
    monkeypatch.setattr(catalogue, "EXPERIMENTS", {"count": experiment})
    assert reproduce.main(["count", "--out", str(tmp_path), *QUIET]) == 130
    assert f"lpfamily.reproduce count --out {tmp_path}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "part"),
    [
        (["tabel1"], "tabel1"),
        (["count", "--budgte", "quick"], "did you mean --budget?"),
        (["count", "--budget", "huge"], "huge"),
        (["count", "--seeds", "0"], "whole number"),
        (["count", "--backend", "tensorflow"], "tensorflow"),
        (["count", "--runs", "nowhere"], "nowhere"),
    ],
)
def test_bad_input_is_one_line(counted, tmp_path, monkeypatch, capsys, flags, part):
    monkeypatch.chdir(tmp_path)
    assert reproduce.main(flags) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1
    assert part in err
    assert not list(tmp_path.iterdir())


def test_measurements_are_json(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        write(tmp_path / "x.json", Record({}, 1.0, {"error": math.nan}))
    assert not (tmp_path / "x.json").exists()
    write(tmp_path / "x.json", Record({}, 1.0, {"error": 1}))
    assert json.loads((tmp_path / "x.json").read_text())["result"] == {"error": 1}
