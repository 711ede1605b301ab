"""Training from Python: `lpfamily.training.fit`, its callbacks, and TensorBoard's files."""

import errno
import json
import re
import shutil
import sys
from collections.abc import Mapping
from dataclasses import asdict, replace
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

import lpfamily.training
from helpers import ROOT
from helpers.backends_under_test import NAMES
from helpers.commandline import (
    assert_refused,
    draw_nothing,
    in_process,
    metrics,
    position,
    timeless,
    trained,
    unchanged,
)
from lpfamily.training import data, files, fit
from lpfamily.training.commands.options import parser, recipe_of
from lpfamily.training.data import Dataset, Split
from lpfamily.training.errors import BadInput
from lpfamily.training.networks import initial_state
from lpfamily.training.recipes import default, network_of
from lpfamily.training.runs import Run, initial_weights


@pytest.fixture(autouse=True)
def no_curves(monkeypatch):
    draw_nothing(monkeypatch)


DIGITS = data.load("digits")
FLAGS = (
    *("--model", "softmax", "--epochs", "4", "--patience", "2", "--second-stage", "continue", "--lr", "0.5"),
    *("--second-epochs", "2", "--batch-size", "50", "--seed", "3", "--test-examples", "20"),
)
RECIPE = recipe_of(parser().parse(list(FLAGS)), DIGITS)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    fit(RECIPE, DIGITS, "numpy", out=folder)
    return folder


# The run folder and the returned network


@pytest.mark.parametrize("backend", NAMES)
def test_it_leaves_the_run_of_the_command_and_returns_what_that_has_trained(tmp_path, backend):
    found = fit(RECIPE, DIGITS, backend, out=tmp_path / "python")
    trained(tmp_path / "command", *FLAGS, "--backend", backend)
    one, other = timeless(tmp_path / "python"), timeless(tmp_path / "command")
    other["files"].remove("curves.png")
    assert one == other
    assert {line["stage"] for line in metrics(tmp_path / "python")} == {1, 2}
    expected = lpfamily.training.load(tmp_path / "command")
    assert found.parameters.keys() == expected.parameters.keys()
    for name, array in found.parameters.items():
        np.testing.assert_array_equal(array, expected.parameters[name])
    assert found.result["test_error"] == expected.result["test_error"]
    assert (found.recipe, found.network, found.epoch) == (RECIPE, expected.network, expected.epoch)


def test_without_a_folder_the_run_is_one_of_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        fit(replace(RECIPE, epochs=1, second_stage="none"), DIGITS, "numpy")
    names = sorted(path.name for path in (tmp_path / "runs").iterdir())
    assert len(names) == 2
    assert all(name.startswith("softmax-digits-perturb-p2-sigma0.2857-") for name in names)


def test_it_is_silent_unless_progress_is_asked_for(tmp_path, capsys):
    recipe = replace(RECIPE, epochs=1, second_stage="none")
    fit(recipe, DIGITS, "numpy", out=tmp_path / "silent")
    assert capsys.readouterr() == ("", "")
    fit(recipe, DIGITS, "numpy", out=tmp_path / "shown", progress=True)
    out, err = capsys.readouterr()
    assert (out, "epoch 1/1" in err) == ("", True)


# Callbacks


def test_a_callback_is_told_each_epoch_when_its_line_and_checkpoint_are_kept(tmp_path):
    folder, told, other = tmp_path / "run", [], []

    def callback(line):
        assert metrics(folder)[-1] == line
        assert position(folder)["epoch"] == line["epoch"] == len(metrics(folder))
        told.append(line)

    def alters(line):
        other.append(dict(line))
        line.clear()

    fit(RECIPE, DIGITS, "numpy", out=folder, callbacks=(alters, callback))
    assert told == other == metrics(folder)
    assert {"epoch", "stage", "loss", "error", "lr", "seconds"} <= set.intersection(*map(set, told))


class Stop(Exception):
    pass


def stop(*arguments):
    raise Stop


