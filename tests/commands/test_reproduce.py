"""The runs behind Tables I to V, their numbers, and the command that keeps what is measured."""

import io
import json
import math
import os
import re
import shutil
import sys
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from helpers import findings
from helpers.backends_under_test import NAMES
from helpers.commandline import of_an_earlier_version, python, small_mnist, trained, unchanged
from lpfamily import reproduce
from lpfamily.experiments import catalogue, networks
from lpfamily.experiments.definitions import Chapter, Experiment, Measurement, Setting
from lpfamily.experiments.errors import measure, report
from lpfamily.experiments.exponents import measure as exponents
from lpfamily.experiments.networks import NETWORKS, QUICK, all_finished, flags, runs_in
from lpfamily.experiments.records import Record, depends, write
from lpfamily.report.contents import Column, Plot, Table
from lpfamily.training import choices, load, recipes, runs
from lpfamily.training.commands import options
from lpfamily.training.data import SOURCES, Split
from lpfamily.training.errors import BadInput

QUIET = ("--quiet", "--backend", "numpy")


def silent(done, of, what=""):
    assert 0 <= done <= of


# What is trained


def recipe(name, budget):
    given = options.parser().parse(list(flags(name, budget, seed=7)))
    source = SOURCES[given["data"]]
    x = np.broadcast_to(np.float32(0), (60_000, source.inputs))
    return options.recipe_of(given, source.dataset(Split(x, None), None))


@pytest.mark.parametrize("name", [n for n, each in NETWORKS.items() if "exponents" not in each.kind])
def test_the_paper_budget_is_the_published_recipe(name):
    found = choices.to_json(recipe(name, "paper"))
    model, data, objective, p = (found[key] for key in ("model", "data", "objective", "p"))
    published = recipes.default(model, data, objective, float(p), SOURCES[data].inputs)
    chosen = {key: found[key] for key in ("sigma", "clean_weight", "second_stage")} | {"seed": 7}
    assert found == choices.to_json(published) | chosen


@pytest.mark.parametrize("name", NETWORKS)
def test_the_quick_budget_has_the_images_and_epochs_that_it_promises(name):
    found = recipe(name, "quick")
    small = {"conv": (2_000, 3), "cifar": (2_000, 3), "exponents-mnist": (5_000, 15)}
    small["exponents-cifar10"] = small["exponents-mnist"]
    images, epochs = small.get(NETWORKS[name].kind, (10_000, 10))
    assert found.examples - found.validation >= images
    assert found.epochs >= epochs
    assert found.second_stage == "none" or found.second_epochs >= epochs
    assert recipe(name, "paper").objective == found.objective


@pytest.mark.parametrize(
    ("name", "p", "sigma", "clean_weight"),
    [
        ("sigmoid-p2", 2, 1, 0),
        ("maxout-p2", 2, 1, 0),
        ("maxout-pinf", math.inf, 0.25, 0.5),  # of another paper, which mixes
        ("conv-pinf-0.1", math.inf, 0.1, 0),
        ("conv-p2", 2, 1, 0),
        ("cifar-p2-50k", 2, 2, 0),
    ],
)
def test_the_perturbations_are_the_papers(name, p, sigma, clean_weight):
    found = recipe(name, "paper")
    told = found.objective, found.p, found.sigma, found.clean_weight
    assert told == ("perturb", p, sigma, clean_weight)


def test_what_measures_loads_nothing_that_reports(tmp_path):
    folder = Path(catalogue.__file__).parent
    chapters = sorted(path.parent.name for path in folder.glob("*/measure.py"))
    assert len(chapters) == len(catalogue.CHAPTERS)
    assert chapters == sorted(path.parent.name for path in folder.glob("*/report.py"))
    imports = "".join(f"import lpfamily.experiments.{chapter}.measure\n" for chapter in chapters)
    loaded = python(f"{imports}import sys\nprint(*sys.modules)", cwd=tmp_path).stdout.split()
    assert f"lpfamily.experiments.{chapters[-1]}.measure" in loaded
    ours = [name for name in loaded if name.startswith("lpfamily.")]
    assert not [name for name in ours if "report" in name or "catalogue" in name]
    assert "matplotlib" not in loaded


