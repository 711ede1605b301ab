"""The choice among recipes: by validation error alone, and whatever happens on the way."""

import gc
import json
import re
import shutil
import weakref
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from helpers.backends_under_test import NAMES
from helpers.commandline import (
    assert_refused,
    in_process,
    metrics,
    python,
    small_mnist,
    tabled,
    timeless,
    trained,
    unchanged,
)
from helpers.interruptions import EVERY_INSTANT
from lpfamily import evaluate
from lpfamily.report import tables
from lpfamily.train import main
from lpfamily.training import backends, choices, data, runs
from lpfamily.training.commands.combinations import combinations
from lpfamily.training.commands.options import parser
from lpfamily.training.networks import initial_state, state_shapes
from lpfamily.training.progress import Progress
from lpfamily.training.protocol import NotFinite, grid
from lpfamily.training.recipes import Recipe, network_of
from lpfamily.training.runs import configs

CHILD = ["checkpoint.safetensors", "config.json", "metrics.jsonl", "result.json"]


def without_grid(folder):
    """Return the results that a run with a grid shares with a run of the chosen recipe."""
    found = timeless(folder)
    config = json.loads(found["config.json"])
    config.pop("grid", None)
    del config["sha256"]
    return found | {"files": None, "config.json": config}


# The choice

FLAGS = ("--model", "softmax", "--epochs", 3, "--patience", 2, "--second-epochs", 2, "--dtype", "float64")
GRID = ("--grid", "lr=1/2", "--grid", "sigma=0.1/0.3/0.5")


@pytest.fixture(scope="module", params=NAMES)
def chosen(request, tmp_path_factory):
    """A finished run with a grid, what it said, and the flags that it shares with one without."""
    folder = tmp_path_factory.mktemp("grid") / "run"
    flags = (*FLAGS, "--second-stage", "continue", "--backend", request.param)
    return folder, tabled(folder, *flags, *GRID), flags


def test_the_least_validation_error_is_chosen_and_nothing_else_is_looked_at(chosen):
    folder, _, _ = chosen
    digits = data.load("digits")
    held_out, test = digits.train.x[-197:], digits.test
    validation, tested, losses = {}, {}, {}
    for name in (f"lr={lr},sigma={sigma}" for lr in (1, 2) for sigma in (0.1, 0.3, 0.5)):
        child = folder / "grid" / name
        assert sorted(path.name for path in child.iterdir()) == CHILD
        state = load_file(child / "checkpoint.safetensors")
        weight, bias = state["best.layers.0.weight"], state["best.layers.0.bias"]
        wrong = (held_out @ weight + bias).argmax(axis=1) != digits.train.labels[-197:]
        validation[name] = np.mean(wrong)
        tested[name] = np.mean((test.x @ weight + bias).argmax(axis=1) != test.labels)
        losses[name] = min(line["loss"] for line in metrics(child))
        result = json.loads((child / "result.json").read_text())
        assert not {"test_error", "tested_on"} & set(result)
        assert result["validation_error"] == pytest.approx(validation[name])
    found = json.loads((folder / "grid.json").read_text())
    assert {name: kept["validation_error"] for name, kept in found["combinations"].items()} == validation
    assert found["chosen"] == min(validation, key=validation.get) == "lr=1,sigma=0.3"
    others = {next(iter(validation)), min(tested, key=tested.get), min(losses, key=losses.get)}
    assert found["chosen"] not in others  # or this case tells nothing


def test_the_run_is_that_of_the_chosen_recipe(chosen):
    folder, _, flags = chosen
    direct = folder.with_name("direct")
    trained(direct, *flags, "--lr", 1, "--sigma", 0.3)
    assert {line["stage"] for line in metrics(direct)} == {1, 2}
    assert without_grid(folder) == without_grid(direct)


def test_the_chosen_one_is_not_trained_again(chosen):
    folder, _, _ = chosen
    stage_one = (folder / "grid" / "lr=1,sigma=0.3" / "metrics.jsonl").read_bytes()
    assert (folder / "metrics.jsonl").read_bytes().startswith(stage_one)  # seconds included