@pytest.mark.parametrize("epoch", [1, 4, 5])
def test_the_error_of_a_callback_is_raised_and_the_run_resumes_after_that_epoch(tmp_path, undisturbed, epoch):
    told, folder = [], tmp_path / "run"

    def callback(line):
        told.append(line["epoch"])
        if told == list(range(1, epoch + 1)):
            raise Stop

    with pytest.raises(Stop):
        fit(RECIPE, DIGITS, "numpy", out=folder, callbacks=[callback])
    assert position(folder)["epoch"] == epoch
    found = fit(RECIPE, DIGITS, "numpy", out=folder, callbacks=[callback], resume=True)
    assert told == [line["epoch"] for line in metrics(folder)]
    assert timeless(folder) == timeless(undisturbed)
    assert found.result == Run(folder).result


class Recorder(SimpleNamespace):
    """A stand-in for a tracker's run: it records its calls, and accepts only what the tracker documents."""

    def __init__(self):
        super().__init__(lines=[], said={}, summary={})

    def __enter__(self):
        return self

    def __exit__(self, *problem):
        pass

    def log(self, data, step):
        assert isinstance(data, Mapping)
        self.lines.append((step, dict(data)))

    def init(self, project, config):
        self.said |= config
        return self

    def start_run(self):
        return self

    def log_params(self, params):
        self.said |= params

    def log_metrics(self, metrics, step):
        self.log(metrics, step)

    def log_metric(self, key, value):
        self.summary[key] = value


@pytest.mark.parametrize("tracker", ["wandb", "mlflow"])
def test_the_page_tells_a_tracker_every_epoch_the_recipe_and_the_result(tmp_path, monkeypatch, tracker):
    page = (ROOT / "docs/guides/logging.md").read_text()
    (code,) = re.findall(rf"```py\n(import {tracker}\n.*?)```", page, re.DOTALL)
    recorder = Recorder()
    monkeypatch.setitem(sys.modules, tracker, recorder)
    monkeypatch.chdir(tmp_path)
    exec(compile(code, tracker, "exec"), {})  # noqa: S102 (the page is ours)
    (folder,) = (tmp_path / "runs").iterdir()
    assert recorder.lines == [(line["epoch"], line) for line in metrics(folder)]
    assert recorder.said == asdict(lpfamily.training.load(folder).recipe)
    errors = Run(folder).result["test_error"]
    assert recorder.summary["test_error"] == (errors if tracker == "wandb" else errors["clean"])


@pytest.mark.parametrize("callbacks", [print, ["print"], [None]])
def test_a_callback_that_cannot_be_called_is_refused_before_a_folder_is_made(tmp_path, callbacks):
    with pytest.raises(TypeError):
        fit(RECIPE, DIGITS, "numpy", out=tmp_path / "run", callbacks=callbacks)
    assert not (tmp_path / "run").exists()


# Resuming and more epochs


def test_a_program_that_is_started_again_finds_its_run(tmp_path, undisturbed):
    folder, told = tmp_path / "run", []
    for _ in range(2):
        fit(RECIPE, DIGITS, "numpy", out=folder, callbacks=[told.append], resume=True)
    assert len(told) == len(metrics(undisturbed))
    assert timeless(folder) == timeless(undisturbed)
    found = unchanged(tmp_path, lambda: fit(RECIPE, DIGITS, "numpy", out=folder, resume=True))
    assert found.result == Run(folder).result


def test_a_recipe_with_more_epochs_makes_the_run_longer(tmp_path):
    short, long = (
        replace(RECIPE, epochs=n, second_epochs=n, second_stage="none", patience=0) for n in (2, 5)
    )
    long, told = replace(long, monitor=2), []
    fit(short, DIGITS, "numpy", out=tmp_path / "run", callbacks=[told.append])
    for _ in range(2):
        recipe = replace(long, monitor=0)
        found = fit(recipe, DIGITS, "numpy", out=tmp_path / "run", callbacks=[told.append], resume=True)
    assert [line["epoch"] for line in told] == [1, 2, 3, 4, 5]
    expected = fit(long, DIGITS, "numpy", out=tmp_path / "long")
    assert found.checkpoint == expected.checkpoint
    assert found.result["test_error"] == expected.result["test_error"]