# Runs


def finished(setting, name, seed, tick):
    return all_finished(setting, [(name, seed)], tick)[0]


@pytest.fixture
def setting(tmp_path, monkeypatch):
    monkeypatch.setitem(QUICK, "softmax", ("--validation", "5", "--epochs", "2", "--batch-size", "10"))
    small_mnist(tmp_path / "data" / "mnist")
    return Setting(tmp_path / "out", tmp_path / "data")


def test_a_run_of_another_recipe_is_not_taken_for_this_one(setting, monkeypatch):
    all_finished(setting, [("softmax", 0)], silent)
    monkeypatch.setitem(QUICK, "softmax", ("--validation", "5", "--epochs", "3", "--batch-size", "10"))
    networks.recipe_of.cache_clear()
    with pytest.raises(
        BadInput, match="softmax-0 was trained by another recipe or budget; give another --out"
    ):
        all_finished(setting, [("softmax", 0)], silent)


def test_what_is_kept_is_of_these_recipes(tmp_path):
    dense = catalogue.EXPERIMENTS["table1"].measurements[0]
    quick, paper = (
        depends(Setting(tmp_path, None, budget=budget), replace(dense, data=()))
        for budget in ("quick", "paper")
    )
    assert paper["maxout-pinf"].startswith(
        "--data mnist --model maxout --p inf --sigma 0.25 --clean-weight 0.5"
    )
    assert quick["maxout-pinf"] != paper["maxout-pinf"]


def test_runs_are_made_once_resumed_and_taken_from_elsewhere(setting, tmp_path):
    wanted = [("softmax", 0), ("softmax", 1)]
    folders = all_finished(setting, wanted, silent)
    assert [folder.name for folder in folders] == ["softmax-0", "softmax-1"]
    assert [load(folder).recipe.seed for folder in folders] == [0, 1]
    found = networks.result(setting, "softmax", folders[1])
    assert found["clean"] == load(folders[1]).result["test_error"]["clean"]
    assert (found["seed"], found["epochs"], found["test_examples"]) == (1, 2, 20)

    marks = [(folder / "result.json").stat().st_mtime_ns for folder in folders]
    assert all_finished(setting, wanted, silent) == folders
    assert [(folder / "result.json").stat().st_mtime_ns for folder in folders] == marks

    content = (folders[0] / "checkpoint.safetensors").read_bytes()
    (folders[0] / "result.json").unlink()
    assert finished(setting, "softmax", 0, silent) == folders[0]
    assert (folders[0] / "checkpoint.safetensors").read_bytes() == content

    other = Setting(tmp_path / "other", setting.data_dir, runs=runs_in([setting.out / "runs"]))
    assert finished(other, "softmax", 1, silent) == folders[1]
    assert not (tmp_path / "other").exists()


def test_what_a_backend_cannot_train_is_named_before_anything_is_trained(setting, monkeypatch, capsys):
    monkeypatch.setitem(QUICK, "conv", ("--validation", "5", "--epochs", "1", "--batch-size", "10"))
    where = ["--data-dir", str(setting.data_dir), "--out", str(setting.out), "--quiet"]
    assert reproduce.main(["table6", "table2", "--backend", "numpy", *where]) == 2
    assert "'numpy' does not train ConvMaxout layers" in capsys.readouterr().err
    assert not setting.out.exists()


def test_what_is_begun_needs_no_layers_of_the_backend(setting, monkeypatch):
    finished(setting, "softmax", 0, silent)
    other = replace(setting, out=setting.out / "other", runs=runs_in([setting.out / "runs"]))
    monkeypatch.setattr(networks.backends, "find", lambda name: SimpleNamespace(layers=frozenset()))
    for each in setting, other:
        networks.check_trainable(each, "softmax", 0)
        with pytest.raises(BadInput, match="does not train Dense layers"):
            networks.check_trainable(each, "softmax", 1)


