"""torchrun: two processes train as one does; if one is lost, the run ends and can be resumed."""

import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from helpers.backends_under_test import NAMES
from helpers.commandline import (
    ENVIRONMENT,
    NAME,
    SOFTMAX,
    assert_refused,
    in_process,
    joined,
    timeless,
    train,
    unchanged,
    wait_for_epochs,
)

if "torch" not in NAMES:
    pytest.skip("torch is not under test", allow_module_level=True)

import torch

from helpers.trajectories import CASES, NETWORKS, assert_same, trained
from lpfamily.training import backends
from lpfamily.training.errors import BadInput

pytestmark = pytest.mark.torch


# every process trains all cases, its part of them; the first keeps what came of it
SCRIPT = """
import sys
from helpers import trajectories
from safetensors.numpy import save_file
from lpfamily.training import backends
from lpfamily.training.backends.leading import follow, leading

backend = backends.find("torch")
team = backend.join("cpu")
if team.rank:
    follow(backend, team)
else:
    with leading(backend, team) as leader:
        trajectories.backends.find = lambda name: leader
        for place, (network, objective) in enumerate(trajectories.CASES):
            state = trajectories.trained("torch", trajectories.NETWORKS[network], objective)
            save_file(state, f"{sys.argv[1]}/{place}.safetensors")
team.leave()
"""
"""A batch of 30 shared out among 4 has parts of 7 and 8, and the last one, of 2, leaves two with nothing."""