@pytest.mark.parametrize(
    ("act", "part"),
    [
        (lambda out: fit(RECIPE, DIGITS, "numpy", out=out), "not empty; choose another folder"),
        (
            lambda out: fit(replace(RECIPE, lr=1.0), DIGITS, "numpy", out=out, resume=True),
            "began with lr = 0.5",
        ),
        (lambda out: fit(replace(RECIPE, epochs=2), DIGITS, "numpy", out=out, resume=True), "--epochs 2: "),
        (lambda out: fit(RECIPE, DIGITS.first(1000, 0), "numpy", out=out, resume=True), "other digits data"),
        (lambda out: fit(RECIPE, DIGITS, "numpy", out=out, resume=True, init_from=out), "random weights"),
        (lambda out: fit(RECIPE, DIGITS, "numpy", resume=True), "resume=True needs out"),
    ],
)
def test_a_wrong_continuation_is_refused_and_changes_nothing(undisturbed, act, part):
    def refused():
        with pytest.raises(BadInput, match=part):
            act(undisturbed)

    unchanged(undisturbed, refused)


# Custom data


def own(rows=120, **changes):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((rows, 5)).astype(np.float32)
    labels = (x[:, 0] > 0).astype(int) + (x[:, 1] > 1)
    splits = Split(x[:80], labels[:80]), Split(x[80:], labels[80:])
    return replace(Dataset("mine", *splits, classes=3, shape=(5,)), **changes)


OWN = replace(
    default("softmax", "mine", "plain", 2.0, 5),
    validation=0, second_stage="none", patience=0, epochs=20, batch_size=10, lr=0.5,
)  # fmt: skip


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_arrays_of_ones_own_are_trained_on_and_the_run_knows_their_shape(tmp_path, dtype):
    folder, mine = tmp_path / "run", own()
    train, test = mine.train.astype(dtype), mine.test.astype(dtype)
    fit(OWN, replace(mine, train=train, test=test), "numpy", out=folder)
    found = lpfamily.training.load(folder)
    weight, bias = (found.parameters[f"layers.0.{name}"] for name in ("weight", "bias"))
    wrong = np.mean((test.x @ weight + bias).argmax(axis=1) != test.labels)
    assert found.result["test_error"]["clean"] == wrong < 0.2
    (folder / "result.json").unlink()
    assert_refused(in_process("--resume", folder), "'mine', arrays of a program", "fit(..., resume=True)")
    with pytest.raises(BadInput, match="began on other mine data"):
        fit(OWN, replace(mine, train=train, test=test, shape=(1, 1, 5)), "numpy", out=folder, resume=True)
    again = fit(OWN, replace(mine, train=train, test=test), "numpy", out=folder, resume=True)
    assert again.result["test_error"] == found.result["test_error"]


def with_train(**changes):
    mine = own()
    return replace(mine, train=replace(mine.train, **changes))


NAN = np.where(np.arange(80)[:, None] == 3, np.nan, own().train.x)