def test_runs_on_other_data_are_not_taken(setting, tmp_path):
    folder = finished(setting, "softmax", 0, silent)
    small_mnist(tmp_path / "other" / "mnist")
    path = tmp_path / "other" / "mnist" / "train-images-idx3-ubyte"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    other = replace(setting, data_dir=tmp_path / "other")
    with pytest.raises(BadInput, match=r"softmax-0 was trained on other data"):
        finished(other, "softmax", 0, silent)
    elsewhere = replace(other, out=tmp_path / "anew", runs=runs_in([setting.out / "runs"]))
    assert finished(elsewhere, "softmax", 0, silent) != folder


def test_a_run_that_began_with_the_weights_of_another_is_not_taken(setting, tmp_path):
    told = (*flags("softmax", "quick", 0), "--data-dir", setting.data_dir)
    drawn, given = tmp_path / "drawn", setting.out / "runs/softmax-0"
    trained(drawn, *told)
    trained(given, *told, "--init-from", drawn)
    with pytest.raises(BadInput, match=r"softmax-0 began with the weights of another run"):
        finished(setting, "softmax", 0, silent)
    for folder, taken in (drawn, drawn), (given, None):
        other = Setting(tmp_path / "other", setting.data_dir, runs=runs_in([folder]))
        assert networks._Job(other, "softmax", 0).existing_folder() == taken


def test_a_run_that_fails_says_why(setting):
    (setting.data_dir / "mnist" / "train-images-idx3-ubyte").write_bytes(b"")
    with pytest.raises(OSError, match=r"softmax-0 was not trained: .*train-images-idx3-ubyte"):
        finished(setting, "softmax", 0, silent)