@contextmanager
def launched(folder, *flags):
    """Start the command in two processes; end it and its launcher with the block."""
    launcher = ("torch.distributed.run", "--nproc-per-node", 2, "--standalone")
    arguments = [sys.executable, "-m", *launcher, "-m", "lpfamily.train", "--quiet", *flags]
    process = subprocess.Popen(
        list(map(str, arguments)),
        cwd=folder,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            yield process
        finally:
            process.terminate()


def rank(process, wanted):
    """Return the process of this rank that a launcher has started."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    for child in children:
        if f"RANK={wanted}" in Path(f"/proc/{child}/environ").read_text().split("\0"):
            return int(child)
    raise AssertionError(f"no process of rank {wanted}")


def test_two_processes_follow_the_trajectory_of_one(tmp_path):
    from safetensors.numpy import load_file

    joined(4, "-c", SCRIPT, tmp_path, cwd=tmp_path)
    for place, (network, objective) in enumerate(CASES):
        found = load_file(tmp_path / f"{place}.safetensors")
        assert_same(trained("torch", NETWORKS[network], objective), found)


FLAGS = ("--backend", "torch", "--model", "maxout", "--dtype", "float64", "--epochs", 12)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="finds processes by /proc")
def test_a_lost_process_ends_the_run_which_can_be_resumed(tmp_path):
    joined(2, "-m", "lpfamily.train", "--quiet", *FLAGS, "--out", "whole", cwd=tmp_path)
    flags = (*FLAGS, "--out", "killed")
    for lost, epochs, last_word in (
        (1, 2, f"is intact; go on with {NAME} --resume killed"),
        (0, 6, "another process of this run has ended"),
    ):
        with launched(tmp_path, *flags) as process:
            wait_for_epochs(tmp_path / "killed", epochs, process)
            os.kill(rank(process, lost), signal.SIGKILL)
            begin = time.monotonic()
            _, words = process.communicate(timeout=60)
            assert process.returncode == 1
            assert time.monotonic() - begin < 30
            said = [line for line in words.splitlines() if line.startswith(f"{NAME}: ")]
            # unless torchrun, which ends the other one too, was before it
            assert last_word in said[0] if said else "Signal 15 (SIGTERM)" in words, words
        flags = ("--resume", "killed")
    with launched(tmp_path, *flags) as process:
        _, words = process.communicate(timeout=120)
        assert process.returncode == 0, words
    assert timeless(tmp_path / "killed") == timeless(tmp_path / "whole")


IN_FOLDERS = """
import os, sys
from lpfamily.train import main
folder, *flags = sys.argv[1:]
os.chdir(f"{folder}/{os.environ['RANK']}")
sys.exit(main(flags))
"""


@pytest.mark.parametrize("finished", [False, True])
def test_only_the_first_process_needs_the_run_folder_to_resume(tmp_path, finished):
    for rank in "01":
        (tmp_path / rank).mkdir()
    run = tmp_path / "0/run"
    begun = in_process("--backend", "torch", *SOFTMAX, "--quiet", "--out", run)
    assert begun.returncode == 0, begun
    if not finished:
        (run / "result.json").unlink()
    before = sorted(path.name for path in run.iterdir())
    flags = ("--resume", "run", "--backend", "torch", "--device", "cpu")
    joined(2, "-c", IN_FOLDERS, tmp_path, *flags, cwd=tmp_path)
    assert (sorted(path.name for path in run.iterdir()) == before) == finished
    assert (run / "result.json").exists()
    assert list((tmp_path / "1").iterdir()) == []


@pytest.mark.parametrize(
    "device",
    [
        "cudaa",
        "hpu",
        pytest.param("cuda", marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is one")),
    ],
)
def test_a_device_that_torch_lacks_is_bad_input(monkeypatch, device):
    backend = backends.find("torch")
    with pytest.raises(BadInput, match=f"--device {device}: torch cannot use it"):
        backend.check_device(device)
    torchruns = {"TORCHELASTIC_RUN_ID": "1", "WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}
    for name, value in torchruns.items():
        monkeypatch.setenv(name, value)
    if device != "hpu":  # which torch knows by name
        with pytest.raises(BadInput, match=f"--device {device}: torch cannot use it"):
            backend.join(device)


def test_without_torchrun_there_is_one_process_whatever_its_variables_say(monkeypatch):
    for size in "", "two", "2":
        monkeypatch.setenv("WORLD_SIZE", size)
        assert backends.find("torch").join("cpu").size == 1


@pytest.mark.parametrize(
    ("variables", "problem"),
    [
        ({"WORLD_SIZE": "x"}, "WORLD_SIZE must be a whole number from 1 to 999999999; got 'x'"),
        ({"WORLD_SIZE": ""}, "WORLD_SIZE must be a whole number from 1 to 999999999; got ''"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE must be a whole number from 1 to 999999999; got '0'"),
        ({"WORLD_SIZE": "-2"}, "WORLD_SIZE must be a whole number"),
        ({"WORLD_SIZE": "2.0"}, "WORLD_SIZE must be a whole number"),
        ({"WORLD_SIZE": "9" * 5000}, "WORLD_SIZE must be a whole number"),
        ({"RANK": None}, "RANK must be a whole number from 0 to 1; got ''"),
        ({"RANK": "x"}, "RANK must be a whole number from 0 to 1; got 'x'"),
        ({"RANK": "2"}, "RANK must be a whole number from 0 to 1; got '2'"),
        ({"MASTER_PORT": "x"}, "MASTER_PORT must be a whole number from 0 to 65535; got 'x'"),
        ({"MASTER_PORT": "65536"}, "MASTER_PORT must be a whole number from 0 to 65535; got '65536'"),
        ({"MASTER_ADDR": None}, "torch cannot join the processes of MASTER_ADDR= and MASTER_PORT="),
    ],
)
def test_invalid_variables_of_torchrun_are_bad_input(tmp_path, monkeypatch, variables, problem):
    torchruns = {"TORCHELASTIC_RUN_ID": "1", "WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}
    for name, value in (torchruns | {"MASTER_ADDR": "localhost", "MASTER_PORT": "1"} | variables).items():
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)
    result = unchanged(tmp_path, lambda: in_process("--backend", "torch", "--out", tmp_path / "run"))
    assert_refused(result, problem, "torchrun sets it")


def test_a_backend_of_one_process_refuses_torchrun(tmp_path):
    result = unchanged(
        tmp_path,
        lambda: train("--backend", "numpy", cwd=tmp_path, TORCHELASTIC_RUN_ID="1", WORLD_SIZE="2", RANK="0"),
    )
    assert result.returncode == 2
    assert "--backend numpy cannot be used with torchrun" in result.stderr
