"""A run that is killed at any time and resumed ends as if nothing had happened."""

import json
import math
import os
import random
import shutil
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file

import lpfamily.training
from helpers.backends_under_test import NAMES
from helpers.commandline import (
    NAME,
    SOFTMAX,
    assert_refused,
    begun_with,
    draw_nothing,
    in_process,
    metrics,
    of_an_earlier_version,
    python,
    small_mnist,
    start,
    timeless,
    train,
    trained,
    unchanged,
    wait_for_epochs,
)
from helpers.interruptions import EVERY_INSTANT
from lpfamily.training import backends, data, runs
from lpfamily.training.backends import Machine
from lpfamily.training.commands.options import recipe_of
from lpfamily.training.errors import BadInput
from lpfamily.training.progress import Progress
from lpfamily.training.protocol import extension, stages
from lpfamily.training.recipes import PUBLISHED, default
from lpfamily.training.runs import Run

MAXOUT = ("--model", "maxout", "--units", "32,32", "--pieces", 3, "--init", 0.2, "--patience", 2)
CONVOLUTIONS = (
    *("--model", "conv-maxout", "--units", "4,4,8", "--pieces", 2, "--kernel", "3,2", "--padding", "1,0"),
    *("--pool", 2, "--stride", 2, "--max-norm", 2, "--init", 0.5, "--patience", 1),
)
STAGES = (
    *("--dropout", 0.9, "--layer-noise", 0.1, "--lr", 0.3, "--batch-size", 25, "--momentum-epochs", 10),
    *("--epochs", 20, "--second-epochs", 3, "--quiet"),
)
PENALTY = ("--objective", "penalty", "--second-stage", "scratch")
PERTURB = ("--ema", 0.95, "--objective", "perturb", "--second-stage", "continue")


def kill_after(epochs, folder, process):
    """Kill a run at a random instant of what follows these epochs; return how many seconds after them."""
    wait_for_epochs(folder, epochs, process)
    time.sleep(seconds := random.uniform(0, metrics(folder)[-1]["seconds"]))
    process.kill()
    process.communicate()
    assert process.returncode < 0
    return epochs, seconds