PRODUCTS = {
    "numpy": "x, product = numpy.ones((1500, 1500), 'f'), numpy.matmul",
    "torch": "import torch; x, product = torch.ones(1500, 1500), torch.matmul",
    "jax": "import jax; x, product = jax.numpy.ones((1500, 1500)), jax.jit(jax.numpy.matmul)",
}
SPENT = """
import json
from pathlib import Path

def spent():
    found = {}
    for thread in Path("/proc/self/task").iterdir():
        fields = (thread / "stat").read_text().rpartition(")")[2].split()
        found[thread.name] = int(fields[11]) + int(fields[12])
    return found

numpy.asarray(product(x, x))
before = spent()
for _ in range(20):
    numpy.asarray(product(x, x))
print(json.dumps([ticks - before.get(thread, 0) for thread, ticks in spent().items()]))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the times of threads in /proc")
@pytest.mark.parametrize("name", NAMES)
def test_a_process_of_training_computes_in_one_thread(name, tmp_path):
    code = f"import numpy; {PRODUCTS[name]}\n{SPENT}"
    users = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NPROC"), "2")
    result = python(code, cwd=tmp_path, **(users | dict.fromkeys(networks.THREADS, "1")))
    assert result.stderr == ""
    *others, busiest = sorted(json.loads(result.stdout))
    assert busiest > 20 * sum(others)


def test_a_folder_of_runs_must_be_there(tmp_path):
    with pytest.raises(BadInput, match=r"--runs .*nowhere"):
        runs_in([tmp_path / "nowhere"])


# Results that are damaged


def edited(**values):
    """Return what changes values of a result, None to leave one out; test_error__x is that of test_error."""

    def edit(path):
        found = json.loads(path.read_text())
        for name, value in values.items():
            *within, key = name.split("__")
            owner = found[within[0]] if within else found
            owner[key] = value
            if value is None:
                del owner[key]
        path.write_text(json.dumps(found))

    return edit


NOISE = {"mean": 0.5, "standard_error": 0.1}
RESULTS = {
    "no test error": edited(test_error=None),
    "a test error that is a list": edited(test_error=[]),
    "no clean error": edited(test_error__clean=None),
    "a clean error that is not a number": edited(test_error__clean=math.nan),
    "an infinite one": edited(test_error__clean=math.inf),
    "one above 1": edited(test_error__clean=1.5),
    "one below 0": edited(test_error__clean=-0.5),
    "one as text": edited(test_error__clean="0.5"),
    "one that is true": edited(test_error__clean=True),
    "a number beyond float": edited(test_error__clean=10**400),
    "no noise": edited(test_error__noise=None),
    "noise of one strength": edited(test_error__noise={"0.1": NOISE}),
    "noise without a mean": edited(test_error__noise={"0.1": NOISE, "0.3": {}}),
    "noise as text": edited(test_error__noise={"0.1": NOISE, "0.3": NOISE | {"mean": "much"}}),
    "one step of one p": edited(test_error__one_step={"1": 0.5}),
    "no epochs": edited(epochs=None),
    "half an epoch": edited(epochs=1.5),
    "no seconds": edited(seconds_per_epoch=None),
    "seconds as text": edited(seconds_per_epoch="few"),
    "no parameters": edited(parameters=None),
    "tested on nothing": edited(tested_on="mnist, 0 test examples", test_examples=0),
    "tested on a part of an example": edited(test_examples=0.5),
    "tested on a number": edited(tested_on=20),
    "a list": lambda path: path.write_text("[]"),
    "nothing": lambda path: path.write_text("null"),
    "empty": lambda path: path.write_bytes(b""),
    "brackets": lambda path: path.write_text(100_000 * "["),
    "nested": lambda path: path.write_text('{"a":' * 100_000 + "1" + "}" * 100_000),
    "no text": lambda path: path.write_bytes(b"\xff\xfe"),
}


@pytest.fixture(scope="module")
def once(tmp_path_factory):
    """The folder of a reproduction with a finished run, softmax-0, and its data beside it."""
    root = tmp_path_factory.mktemp("once")
    small_mnist(root / "data" / "mnist")
    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(QUICK, "softmax", ("--validation", "5", "--epochs", "2", "--batch-size", "10"))
        networks.recipe_of.cache_clear()
        finished(Setting(root / "out", root / "data"), "softmax", 0, silent)
    networks.recipe_of.cache_clear()
    return root


@pytest.mark.parametrize("where", ["--runs", "--out"])
@pytest.mark.parametrize("damage", RESULTS.values(), ids=RESULTS)
def test_a_damaged_result_is_named_in_one_line(setting, once, tmp_path, monkeypatch, capsys, damage, where):
    networks.recipe_of.cache_clear()
    run = shutil.copytree(once / "out/runs/softmax-0", tmp_path / "there/runs/softmax-0")
    measurement = replace(measure.measurement("some", ("softmax",), 0.1), seeds=lambda setting: 1)
    experiment = Experiment("some", (measurement,), lambda setting, found: [])
    monkeypatch.setattr(catalogue, "CHAPTERS", (Chapter("", "", (experiment,)),))
    monkeypatch.setattr(catalogue, "EXPERIMENTS", {"some": experiment})
    there = tmp_path / "there"
    places = ["--out", there] if where == "--out" else ["--runs", there / "runs", "--out", tmp_path / "out"]
    flags = ["some", *map(str, places), "--data-dir", str(once / "data"), *QUIET]
    damage(run / "result.json")
    assert unchanged(tmp_path, lambda: reproduce.main(flags)) == 2
    out, err = capsys.readouterr()
    assert (out, len(err.splitlines())) == ("", 1)
    assert f"{run / 'result.json'}: " in err
    assert "restore it from a copy" in err


@pytest.mark.parametrize("count", [0, -1, 0.5, True, "20", None])
def test_a_number_that_counts_no_examples_is_refused_whatever_the_sentence_says(once, tmp_path, count):
    run = shutil.copytree(once / "out/runs/softmax-0", tmp_path / "run")
    values = json.loads((run / "result.json").read_text()) | {"test_examples": count}
    seal = ("format", "sha256")
    ended = {name: value for name, value in values.items() if name not in seal}
    runs.Run(run).finish(ended | {"tested_on": "mnist, 20 test examples"})
    with pytest.raises(BadInput, match=f"tested on {count!r} examples"):
        networks.result(Setting(tmp_path, once / "data"), "softmax", run)


@pytest.mark.parametrize(
    "said", ["mnist, 20 test examples", "mnist, 5 test examples", "as many as there are"]
)
def test_what_earlier_versions_said_in_a_sentence_is_counted_on_the_data(once, tmp_path, said):
    run = shutil.copytree(once / "out/runs/softmax-0", tmp_path / "run")
    setting = Setting(tmp_path, once / "data")
    expected = networks.result(setting, "softmax", run)
    of_an_earlier_version(run)
    edited(test_examples=None, tested_on=said)(run / "result.json")
    found = networks.result(setting, "softmax", run)
    assert found == expected | {"tested_on": said}
    assert found["test_examples"] == 20  # of `small_mnist`


@pytest.mark.parametrize("budget", ["quick", "paper"])
def test_a_kept_measurement_without_a_count_is_of_the_recipe_s_test_examples(monkeypatch, tmp_path, budget):
    """As earlier versions have kept it; the quick convolutional networks take the first 500 examples."""
    small_mnist(tmp_path / "mnist")
    monkeypatch.setitem(QUICK, "conv", ("--test-examples", "15"))
    networks.recipe_of.cache_clear()
    found = {name: [result(0.4)] for name in measure.CONV.networks}
    for (run,) in found.values():
        run["tested_on"] = f"mnist, {run.pop('test_examples')} test examples"
    setting = Setting(tmp_path / "out", tmp_path, budget=budget)
    (table,) = catalogue.EXPERIMENTS["table2"].report(setting, found)
    count = 15 if budget == "quick" else 20
    assert any(f"Tested on {count} examples: a single run with {0.4 * count:.0f}" in n for n in table.notes)
    networks.recipe_of.cache_clear()


# Tables I to V


def result(clean, seed=0, examples=10_000, **noise):
    return {
        "clean": clean,
        "noise": {std: {"mean": mean, "standard_error": 0.001} for std, mean in noise.items()},
        "test_examples": examples,
        "seed": seed,
    }


def test_a_paired_test_is_students():
    # differences 1, 2, 3: t = 2 sqrt(3), two degrees of freedom; their tail is 1/2 - t / (2 sqrt(t^2 + 2))
    t = 2 * math.sqrt(3)
    expected = 2 * (0.5 - t / (2 * math.sqrt(t**2 + 2)))
    assert report.paired_p_value([11, 22, 33], [10, 20, 30]) == pytest.approx(expected, rel=1e-9)
    assert report.paired_p_value([1], [2]) is None


def test_equal_differences_say_nothing_and_others_what_their_counts_say():
    assert report.paired_p_value([0.0094, 0.0095, 0.0096], [0.0093, 0.0094, 0.0095]) is None
    assert report.paired_p_value([0.01, 0.02], [0.01, 0.02]) is None
    rng = np.random.default_rng(0)
    for examples in (300, 1_000, 9_999, 10_000, 60_000):
        for _ in range(50):
            plain, apart = rng.integers(examples // 2, size=3), rng.integers(100)
            assert report.paired_p_value((plain + apart) / examples, plain / examples) is None
            counts = plain + apart + [0, 0, 1]
            expected = report.paired_p_value(counts, plain)
            assert report.paired_p_value(counts / examples, plain / examples) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("measurement", "budget", "given", "count"),
    [
        (measure.DENSE, "quick", None, 3),
        (measure.DENSE, "quick", 1, 1),
        (measure.CONV, "quick", None, 1),
        (measure.CONV, "quick", 2, 2),
        (measure.CIFAR, "quick", 3, 3),
        (measure.CIFAR, "paper", None, 3),
    ],
)
def test_so_many_seeds_are_trained_as_were_asked_for(monkeypatch, measurement, budget, given, count):
    monkeypatch.setattr(measure, "all_finished", lambda setting, wanted, tick: wanted)
    monkeypatch.setattr(measure, "result", lambda setting, name, folder: folder)
    setting = Setting(None, None, budget=budget, seeds=given)
    found = measurement.measure(setting, silent)
    assert found == {name: [(name, seed) for seed in range(count)] for name in found}
    assert depends(setting, replace(measurement, data=()))["seeds"] == count


def test_a_verdict_knows_the_spread_of_seeds():
    """Student's with two degrees of freedom: the tail of t is 1/2 - t / (2 sqrt(t^2 + 2))."""
    seeds = [0.0099, 0.0100, 0.0101]
    # at which the tails have 5 %, 1 + 1/3 times the variance of a seed
    apart = math.sqrt(2 * 0.95**2 / (1 - 0.95**2)) * 0.0001 * math.sqrt(4 / 3)
    for sign, beyond in (1, "ahead of"), (-1, "behind"):
        assert report.verdict(seeds, 0.01 + sign * apart * 0.999, 10**6) == "level with"
        assert report.verdict(seeds, 0.01 + sign * apart * 1.001, 10**6) == beyond
    # as many seeds that are alike are not surer than one error
    assert report.verdict([0.01] * 3, 0.0104, 10_000) == "level with"
    # one has the deviation of a count: 1.96 sqrt(2) times 9.95 of 100 errors
    assert report.verdict([0.0100 + 0.0027], 0.0100, 10_000) == "level with"
    assert report.verdict([0.0100 + 0.0029], 0.0100, 10_000) == "behind"


