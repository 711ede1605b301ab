"""A run that is killed, whenever, and gone on with ends as if nothing had happened."""

import json
import os
import random
import time

import numpy as np
import pytest
from backends_under_test import NAMES
from commandline import (
    SOFTMAX,
    metrics,
    python,
    small_mnist,
    start,
    timeless,
    train,
    trained,
    unchanged,
    wait_for_epochs,
)
from safetensors.numpy import load_file

from lpfamily.training import runs
from lpfamily.training.runs import Run

EPOCHS = 5
LONG = ("--epochs", EPOCHS, "--batch-size", 25, "--lr", 0.1, "--quiet")


def resume(folder, *flags):
    return start("--resume", folder, "--quiet", *flags, cwd=folder.parent)


def kill_in(epoch, folder, process):
    """Kill a run in the middle of an epoch, by the length of the one before."""
    wait_for_epochs(folder, epoch - 1, process)
    time.sleep(metrics(folder)[-1]["seconds"] / 2)
    process.kill()
    process.communicate()
    assert process.returncode < 0
    assert len(metrics(folder)) < EPOCHS


@pytest.mark.parametrize("objective", ["perturb", "penalty"])
@pytest.mark.parametrize("backend", NAMES)
def test_killed_three_times_a_run_ends_with_the_bytes_of_the_undisturbed_one(tmp_path, backend, objective):
    flags = ("--backend", backend, "--objective", objective, *LONG)
    trained(tmp_path / "undisturbed", *flags)
    folder = tmp_path / "killed"
    with start(*flags, "--out", folder, cwd=tmp_path) as process:
        wait_for_epochs(folder, 1, process)  # the checkpoint of epoch 1 may be there or not
        process.kill()
    with resume(folder) as process:
        kill_in(3, folder, process)
    seconds = random.uniform(0, 3)
    with resume(folder) as process:
        time.sleep(seconds)  # from before the first import to after the last epoch
        process.kill()
    result = train("--resume", folder, "--quiet", cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, ""), seconds
    assert timeless(folder) == timeless(tmp_path / "undisturbed"), f"killed after {seconds} s"


EVERY_INSTANT = """
import os, signal, sys
from pathlib import Path
import matplotlib.figure, safetensors.numpy, lpfamily.report.plots, lpfamily_numpy, sklearn.datasets
from lpfamily.train import main

flags = sys.argv[1:]

def child(act, *arguments):
    pid = os.fork()
    if not pid:
        os._exit(act(*arguments))
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

def killed_at(instant, folder):
    left = instant
    def hook(event, arguments):
        nonlocal left
        paths = [str(argument) for argument in arguments[:2]]
        if event in ("open", "os.rename", "os.mkdir") and any(path.startswith(folder) for path in paths):
            left -= 1
            if left < 0:
                print(instant, event, Path(paths[-1 if event == "os.rename" else 0]).name, flush=True)
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(hook)
    return main([*flags, "--out", folder])

instant = 0
while child(killed_at, instant, folder := str(Path(f"at-{instant}").resolve())):
    begun = Path(folder, "config.json").exists()
    code = child(main, ["--resume", folder, "--quiet"] if begun else [*flags, "--out", folder])
    print(code, flush=True)
    instant += 1
"""


def test_killed_before_any_touch_of_a_file_a_run_goes_on(tmp_path):
    small_mnist(tmp_path / "mnist")
    flags = (*SOFTMAX, "--data", "mnist", "--data-dir", tmp_path, "--validation", 5)
    trained(tmp_path / "undisturbed", *flags)
    result = python(EVERY_INSTANT, *flags, "--quiet", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    lines = [line for line in result.stdout.splitlines() if line[0].isdecimal()]
    assert len(lines) > 20, result
    expected, wrong = timeless(tmp_path / "undisturbed"), []
    for instant, code in zip(lines[::2], lines[1::2], strict=True):
        folder = tmp_path / f"at-{instant.split()[0]}"
        if code != "0":
            wrong.append(f"killed before {instant}: ended with {code}")
        elif (got := timeless(folder)) != expected:
            different = [name for name in expected if got[name] != expected[name]]
            wrong.append(f"killed before {instant}: other {different}; {got['files']}")
    assert not wrong, "\n".join([*wrong, result.stderr])


def test_going_on_with_a_finished_run_says_so_and_changes_nothing(tmp_path):
    folder = tmp_path / "run"
    trained(folder, *SOFTMAX)
    result = unchanged(tmp_path, lambda: train("--resume", folder, cwd=tmp_path))
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == f"{folder} is finished; nothing to do\n"


@pytest.mark.parametrize("backend", NAMES)
def test_a_run_goes_on_on_another_backend(tmp_path, backend):
    """From numpy or to numpy makes no difference; the first run is shorter, and its length then changed."""
    states = []
    for first, second in (("numpy", backend), (backend, "numpy")):
        folder = tmp_path / f"{first}, {second}, {len(states)}"
        trained(folder, "--backend", first, "--dtype", "float64", "--lr", 0.1, "--epochs", 1)
        config = json.loads((folder / "config.json").read_text())
        config["recipe"]["epochs"] = 2
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "result.json").unlink()
        begun = metrics(folder)
        result = train("--resume", folder, "--backend", second, "--quiet", cwd=tmp_path)
        assert result.returncode == 0, result
        assert ("began with another backend" in result.stderr) == (first != second)
        assert metrics(folder)[:1] == begun
        states.append(load_file(folder / "checkpoint.safetensors"))
    one, other = states
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_allclose(one[name], other[name], atol=1e-4)


# The files of a run


def run_with(folder, *lines):
    run = Run(folder)
    for line in lines:
        run.log(line)
    return run


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    run = Run(tmp_path)
    run.save({"bias": np.zeros(3)}, 1)

    def fail(descriptor):
        raise OSError("no space left on device")

    def save():
        with pytest.raises(OSError, match="no space"):
            run.save({"bias": np.ones(3)}, {"epoch": 2})

    monkeypatch.setattr(os, "fsync", fail)
    unchanged(tmp_path, save)


def test_a_line_that_was_cut_short_is_dropped(tmp_path):
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
    run.save({"bias": np.zeros(3)}, {"epoch": 1})
    names = {(tmp_path / name).stat().st_ino: name for name in (runs.METRICS, runs.CHECKPOINT)}
    assert [names[number] for number in synced if number in names] == [runs.METRICS, runs.CHECKPOINT]