@pytest.mark.parametrize(
    ("backend", "flags"),
    [
        pytest.param(name, flags, id=f"{name}-{flags[1]}-{flags[-1]}")
        for name in NAMES
        # what a backend's state must be is a law of its own; here it is that all of it is kept
        for flags in {
            "numpy": (MAXOUT + PENALTY, MAXOUT + PERTURB),
            "jax": (MAXOUT + PERTURB,),  # each of three processes compiles
        }.get(name, (CONVOLUTIONS + PERTURB,))
    ],
)
def test_killed_in_both_stages_and_between_a_run_ends_with_the_bytes_of_the_undisturbed_one(
    tmp_path, backend, flags
):
    flags = ("--backend", backend, *flags, *STAGES)
    compiled = {  # JAX compiles for the undisturbed run alone, and the others start sooner
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    undisturbed = train(*flags, "--out", tmp_path / "undisturbed", cwd=tmp_path, **compiled)
    assert (undisturbed.returncode, undisturbed.stderr) == (0, "")
    expected, folder = timeless(tmp_path / "undisturbed"), tmp_path / "killed"
    first = [line["stage"] for line in expected["metrics.jsonl"]].count(1)
    assert 2 < first < 20, "patience ended the first stage, after its best epoch"
    assert len(expected["metrics.jsonl"]) > first, "there is a second stage"
    killed, run = [], (*flags, "--out", folder)
    for epochs in (1, first, first + 1) if "continue" in flags and backend == "numpy" else (first,):
        with start(*run, cwd=tmp_path, **compiled) as process:
            killed.append(kill_after(epochs, folder, process))
        run = ("--resume", folder, "--quiet")
    result = train(*run, cwd=tmp_path, **compiled)
    assert (result.returncode, result.stderr) == (0, ""), f"killed (after epoch, seconds): {killed}"
    assert timeless(folder) == expected, f"killed (after epoch, seconds): {killed}"


@pytest.mark.parametrize("how", ["killed before", "killed in", "no room in"])
def test_a_run_disturbed_at_any_file_access_can_be_resumed(tmp_path, how):
    """Killed before it; killed when 40 bytes are written; or with a disk that is full after 40 bytes."""
    small_mnist(tmp_path / "mnist")
    flags = (
        *("--model", "softmax", "--data", "mnist", "--data-dir", tmp_path, "--validation", 5, "--seed", 3),
        *("--dropout", 0.8, "--batch-size", 10, "--patience", 1, "--second-stage", "continue"),
        *("--second-epochs", 2),
    )
    result = python(EVERY_INSTANT, how, *flags, "--quiet", cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    expected, wrong = timeless(tmp_path / "undisturbed"), []
    assert [line["stage"] for line in expected["metrics.jsonl"]] == [1, 1, 1, 2, 2]
    outcomes = [json.loads(line) for line in result.stdout.splitlines() if line.startswith("[")]
    assert len(outcomes) == (30 if how == "killed before" else 17)
    for name, kept, (where, *said, code), (*remarks, again) in outcomes:
        folder, file = Path(name), where.removeprefix("open ").removeprefix(".").removesuffix(".new")
        if how == "no room in" and file != "config.json":
            (line,) = said
            assert line.startswith(f"{NAME}: {folder / file}: cannot be written (File too large); "), line
            known = "there is no checkpoint yet" if kept is None else f"after epoch {kept} is intact"
            assert known in line
            assert line.endswith(f"make room, or remove that cause, then go on with --resume {folder}")
            assert code == 2
        elif how != "no room in":
            assert (code < 0, said) == (True, []), (where, said)
        if (remarks, again) != ([], 0):
            wrong.append(f"{how} {where}, with epoch {kept} kept: ended with {again}, {remarks}")
        elif (got := timeless(folder)) != expected:
            different = [name for name in expected if got[name] != expected[name]]
            wrong.append(f"{how} {where}, with epoch {kept} kept: other {different}; {got['files']}")
    assert not wrong, "\n".join(wrong)


def test_resuming_a_finished_run_says_so_and_changes_nothing(tmp_path):
    folder = tmp_path / "run"
    trained(folder, *SOFTMAX)
    result = unchanged(tmp_path, lambda: in_process("--resume", folder))
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == f"{folder} is finished; nothing to do\n"


def lengthened(folder, **values):
    """Rewrite a finished run as one with an epoch to go, and change values of its config."""

    def edit(config):
        config |= values
        config["recipe"]["epochs"] += 1

    begun_with(folder, edit)
    (folder / "result.json").unlink()


@pytest.mark.parametrize("backend", NAMES)
def test_the_command_resumes_on_another_backend_and_says_so(tmp_path, backend):
    folder = tmp_path / "run"
    trained(folder, "--backend", "numpy", "--dtype", "float64", "--lr", 0.1, "--epochs", 1)
    lengthened(folder)
    begun = metrics(folder)
    result = in_process("--resume", folder, "--backend", backend, "--quiet")
    assert result.returncode == 0, result
    assert ("began with another backend" in result.stderr) == (backend != "numpy")
    assert [line["epoch"] for line in metrics(folder)] == [1, 2]
    assert metrics(folder)[:1] == begun


def test_every_other_change_of_a_resumed_run_is_announced(tmp_path):
    folder = tmp_path / "run"
    trained(folder, *SOFTMAX)
    for values, flags, words in (
        ({"tf32": True}, ("--tf32",), None),
        ({"tf32": False}, ("--tf32",), "no --tf32"),
        ({"compile": False}, ("--compile",), "no --compile"),
        ({"device": "cpu:0", "versions": {}}, ("--device", "cpu"), "another device and other versions"),
    ):
        lengthened(folder, **values)
        result = in_process("--resume", folder, *flags, "--quiet")
        assert result.returncode == 0, result
        said = f"{NAME}: the run began with {words}; the results may differ by rounding\n" if words else ""
        assert result.stderr.startswith(said)
        assert bool(result.stderr) == bool(words)
        begun_with(folder, lambda config: config.update(device="cpu"))


def test_a_run_of_a_version_without_bf16_goes_on(tmp_path):
    folder = tmp_path / "run"
    trained(folder, *SOFTMAX)
    lengthened(folder)
    begun_with(folder, lambda config: config.pop("bf16"))
    result = in_process("--resume", folder, "--quiet")
    assert (result.returncode, result.stderr) == (0, "")


def test_a_run_that_another_process_trains_is_not_resumed(tmp_path):
    folder = tmp_path / "run"
    flags = ("--model", "softmax", "--batch-size", 5, "--epochs", 8, "--quiet", "--out", folder)
    with start(*flags, cwd=tmp_path) as process:
        wait_for_epochs(folder, 1, process)
        refused = in_process("--resume", folder)
        assert process.poll() is None, "it was over too soon"
        assert_refused(refused, folder, "another process trains this run")
        assert process.wait(timeout=60) == 0
    assert [line["epoch"] for line in metrics(folder)] == list(range(1, 9))


def test_a_lock_covers_its_run_and_not_its_combinations(tmp_path):
    run = runs.create(tmp_path / "run", {})
    with run.locked():
        with pytest.raises(BadInput, match="another process trains"), run.locked():
            pass
        with runs.create(tmp_path / "run/grid/a", {}).locked():
            pass
    with run.locked():
        pass
    assert [path.name for path in run.folder.iterdir() if path.is_file()] == ["config.json"]


RECIPES = {
    "maxout": {"units": (32, 32), "pieces": (3,), "init": 0.2, "patience": 2},
    "conv-maxout": {
        "units": (4, 4, 8), "pieces": (2,), "kernel": (3, 2), "padding": (1, 0), "pool": (2,),
        "max_norm": (2.0,), "init": 0.5, "patience": 1,
    },
}  # fmt: skip
DRAWING = {
    "dropout": (0.9,), "layer_noise": (0.1,), "direction_dropout": "independent", "random_start": True,
    "steps": 2, "lr": 0.3, "batch_size": 25, "momentum_epochs": 10, "epochs": 20, "second_epochs": 2,
    "dtype": "float64",
}  # fmt: skip


class Stopped(Exception):
    pass


def gone_on_with(monkeypatch, folder, recipe, names):
    """Train, on the next of the backends after every checkpoint; return the run and its result."""
    run, save = runs.create(folder, {}), Run.save

    def saved(*args):
        save(*args)
        if len(names) > 1 and args[-1] != runs.HEALTHY:  # which is kept again
            raise Stopped

    monkeypatch.setattr(Run, "save", saved)
    digits = data.load("digits")
    while True:
        try:
            result = stages.train(
                run, recipe, digits, backends.find(names[0]),
                machine=Machine(), progress=Progress(quiet=True),
            )  # fmt: skip
        except Stopped:
            names = [*names[1:], names[0]]
        else:
            monkeypatch.undo()
            return run, result


@pytest.mark.parametrize("second_stage", ["continue", "scratch"])
@pytest.mark.parametrize(
    ("model", "one", "other"),
    [("maxout", "numpy", name) for name in NAMES]
    + [("conv-maxout", "torch", "jax")] * ({"torch", "jax"} <= set(NAMES)),
)
def test_a_run_that_changes_backends_at_every_checkpoint_equals_that_of_either(
    tmp_path, monkeypatch, model, one, other, second_stage
):
    recipe = replace(
        default(model, "digits", "perturb", 2.0, 64),
        second_stage=second_stage, **(RECIPES[model] | DRAWING),
    )  # fmt: skip
    changed, result = gone_on_with(monkeypatch, tmp_path / "changed", recipe, [one, other])
    lines, state = changed.metrics(), load_file(changed.folder / runs.CHECKPOINT)
    assert {line["stage"] for line in lines} == {1, 2}
    for name in {one, other}:
        run, expected = gone_on_with(monkeypatch, tmp_path / name, recipe, [name])
        for key in "test_error", "one_step_unused", "parameters", "epochs":
            assert result[key] == expected[key]
        assert len(lines) == len(run.metrics())
        for found, line in zip(lines, run.metrics(), strict=True):
            assert found | {"seconds": 0} == pytest.approx(line | {"seconds": 0}, rel=1e-9)
        undisturbed = load_file(run.folder / runs.CHECKPOINT)
        assert state.keys() == undisturbed.keys()
        for key in state:
            np.testing.assert_allclose(state[key], undisturbed[key], rtol=0, atol=1e-9, err_msg=key)


# More epochs


SMALL = (*SOFTMAX[:2], "--test-examples", 20)
TWO_STAGES = (
    *(*SMALL, "--objective", "plain", "--batch-size", 20, "--patience", 2, "--lr", 2),
    *("--second-stage", "continue", "--second-epochs", 3),
)
LONGER = {  # flags, epochs before and after, and what a run of as many from the start is told too
    "one stage": (SMALL, 2, 4, ("--monitor", 2)),
    "a look after each epoch": ((*SMALL, "--monitor", 1), 1, 2, ()),
    "stage one, to be ended by patience": ((*TWO_STAGES[:-4], "--second-stage", "none"), 5, 12, ()),
    "stage two, after patience": (TWO_STAGES, 7, 12, ()),
}


@pytest.fixture
def no_curves(monkeypatch):
    draw_nothing(monkeypatch)


def of_more_epochs(folder):
    """Return the results of a run without the record of its former epochs, and this record."""
    values = timeless(folder)
    config = json.loads(values["config.json"])
    raised = config.pop("raised", [])
    del config["sha256"]
    return values | {"config.json": config}, raised


@pytest.mark.parametrize(("flags", "epochs", "more", "added"), LONGER.values(), ids=LONGER)
def test_more_epochs_end_with_the_bytes_of_a_run_that_began_with_them(
    tmp_path, no_curves, flags, epochs, more, added
):
    folder, flags = tmp_path / "run", (*flags, "--seed", 1)
    trained(folder, *flags, "--epochs", epochs)
    result = in_process("--resume", folder, "--epochs", more, "--quiet")
    looking = f"{NAME}: the run still checks for catastrophic overfitting every {epochs} epochs\n"
    assert (result.returncode, result.stderr) == (0, looking if added else "")
    trained(tmp_path / "whole", *flags, "--epochs", more, *added)
    found, raised = of_more_epochs(folder)
    assert found == of_more_epochs(tmp_path / "whole")[0]
    assert [each["epochs"] for each in raised] == [epochs]
    for again in (), ("--epochs", more):
        result = unchanged(tmp_path, lambda again=again: in_process("--resume", folder, *again))
        assert (result.returncode, result.stdout) == (0, f"{folder} is finished; nothing to do\n")


def test_stopped_while_it_is_given_more_epochs_a_run_can_be_given_yet_more(tmp_path, no_curves, monkeypatch):
    """Before each file that is written or removed; what was trained can be loaded all the time."""
    flags = (*SMALL, "--patience", 1, "--second-stage", "none", "--lr", 0.1)
    trained(tmp_path / "run", *flags, "--epochs", 1, "--monitor", 1)
    trained(tmp_path / "whole", *flags, "--epochs", 3, "--monitor", 1)
    expected, _ = of_more_epochs(tmp_path / "whole")
    assert len(expected["metrics.jsonl"]) == 3
    left = 0

    def stopping(act):
        def stop_or_act(*arguments, **options):
            nonlocal left
            left -= 1
            if left < 0:
                raise Stopped
            return act(*arguments, **options)

        return stop_or_act

    for number in range(8):  # then it is a run as any other
        folder, left = shutil.copytree(tmp_path / "run", tmp_path / str(number)), number
        with monkeypatch.context() as patch:
            for name in "fsync", "unlink":
                patch.setattr(os, name, stopping(getattr(os, name)))
            with pytest.raises(Stopped):
                in_process("--resume", folder, "--epochs", 2, "--quiet")
        assert lpfamily.training.load(folder).epoch in (1, 2)
        assert in_process("--resume", folder, "--epochs", 3, "--quiet").returncode == 0
        assert of_more_epochs(folder)[0] == expected, number


NOT_LONGER = {
    "fewer": ((*SMALL, "--epochs", 2), 1, "--epochs 1: the limit of the run is 2"),
    "a grid": (
        (*SMALL, "--epochs", 2, "--grid", "lr=0.1/0.2"), 3, "--epochs 3: the choice by --grid depends"
    ),
    "stage one is over": ((*TWO_STAGES, "--epochs", 6), 9, "--epochs 9: epoch 6 was the last of stage one"),
    "looks in both stages": (
        (*TWO_STAGES, "--objective", "perturb", "--sigma", 0.01, "--epochs", 9), 12,
        "stage one checked for catastrophic overfitting every 9 epochs, and stage two every 3",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("flags", "more", "part"), NOT_LONGER.values(), ids=NOT_LONGER)
def test_more_epochs_are_refused_where_a_longer_run_would_have_differed(
    tmp_path, no_curves, flags, more, part
):
    trained(tmp_path / "run", *flags, "--seed", 1)
    refused = unchanged(tmp_path, lambda: in_process("--resume", tmp_path / "run", "--epochs", more))
    assert_refused(refused, part, "start a new run")


def test_a_run_without_checksums_keeps_its_epochs(tmp_path, no_curves):
    trained(tmp_path / "run", *SOFTMAX)
    of_an_earlier_version(tmp_path / "run")
    refused = unchanged(tmp_path, lambda: in_process("--resume", tmp_path / "run", "--epochs", 3))
    assert refused.returncode == 2
    assert "an earlier version began this run" in refused.stderr.splitlines()[-1]


def test_a_run_whose_version_knew_fewer_options_can_be_given_more_epochs(tmp_path, no_curves):
    flags, lacking = (*SMALL, "--objective", "plain"), ("monitor", "activation", "recipe")
    trained(tmp_path / "run", *flags, "--epochs", 1)

    def edit(config):
        for name in lacking:
            del config["recipe"][name]

    begun_with(tmp_path / "run", edit)
    assert in_process("--resume", tmp_path / "run", "--epochs", 2, "--quiet").returncode == 0
    assert not set(lacking) & Run(tmp_path / "run").config["recipe"].keys()
    trained(tmp_path / "whole", *flags, "--epochs", 2)
    run, whole = (load_file(tmp_path / name / runs.CHECKPOINT) for name in ("run", "whole"))
    for name, array in whole.items():
        np.testing.assert_array_equal(run[name], array)


@given(
    model=st.sampled_from(tuple(PUBLISHED)),
    source=st.sampled_from(data.NAMES),
    second=st.sampled_from([{}, {"second_stage": "none"}, {"second_stage": "continue", "patience": 5}]),
    epochs=st.tuples(st.integers(1, 1500), st.integers(1, 1500)).map(sorted),
)
def test_more_epochs_are_those_of_the_command(model, source, second, epochs):
    shape = data.source(source).shape
    split = data.Split(np.zeros((1, math.prod(shape)), np.float32), np.zeros(1, int))
    dataset = data.Dataset(source, split, split, 10, shape)
    few, many = (recipe_of({"model": model, "epochs": count} | second, dataset) for count in epochs)
    assert extension.with_epochs(few, many.epochs) == many


def test_the_rate_of_a_quick_recipe_falls_until_its_last_epoch(tmp_path, no_curves):
    folder, flags = tmp_path / "run", ("--data", "digits", "--recipe", "quick", "--units", 10)
    trained(folder, *flags, "--epochs", 2)
    assert [line["lr"] for line in Run(folder).metrics()] == pytest.approx([0.1 * 0.505, 0.001])
    more = unchanged(folder, lambda: in_process("--resume", folder, "--epochs", 3))
    assert_refused(more, "--epochs 3", "the learning rate of the quick recipe", "start a new run")


# The files of a run


def run_with(folder, *lines):
    run = runs.create(folder, {})
    for line in lines:
        run.log(line)
    return run


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    run = runs.create(tmp_path, {})
    run.save({"bias": np.zeros(3)}, {"epoch": 1}, run.decisive)

    def fail(descriptor):
        raise OSError("no space left on device")

    def save():
        with pytest.raises(OSError, match="no space"):
            run.save({"bias": np.ones(3)}, {"epoch": 2}, run.decisive)

    monkeypatch.setattr(os, "fsync", fail)
    unchanged(tmp_path, save)


def test_a_line_of_metrics_that_was_cut_short_is_dropped(tmp_path):
    run = run_with(tmp_path, {"epoch": 1}, {"epoch": 2})
    path = tmp_path / runs.METRICS
    whole = path.read_bytes()
    for torn in (b'{"epo', b'{"epoch": 3}', b"\xff"):
        path.write_bytes(whole + torn)
        assert run.cut_metrics(2) == [{"epoch": 1}, {"epoch": 2}]
        assert path.read_bytes() == whole


def test_epochs_that_the_checkpoint_does_not_know_are_dropped(tmp_path):
    run = run_with(tmp_path, {"epoch": 1}, {"epoch": 2}, {"epoch": 3})
    assert run.cut_metrics(1) == [{"epoch": 1}]
    assert (tmp_path / runs.METRICS).read_text() == '{"epoch": 1}\n'


def test_metrics_reach_the_disk_before_the_checkpoint(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(os.fstat(descriptor).st_ino))
    run = run_with(tmp_path, {"epoch": 1})
    run.save({"bias": np.zeros(3)}, {"epoch": 1}, run.decisive)
    names = {(tmp_path / name).stat().st_ino: name for name in (runs.METRICS, runs.CHECKPOINT)}
    assert [names[number] for number in synced if number in names] == [runs.METRICS, runs.CHECKPOINT]