def test_the_summary_says_where_the_paper_is(tmp_path):
    table = catalogue.EXPERIMENTS["table1"]
    found = {name: [result(0.02, 0), result(0.03, 1)] for name in measure.DENSE.networks}
    found["maxout-p2"] = [result(0.0078, 0), result(0.0079, 1)]
    verdicts = table.verdicts(Setting(tmp_path, None, budget="paper"), found)
    assert verdicts == {
        report.NETWORKS[name].label: report.verdict([run["clean"] for run in found[name]], error, 10_000)
        for name, error in report.CLEAN.items()
        if name in found
    }
    facts = dict(reproduce._against_the_paper({"A": "behind", "B": "ahead of", "C": "behind"}))
    assert facts == {"ahead of the paper": "1 of 3: B", "behind the paper": "2 of 3: A; C"}


def test_78_errors_have_a_deviation_of_8_point_8():
    assert report.resolution(0.0078, 10_000) * 10_000 == pytest.approx(8.8, abs=0.05)


def test_the_error_under_noise_is_that_of_the_seeds():
    one = [result(0.01, **{"0.1": 0.02})]
    assert report.noisy_error(one, "0.1", 10_000) == (0.02, 0.001)
    assert report.noisy_error(one, "0", 10_000) == (0.01, pytest.approx(math.sqrt(0.01 * 0.99 / 10_000)))
    three = [result(0.01, **{"0.1": mean}) for mean in (0.02, 0.03, 0.04)]
    assert report.noisy_error(three, "0.1", 10_000) == (
        pytest.approx(0.03),
        pytest.approx(0.01 / math.sqrt(3)),
    )