@pytest.mark.parametrize(
    ("dataset", "part"),
    [
        (own(name="yours"), "the recipe is for the data set 'mine', and this is 'yours'"),
        (own(shape=(6,)), r"x of train must be floating, of shape \(n, 6\).* got float32 of shape \(80, 5\)"),
        (with_train(x=np.zeros((80, 5), int)), "x of train must be floating.* got int64"),
        (with_train(x=np.zeros((0, 5))), r"got float64 of shape \(0, 5\)"),
        (with_train(x=NAN), "x of train is not finite in 1 of 80 examples"),
        (with_train(labels=np.full(80, "a")), "labels of train must be integers.* got <U1"),
        (with_train(labels=np.zeros(80)), "labels of train must be integers.* got float64"),
        (with_train(labels=np.zeros(79, int)), r"of shape \(80,\); got int64 of shape \(79,\)"),
        (with_train(labels=np.arange(80)), "go from 0 to 79, and those of 3 classes from 0 to 2"),
        (own(classes=2), "go from 0 to 2, and those of 2 classes from 0 to 1"),
    ],
)
def test_arrays_that_cannot_be_examples_are_one_line_before_a_folder_is_made(tmp_path, dataset, part):
    with pytest.raises(BadInput, match=part):
        fit(OWN, dataset, "numpy", out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_name_that_another_data_set_has_is_refused(tmp_path):
    with pytest.raises(BadInput, match=r"'digits' names a data set of shape \(1, 8, 8\) and 10 classes"):
        fit(replace(OWN, data="digits"), own(name="digits"), "numpy", out=tmp_path / "run")


# TensorBoard


def logged(folder):
    """Return the metrics that TensorBoard reads in a run folder, as `metrics.jsonl` would have them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    read.Reload()
    lines = {}
    for name in read.Tags()["scalars"]:
        for event in read.Scalars(name):
            line = lines.setdefault(event.step, {"epoch": event.step})
            assert name not in line, "told twice"
            line[name] = event.value
    return [lines[step] for step in sorted(lines)]


def assert_logged(folder, **others):
    found, expected = logged(folder), metrics(folder)
    assert len(found) == len(expected) > 0
    for line, wanted in zip(found, expected, strict=True):
        assert line | others == pytest.approx(wanted | others, rel=1e-6)


def test_tensorboard_has_every_epoch_of_both_stages_once(tmp_path):
    folder, log = tmp_path / "run", ("--log", "tensorboard")
    trained(folder, *FLAGS, *log)
    assert_logged(folder)
    (folder / "result.json").unlink()
    assert in_process("--resume", folder, "--quiet", *log).returncode == 0  # and this adds nothing
    assert_logged(folder)


def test_tensorboard_has_the_epochs_before_it_was_asked_for(tmp_path):
    folder, log = tmp_path / "run", ("--log", "tensorboard")
    trained(folder, "--model", "softmax", "--objective", "plain", "--epochs", 2)
    for epochs, asked in (3, log), (4, ()), (6, log):
        result = in_process("--resume", folder, "--epochs", epochs, "--quiet", *asked)
        assert (result.returncode, result.stderr) == (0, "")
        if asked:
            assert_logged(folder)


def test_tensorboard_has_an_epoch_whose_event_or_checkpoint_a_kill_has_cut_short_once(tmp_path, monkeypatch):
    folder, save = tmp_path / "run", Run.save

    def stopping(run, arrays, where, *others):
        if where["epoch"] == 3:
            raise Stop
        return save(run, arrays, where, *others)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "save", stopping)
        with pytest.raises(Stop):
            in_process(*FLAGS, "--log", "tensorboard", "--quiet", "--out", folder)
    assert len(metrics(folder)) == 3
    (events,) = folder.glob("*tfevents*")
    events.write_bytes(events.read_bytes()[:-7])
    result = in_process("--resume", folder, "--quiet", "--log", "tensorboard")
    assert (result.returncode, result.stderr) == (0, "")
    assert_logged(folder, seconds=0)  # an epoch was trained twice


def test_event_files_that_cannot_be_written_end_the_run_in_one_line(tmp_path, monkeypatch):
    append, folder = files.append, tmp_path / "run"

    def full(path, content):
        if "tfevents" in path.name and path.exists() and len(metrics(folder)) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        append(path, content)

    flags = (*FLAGS, "--log", "tensorboard", "--quiet", "--out", folder)
    with monkeypatch.context() as patch:
        patch.setattr(files, "append", full)
        result = in_process(*flags)
    assert (result.returncode, result.stdout, len(result.stderr.splitlines())) == (2, "", 1)
    assert f"{folder}/events.out.tfevents." in result.stderr
    assert "(No space left on device); the checkpoint after epoch 2 is intact" in result.stderr
    assert in_process("--resume", folder, "--quiet").returncode == 0


def test_without_tensorboard_its_flag_names_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    folder = tmp_path / "run"
    assert_refused(in_process(*FLAGS, "--log", "tensorboard", "--out", folder), "pip install tensorboard")
    assert not folder.exists()


# Weights of another run


PLAIN = (
    *("--model", "softmax", "--objective", "plain", "--validation", 0, "--max-norm", 0, "--epochs", 1),
    *("--test-examples", 20),
    *("--batch-size", 1497, "--lr", 0.5, "--lr-decay", "none", "--momentum", 0.9, "--momentum-final", 0.9),
)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A run that others take their initial weights from; it has velocities too."""
    folder = tmp_path_factory.mktemp("source") / "run"
    recipe = recipe_of(parser().parse(list(map(str, PLAIN))), DIGITS)
    fit(replace(recipe, batch_size=50, seed=5), DIGITS, "numpy", out=folder)
    return folder


@pytest.mark.parametrize(("backend", "dtype"), [*((name, "float32") for name in NAMES), ("numpy", "float64")])
def test_the_first_step_is_taken_from_the_weights_of_the_other_run_at_rest(tmp_path, source, backend, dtype):
    trained(tmp_path / "run", *PLAIN, "--backend", backend, "--dtype", dtype, "--init-from", source)
    begun, ended = (
        load_file(source / "checkpoint.safetensors"),
        load_file(tmp_path / "run/checkpoint.safetensors"),
    )
    weight, bias = (begun[f"layers.0.{name}"].astype(np.float64) for name in ("weight", "bias"))
    x, labels = DIGITS.train.x.astype(np.float64), DIGITS.train.labels
    logits = x @ weight + bias
    odds = np.exp(logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)) - np.eye(10)[labels]
    for name, old, gradient in ("weight", weight, x.T @ odds), ("bias", bias, odds.sum(axis=0)):
        step, close = -0.5 * gradient / len(x), {"rtol": 1e-4, "atol": 1e-6}
        np.testing.assert_allclose(ended[f"velocity.layers.0.{name}"], step, **close)
        np.testing.assert_allclose(ended[f"layers.0.{name}"], old + step, **close)
        assert np.abs(begun[f"velocity.layers.0.{name}"]).max() > 1e-3


