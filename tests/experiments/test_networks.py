"""Networks of the experiments: what is trained, which runs are taken over, and which results are refused."""

import json
import math
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from helpers.backends_under_test import NAMES
from helpers.commandline import of_an_earlier_version, python, small_mnist, trained, unchanged
from helpers.measurements import result, silent
from lpfamily import reproduce
from lpfamily.experiments import catalogue, networks
from lpfamily.experiments.definitions import Chapter, Experiment, Setting
from lpfamily.experiments.errors import measure
from lpfamily.experiments.networks import NETWORKS, QUICK, all_finished, flags, runs_in
from lpfamily.experiments.records import depends
from lpfamily.training import choices, load, recipes, runs
from lpfamily.training.commands import options
from lpfamily.training.data import SOURCES, Split
from lpfamily.training.errors import BadInput


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


def test_measuring_loads_no_module_of_the_report(tmp_path):
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


def finished(setting, name, seed, tick):
    return all_finished(setting, [(name, seed)], tick)[0]


@pytest.fixture
def setting(tmp_path, monkeypatch):
    monkeypatch.setitem(QUICK, "softmax", ("--validation", "5", "--epochs", "2", "--batch-size", "10"))
    small_mnist(tmp_path / "data" / "mnist")
    return Setting(tmp_path / "out", tmp_path / "data")


def test_a_run_of_another_recipe_is_not_used(setting, monkeypatch):
    all_finished(setting, [("softmax", 0)], silent)
    monkeypatch.setitem(QUICK, "softmax", ("--validation", "5", "--epochs", "3", "--batch-size", "10"))
    networks.recipe_of.cache_clear()
    with pytest.raises(
        BadInput, match="softmax-0 was trained by another recipe or budget; give another --out"
    ):
        all_finished(setting, [("softmax", 0)], silent)


def test_a_record_depends_on_the_recipes_of_its_networks(tmp_path):
    dense = catalogue.EXPERIMENTS["table1"].measurements[0]
    quick, paper = (
        depends(Setting(tmp_path, None, budget=budget), replace(dense, data=()))
        for budget in ("quick", "paper")
    )
    assert paper["maxout-pinf"].startswith(
        "--data mnist --model maxout --p inf --sigma 0.25 --clean-weight 0.5"
    )
    assert quick["maxout-pinf"] != paper["maxout-pinf"]


def test_a_run_is_trained_once_or_resumed_or_used_from_elsewhere(setting, tmp_path):
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


def test_a_network_that_a_backend_cannot_train_is_named_before_training(setting, monkeypatch, capsys):
    monkeypatch.setitem(QUICK, "conv", ("--validation", "5", "--epochs", "1", "--batch-size", "10"))
    where = ["--data-dir", str(setting.data_dir), "--out", str(setting.out), "--quiet"]
    assert reproduce.main(["table6", "table2", "--backend", "numpy", *where]) == 2
    assert "'numpy' does not train ConvMaxout layers" in capsys.readouterr().err
    assert not setting.out.exists()


def test_a_run_that_exists_is_not_checked_for_its_layers(setting, monkeypatch):
    finished(setting, "softmax", 0, silent)
    other = replace(setting, out=setting.out / "other", runs=runs_in([setting.out / "runs"]))
    monkeypatch.setattr(networks.backends, "find", lambda name: SimpleNamespace(layers=frozenset()))
    for each in setting, other:
        networks.check_trainable(each, "softmax", 0)
        with pytest.raises(BadInput, match="does not train Dense layers"):
            networks.check_trainable(each, "softmax", 1)


def test_runs_on_other_data_are_not_used(setting, tmp_path):
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


def test_a_run_that_began_with_the_weights_of_another_is_not_used(setting, tmp_path):
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


def test_a_folder_of_runs_must_exist(tmp_path):
    with pytest.raises(BadInput, match=r"--runs .*nowhere"):
        runs_in([tmp_path / "nowhere"])


def edited(**values):
    """Return an edit that changes values of a result (None removes one); test_error__x is x in test_error."""

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
    flags = ["some", *map(str, places), "--data-dir", str(once / "data"), "--quiet", "--backend", "numpy"]
    damage(run / "result.json")
    assert unchanged(tmp_path, lambda: reproduce.main(flags)) == 2
    out, err = capsys.readouterr()
    assert (out, len(err.splitlines())) == ("", 1)
    assert f"{run / 'result.json'}: " in err
    assert "restore it from a copy" in err


@pytest.mark.parametrize("count", [0, -1, 0.5, True, "20", None])
def test_an_invalid_count_of_test_examples_is_refused(once, tmp_path, count):
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
def test_a_missing_count_of_test_examples_is_taken_from_the_data(once, tmp_path, said):
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