def test_table_1_shows_what_was_measured(tmp_path):
    found = {name: [result(0.02, 0), result(0.03, 1)] for name in measure.DENSE.networks}
    found["maxout-p2"] = [result(0.01, 0), result(0.024, 1)]
    experiment = catalogue.EXPERIMENTS["table1"]
    (table,) = experiment.report(Setting(tmp_path, None, budget="paper", seeds=2), found)
    rows = {row[0]: row[1:] for row in table.rows}
    deviation = 0.01 / math.sqrt(2)
    assert rows["Maxout + dropout"] == (
        *(pytest.approx(0.025), pytest.approx(deviation), 2, None),
        *(0.0094, "level with"),
    )
    p_value = 2 * (0.5 - math.atan(0.008 / 0.002) / math.pi)  # one degree of freedom: Cauchy
    assert rows["Maxout + dropout + gradient p = 2"][3:] == (
        pytest.approx(p_value),
        0.0078,
        "level with",
    )
    assert not any("Quick" in note for note in table.notes)
    (table,) = experiment.report(Setting(tmp_path, None, seeds=2), found)
    assert any(" ".join(QUICK["maxout"]) in note for note in table.notes)
    assert {row[-1] for row in table.rows} == {None}


def test_table_4_has_the_rows_of_both_measurements(tmp_path):
    noise = {"0.1": 0.05, "0.3": 0.25}
    dense, conv = (
        {name: [result(clean, **noise)] for name in part}
        for clean, part in ((0.02, measure.DENSE.networks), (0.01, measure.CONV.networks))
    )
    (table,) = catalogue.EXPERIMENTS["table4"].report(Setting(tmp_path, None), conv, dense)
    assert [row[1] for row in table.rows] == [0.01, 0.01, 0.02, 0.02]
    assert [row[4] for row in table.rows] == [0.05] * 4
    assert [row[9] for row in table.rows] == [0.2017, 0.1436, 0.0242, 0.0129]