def checksum(folder):
    with safe_open(folder / "checkpoint.safetensors", framework="numpy") as file:
        return json.loads(file.metadata()["lpfamily"])["sha256"]


def test_the_config_says_from_which_run_and_checkpoint_and_where_the_run_is_makes_no_difference(
    tmp_path, source
):
    moved = shutil.copytree(source, tmp_path / "moved")
    for name, origin in ("one", source), ("other", moved):
        trained(tmp_path / name, *PLAIN, "--init-from", origin)
        config = Run(tmp_path / name).config
        assert (config["init_from"], config["init_sha256"]) == (str(origin), checksum(source))
    one, other = ((tmp_path / name / "checkpoint.safetensors").read_bytes() for name in ("one", "other"))
    assert one == other
    trained(tmp_path / "none", *PLAIN)
    assert not {"init_from", "init_sha256"} & Run(tmp_path / "none").config.keys()


def test_the_parameters_are_those_that_load_returns_and_fit_takes_them_too(tmp_path, undisturbed):
    recipe = replace(RECIPE, lr=0.01, dropout=(0.9,))
    with pytest.raises(Stop):
        fit(recipe, DIGITS, "numpy", out=tmp_path / "run", init_from=undisturbed, callbacks=[stop])
    began = lpfamily.training.load(undisturbed).parameters["layers.0.weight"]
    now = lpfamily.training.load(tmp_path / "run").parameters["layers.0.weight"]
    fresh = initial_state(lpfamily.training.load(undisturbed).network, RECIPE.seed, "float32")
    assert np.linalg.norm(now - began) < 0.2 * np.linalg.norm(now - fresh["layers.0.weight"])