def test_the_tables_name_the_chosen_combination(chosen):
    folder, stdout, _ = chosen
    assert stdout.startswith("validation error")
    choice, result = stdout.split("\n\n")
    found = json.loads((folder / "grid.json").read_text())
    rows = choice.splitlines()[1:]
    for row, (name, kept) in zip(rows, found["combinations"].items(), strict=True):
        end = ", chosen" if name == found["chosen"] else ""
        assert re.fullmatch(rf"  {name} +{kept['validation_error']:.2%}  epoch {kept['epoch']}{end}", row)
    assert result.startswith("test error")


def test_resuming_a_finished_choice_says_so_and_changes_nothing(chosen):
    folder, _, _ = chosen
    result = unchanged(folder, lambda: in_process("--resume", folder))
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == f"{folder} is finished; nothing to do\n"


def test_a_run_that_has_chosen_needs_the_combinations_no_more(chosen, tmp_path):
    folder = shutil.copytree(chosen[0], tmp_path / "run")
    before = timeless(folder)
    (folder / "result.json").unlink()
    for path in sorted((folder / "grid").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    result = in_process("--resume", folder)
    assert (result.returncode, result.stdout) == (0, chosen[1])
    assert timeless(folder) == before


@pytest.mark.parametrize("damage", [b"{", b"[]", b"{}", b'{"combinations": {"a": 1}, "chosen": "a"}'])
def test_a_damaged_choice_is_named(chosen, tmp_path, damage):
    folder = shutil.copytree(chosen[0], tmp_path / "run")
    (folder / "result.json").unlink()
    (folder / "grid.json").write_bytes(damage)
    result = unchanged(folder, lambda: in_process("--resume", folder, "--quiet"))
    assert_refused(result, folder / "grid.json", "restore")


# The rule of choice, on given errors


@pytest.fixture
def choose(tmp_path):
    """Return a function that chooses among seeds by validation errors, one per epoch; None is a failure."""

    def act(patience, **errors):
        candidates = {
            name: Recipe(model="softmax", units=(), seed=seed, patience=patience)
            for seed, name in enumerate(errors)
        }
        config = {"recipe": choices.to_json(candidates[min(errors)]), "grid": configs.differences(candidates)}
        run, trained = runs.create(tmp_path / "run", config), []

        def train(child, recipe):
            trained.append(child.folder.name)
            assert recipe == replace(candidates[child.folder.name], second_stage="none")
            for epoch, error in enumerate(errors[child.folder.name], 1):
                if error is None:
                    raise NotFinite("too large")
                child.log({"epoch": epoch, "validation_error": error, "loss": 1 - error})
            arrays = initial_state(network_of(recipe, (1, 8, 8), 10), recipe.seed, recipe.dtype)
            best = {"best": 1, "best_error": 0.5} if patience else {}
            arrays |= {f"best.{name}": arrays[name] for name in ("layers.0.weight", "layers.0.bias") if best}
            child.save(arrays, {"epoch": len(child.metrics())} | best, child.decisive)
            return {}

        recipe = grid.choose(run, config, train, Progress(quiet=True))
        (run.folder / "checkpoint.safetensors").unlink()
        assert grid.choose(run, run.config, train, Progress(quiet=True)) == recipe
        assert trained == list(errors)  # each once, as what is finished is kept
        found = run.read("grid.json", config["grid"])
        assert recipe == candidates[found["chosen"]] == choices.from_json(Recipe, run.config["recipe"])
        fresh = initial_state(network_of(recipe, (1, 8, 8), 10), recipe.seed, recipe.dtype)
        for name, array in fresh.items():
            np.testing.assert_array_equal(load_file(run.folder / "checkpoint.safetensors")[name], array)
        assert run.metrics() == runs.Run(run.folder / "grid" / found["chosen"]).metrics()
        return found["chosen"], found["combinations"], tables.grid_table(run)

    return act


def test_the_first_of_equal_combinations_is_chosen(choose):
    name, found, _ = choose(9, a=[0.3], b=[0.2, 0.1, 0.4, 0.1], c=[0.1, 0.2])
    assert name == "b"
    assert found["b"] == {"validation_error": 0.1, "epoch": 2}
    assert found["c"] == {"validation_error": 0.1, "epoch": 1}


def test_without_patience_the_last_epoch_counts(choose):
    name, found, _ = choose(0, a=[0.1, 0.4], b=[0.5, 0.3], c=[0.2, 0.3])
    assert name == "b"
    assert found["a"] == {"validation_error": 0.4, "epoch": 2}


def test_a_combination_whose_loss_is_not_finite_is_not_chosen(choose, capsys):
    name, _, table = choose(9, a=[0.1, None], b=[0.3])
    assert name == "b"
    assert re.search(r"\n  a +not finite\n", table)
    assert capsys.readouterr().err == "warning: a is not chosen: too large\n"


def test_if_nothing_is_finite_the_run_stops(choose):
    with pytest.raises(NotFinite, match="no combination"):
        choose(9, a=[None], b=[0.1, None])


# Combinations


def one_epoch(folder, *flags):
    """Train for an epoch on a little noise."""
    common = ("--data", "mnist", "--data-dir", folder, "--validation", 5, "--epochs", 1, "--batch-size", 10)
    result = in_process(*common, "--patience", 0, "--second-stage", "none", "--quiet", *flags)
    assert result.returncode == 0, result


def test_a_combination_is_the_recipe_of_its_flags(tmp_path, monkeypatch):
    """So the radius goes with p, as it does by default."""
    small_mnist(tmp_path / "mnist")
    monkeypatch.chdir(tmp_path)
    flags = ("--model", "softmax", "--seed", 7)
    one_epoch(tmp_path, *flags, "--p", "inf", "--out", "direct")
    one_epoch(tmp_path, *flags, "--grid", "p=2/inf")
    (folder,) = (tmp_path / "runs").iterdir()
    assert re.fullmatch(r"softmax-mnist-grid-\d{8}-\d{6}", folder.name)
    configs = [path / "config.json" for path in (folder / "grid" / "p=inf", tmp_path / "direct")]
    one, other = (json.loads(path.read_text()) for path in configs)
    assert one == other


@pytest.mark.parametrize("spelling", ["batch-size", "batch_size"])
def test_names_are_those_of_the_flags_or_of_the_recipe(spelling):
    found = combinations({"grid": [f"{spelling}=5/6", "units=400,400/none", "lr-decay=none"]})
    assert list(found.items()) == [
        (
            f"batch-size={size},units={text},lr-decay=none",
            {"batch_size": size, "units": units, "lr_decay": "none"},
        )
        for size in (5, 6)
        for text, units in (("400,400", (400, 400)), ("none", ()))
    ]


def test_every_number_list_and_choice_of_stage_one_can_be_chosen():
    known = {name: each.values for name, each in choices.options(Recipe).items() if name != "data"}
    known = {name: values for name, values in known.items() if values is not choices.SWITCH}
    afterwards = {"second_stage", "second_lr", "second_epochs", "test_examples"}
    for field in known.keys() - afterwards - {"examples", "validation", "size", "scale"}:
        below_one = field in {"ema", "label_smoothing"}
        text = getattr(known[field], "names", ("0.5" if below_one else "1",))[0]
        (values,) = combinations({"grid": [f"{field}={text}"]}).values()
        assert list(values) == [field]
        Recipe(**values)


def test_recipes_come_back_from_a_config_that_holds_any_of_them():
    candidates = {"a": Recipe(p=2, sigma=1), "b": Recipe(p=np.inf, sigma=0.1), "c": Recipe(units=(3,))}
    for recipe in candidates.values():
        config = json.dumps({"recipe": choices.to_json(recipe), "grid": configs.differences(candidates)})
        assert configs.candidates(json.loads(config)) == candidates


def test_fractions_are_numbers_alone_and_in_parentheses_of_a_grid():
    assert parser().parse(["--sigma", "8/255"]) == {"sigma": 8 / 255}
    found = combinations({"grid": ["sigma=(8/255)/ (16/255)/1/2.5"]})
    expected = [8 / 255, 16 / 255, 1.0, 2.5]
    assert [values["sigma"] for values in found.values()] == expected
    assert [float(name.removeprefix("sigma=")) for name in found] == expected
    assert evaluate._parser().parse(["--bounds=-1/2,255/255"])["bounds"] == (-0.5, 1.0)


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        ("--grid sigma=(1/2)/0.5", ["0.5 is given twice"]),
        ("--grid sigma=(1/0)/1", ["sigma must be a finite number or fraction", "got 1/0"]),
        ("--grid sigma=(1/2", ["sigma must be", "got (1"]),
        ("--grid epochs=(1/2)/1", ["epochs must be a whole number", "got 1/2"]),
        ("--grid sigma", ["--grid sigma", "must be NAME=VALUE/VALUE/..."]),
        ("--grid sigam=1/2", ["--grid sigam=1/2", "did you mean sigma?"]),
        ("--grid batch-sise=1", ["--grid batch-sise=1", "did you mean batch-size?"]),
        ("--grid qqq=1/2", ["--grid qqq=1/2", "--help"]),
        ("--grid data=mnist/digits", ["--grid data=mnist/digits", "no number, list or choice"]),
        ("--grid sigma=0.1/-1", ["--grid sigma=0.1/-1", "sigma must be", "0 or more", "got -1"]),
        ("--grid sigma=", ["--grid sigma=", "0 or more"]),
        ("--grid units=4,4/4,0", ["--grid units=4,4/4,0", "units must be", "got 0"]),
        ("--grid lr-decay=linear/fast", ["--grid lr-decay=linear/fast", "exponential, linear", "got fast"]),
        ("--grid sigma=1/2/1.0", ["--grid sigma=1/2/1.0", "1.0 is given twice"]),
        ("--grid lr=1/2 --grid lr=3", ["--grid lr=3", "lr is given twice", "in one"]),
        ("--grid batch-size=1 --grid batch_size=2", ["--grid batch_size=2", "batch-size is given twice"]),
        ("--grid sigma=1/2 --sigma 1", ["--grid sigma=1/2", "--sigma is given too", "leave one"]),
        ("--grid sigma=1/2 --validation 0", ["--grid sigma=1/2", "--validation 0", "hold some out"]),
        ("--grid validation=5/6", ["--grid validation=5/6", "cannot be compared", "--validation one value"]),
        ("--grid examples=20/30", ["--grid examples=20/30", "cannot be compared", "--examples one value"]),
        ("--grid second-epochs=5/6", ["--grid second-epochs=5/6", "no effect", "--second-epochs one"]),
        ("--grid test-examples=5/6", ["--grid test-examples=5/6", "no effect", "--test-examples one"]),
        ("--grid steps=1/2 --objective plain", ["--grid steps=2", "--steps needs --objective perturb"]),
        ("--grid units=5/5,5,5 --lr-scale 1,1", ["--grid units=5,5,5", "--lr-scale", "or 4; got 2"]),
        ("--grid patience=5/0", ["--grid patience=0", "--patience 1 or more"]),
        ("--grid sigma=1/1e300", ["--grid sigma=1e300", "float32"]),
        ("--grid sigma=" + 300 * "0" + "/1", ["--grid", "too long for the name of a folder"]),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
def test_an_invalid_grid_is_refused_before_a_folder_is_made(tmp_path, flags, parts):
    small_mnist(tmp_path / "mnist")
    common = ("--data", "mnist", "--data-dir", tmp_path, "--validation", 5, "--out", tmp_path / "run")
    assert_refused(in_process(*common, *flags.split()), *parts)
    assert not (tmp_path / "run").exists()


def test_an_option_that_only_one_combination_uses_is_accepted(tmp_path):
    small_mnist(tmp_path / "mnist")
    flags = ("--grid", "objective=plain/perturb", "--steps", 2, "--out", tmp_path / "run")
    one_epoch(tmp_path, *flags)


def test_the_last_healthy_checkpoint_is_that_of_the_chosen_run(tmp_path):
    one, other = (runs.create(tmp_path / name, {"name": name}) for name in ("one", "other"))
    recipe = Recipe(model="softmax", units=(), dtype="float64")
    network = network_of(recipe, (1, 1, 3), 2)

    def save(value):
        arrays = {name: np.full(shape, value) for name, shape in state_shapes(network).items()}
        one.save(arrays, {"epoch": 0}, one.decisive)

    def load(run, name):
        return run.load(recipe, network, name).arrays["layers.0.bias"][0]

    for healthy in False, True:
        save(1.0)
        if healthy:
            one.keep_healthy()
            assert (one.folder / runs.HEALTHY).read_bytes() == (one.folder / runs.CHECKPOINT).read_bytes()
            save(2.0)
        other.restore(one.snapshot(recipe, network))
        assert (other.folder / runs.HEALTHY).exists() == healthy
        assert load(other, runs.CHECKPOINT) == 1 + healthy
    assert load(other, runs.HEALTHY) == 1


def test_a_grid_cannot_be_changed_on_the_way(chosen):
    result = unchanged(chosen[0], lambda: in_process("--resume", chosen[0], "--grid", "lr=1/2"))
    assert_refused(result, "--grid", "cannot be changed")


def test_help_has_the_grid(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "--grid NAME=VALUE/..." in capsys.readouterr().out


# Killed and resumed


def test_killed_before_any_file_access_the_choice_ends_with_the_same_bytes(tmp_path):
    small_mnist(tmp_path / "mnist")
    flags = ("--data", "mnist", "--data-dir", tmp_path, "--validation", 5, "--lr", 0.01, "--epochs", 1)
    flags += ("--second-epochs", 1, "--grid", "units=3,2/4")
    result = python(EVERY_INSTANT, "killed before", *flags, "--quiet", cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    outcomes = [json.loads(line) for line in result.stdout.splitlines() if line.startswith("[")]
    assert len(outcomes) > 30
    expected, wrong = all_of(tmp_path / "undisturbed"), []
    assert json.loads(expected["grid.json"])["chosen"] == "units=4"
    for name, _, (where, code), (*remarks, again) in outcomes:
        assert code < 0, where
        if (remarks, again) != ([], 0):
            wrong.append(f"killed before {where}: ended with {again}, {remarks}")
        elif (got := all_of(Path(name))) != expected:
            wrong.append(f"killed before {where}: other {[n for n in expected if got[n] != expected[n]]}")
    assert not wrong, "\n".join(wrong)


def all_of(folder):
    """Return the results in which two runs with a grid agree if they follow one trajectory."""
    children = {path.name: timeless(path) for path in (folder / "grid").iterdir()}
    return timeless(folder) | children | {"grid.json": (folder / "grid.json").read_text()}


def test_the_memory_of_a_trained_network_is_freed(tmp_path, monkeypatch):
    """Before the garbage collector runs, as each trainer of a grid holds the data for itself."""
    small_mnist(tmp_path / "mnist")
    numpy, alive = backends.find("numpy"), []

    class Watched:
        check_device, compile_problem, join = numpy.check_device, numpy.compile_problem, numpy.join
        layers, direction_dtypes = numpy.layers, numpy.direction_dtypes

        def trainer(self, task, state):
            assert not any(trainer() for trainer in alive)
            alive.append(weakref.ref(trainer := numpy.trainer(task, state)))
            return trainer

    monkeypatch.setattr(backends, "find", lambda name: Watched())
    gc.disable()
    try:
        one_epoch(tmp_path, "--grid", "units=2/3", "--out", tmp_path / "run")
    finally:
        gc.enable()
    assert len(alive) == 3