@pytest.mark.parametrize(
    ("ours", "said"),
    [
        ((0.010, 0.011, 0.0121), "a gain"),
        ((0.031, 0.032, 0.0331), "a loss"),
        ((0.018, 0.020, 0.025), "no significant difference"),
        ((0.010, 0.010, 0.010), "a gain"),  # by the size of the test set, as the differences are all alike
        ((0.021, 0.021, 0.021), "no significant difference"),
        ((0.91, 0.5, 0.5), "is at chance"),
    ],
)
def test_the_finding_of_table_1_is_what_its_numbers_say(tmp_path, ours, said):
    setting, experiment = Setting(tmp_path, None, budget="paper"), catalogue.EXPERIMENTS["table1"]
    found = {name: [result(0.02, seed) for seed in range(3)] for name in measure.DENSE.networks}
    found["maxout-p2"] = [result(error, seed) for seed, error in enumerate(ours)]
    finding = findings.check(experiment, setting, found)
    assert said in finding
    assert "Maxout + dropout + gradient p = 2" in finding


def test_the_findings_of_tables_2_to_5_are_what_their_numbers_say(tmp_path):
    noise = {"0.1": 0.05, "0.3": 0.25}
    for name in "table2", "table3", "table4", "table4-dense", "table5":
        experiment = catalogue.EXPERIMENTS[name]
        found = [
            {network: [result(0.02, **noise)] for network in m.networks} for m in experiment.measurements
        ]
        findings.check(experiment, Setting(tmp_path, None, budget="paper"), *found)


def test_what_matters_most_is_known_of_each_finding():
    assert sorted(catalogue.FINDINGS) == sorted(p.name for p in catalogue.EXPERIMENTS.values() if p.finding)


# The command


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


def test_what_is_measured_is_kept(counted, tmp_path, capsys):
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


def test_what_takes_no_seeds_is_not_measured_anew_for_them(tmp_path):
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
def test_data_that_are_not_there_are_bad_input(tmp_path, capsys, name):
    flags = ["--data-dir", str(tmp_path / "nowhere"), "--out", str(tmp_path / "out"), "--backend", "numpy"]
    assert reproduce.main([name, *flags]) == 2
    out, err = capsys.readouterr()
    assert (out, len(err.splitlines())) == ("", 1)
    assert "nowhere" in err
    assert "--data-dir" in err
    assert not (tmp_path / "out").exists()


def test_what_was_measured_of_data_that_are_not_there_is_left_out(counted, monkeypatch, tmp_path, capsys):
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


def test_what_is_kept_and_damaged_is_named(counted, tmp_path, capsys):
    (tmp_path / "measured").mkdir()
    (tmp_path / "measured" / "counted.json").write_text("{")
    assert reproduce.main(["count", "--out", str(tmp_path), *QUIET]) == 2
    assert "counted.json: cannot be read" in capsys.readouterr().err


def kept(tmp_path, name="counted"):
    return tmp_path / "measured" / f"{name}.json"


def changed(**values):
    """Return what changes values of a kept measurement, None to leave one out, and not its checksum."""

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


def test_a_measurement_of_the_version_before_is_taken_with_a_notice(counted, tmp_path, capsys):
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


def test_a_figure_that_cannot_be_drawn_is_told_in_words(counted, tmp_path, monkeypatch, capsys):
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


def test_the_command_may_be_no_unicode(counted, tmp_path):
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