def test_stopped_before_its_first_checkpoint_a_run_looks_for_the_weights_again(tmp_path, source, monkeypatch):
    other, flags = shutil.copytree(source, tmp_path / "source"), (*PLAIN, "--init-from", tmp_path / "source")
    trained(tmp_path / "whole", *flags)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "save", stop)
        with pytest.raises(Stop):
            in_process(*flags, "--quiet", "--out", tmp_path / "run")
    away = other.rename(tmp_path / "away")
    resume = ("--resume", tmp_path / "run", "--quiet")
    assert_refused(in_process(*resume), other, "the run to begin from", "holds no config.json")
    away.rename(other)
    assert in_process(*resume).returncode == 0
    assert timeless(tmp_path / "run") == timeless(tmp_path / "whole")
    begun = shutil.copytree(tmp_path / "run", tmp_path / "begun", ignore=shutil.ignore_patterns("[!c]*"))
    (begun / "checkpoint.safetensors").unlink()
    assert in_process("--resume", other, "--epochs", 2, "--quiet").returncode == 0
    assert_refused(in_process("--resume", begun), other, "has another checkpoint", "start a new one")


def test_each_combination_begins_with_the_weights(tmp_path, source):
    flags = (*PLAIN[:4], "--epochs", 1, "--lr-decay", "none", "--init-from", source)
    trained(tmp_path / "run", *flags, "--grid", "lr=0.000001/0.0000001")
    began = load_file(source / "checkpoint.safetensors")["layers.0.weight"]
    for folder in tmp_path / "run/grid/lr=0.000001", tmp_path / "run/grid/lr=0.0000001", tmp_path / "run":
        weight = load_file(folder / "checkpoint.safetensors")["layers.0.weight"]
        np.testing.assert_allclose(weight, began, atol=1e-3)


@pytest.mark.parametrize(
    ("flags", "part"),
    [
        (("--model", "sigmoid-mlp"), "is a run of another network: it has 1 layers, this one 3"),
        (("--second-stage", "scratch", "--patience", 1), "--second-stage scratch begins with new weights"),
    ],
)
def test_unfit_initial_weights_are_refused_before_a_folder_is_made(tmp_path, source, flags, part):
    flags = (*flags, "--init-from", source, "--out", tmp_path / "run")
    assert_refused(in_process(*flags), f"--init-from {source}: ", part)
    assert not (tmp_path / "run").exists()


def test_weights_beyond_the_dtype_are_refused(tmp_path):
    wide = replace(OWN, dtype="float64", epochs=1)
    fit(wide, own(), "numpy", out=tmp_path / "wide")
    run, arrays = Run(tmp_path / "wide"), load_file(tmp_path / "wide/checkpoint.safetensors")
    run.save({name: 1e100 * array for name, array in arrays.items()}, position(run.folder), run.decisive)
    (run.folder / "result.json").unlink()
    fit(wide, own(), "numpy", out=tmp_path / "alike", init_from=run.folder)
    with pytest.raises(BadInput, match="has weights beyond float32; give --dtype float64"):
        fit(OWN, own(), "numpy", out=tmp_path / "narrow", init_from=run.folder)


def test_networks_differ_by_what_they_compute():
    def differences(image=(1, 8, 8), **values):
        recipe = replace(default("conv-maxout", "mnist", "plain", 2.0, 784), units=(4, 4, 8), kernel=(3, 2))
        recipe = replace(recipe, padding=(1, 0), pieces=(2,), pool=(2,))
        one, other = network_of(recipe, (1, 8, 8), 10), network_of(replace(recipe, **values), image, 10)
        return list(initial_weights.differences(one, other))

    assert differences(dropout=(), max_norm=(0.0,), lr_scale=(2.0,), init=1.0) == []
    assert differences(image=(1, 9, 9))[0] == ("it takes inputs of shape (1, 8, 8), this one (1, 9, 9)")
    assert differences(units=(4, 5, 8)) == ["its layer 1 has channels 4, this one's 5"]
    assert differences(stride=(1,)) == [f"its layer {index} has stride 2, this one's 1" for index in (0, 1)]
