"""`--resume`: a damaged run is left alone and its file named, and the recipe of a run cannot be changed."""

import json
import shutil

import numpy as np
import pytest

from helpers.commandline import (
    SOFTMAX,
    assert_refused,
    idx,
    in_process,
    metrics,
    small_mnist,
    train,
    trained,
    unchanged,
)
from helpers.run_edits import (
    annotated,
    arrays,
    changed,
    made_a_folder,
    removed,
    retyped,
    rewritten,
    unchanged_arrays,
)


def test_curves_do_not_follow_a_link(begun, tmp_path):
    folder = shutil.copytree(begun, tmp_path / "run")
    (tmp_path / "mine").write_text("mine")
    (folder / "curves.png").symlink_to(tmp_path / "mine")
    assert in_process("--resume", folder, "--quiet").returncode == 0
    assert (tmp_path / "mine").read_text() == "mine"
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert not (folder / "curves.png").is_symlink()


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """A run that stopped after 2 of 4 epochs."""
    root = tmp_path_factory.mktemp("begun")
    small_mnist(root / "mnist")
    flags = ("--data", "mnist", "--data-dir", root, "--validation", 5, "--batch-size", 10)
    trained(root / "run", *SOFTMAX, *flags)
    for name in ("result.json", "curves.png"):
        (root / "run" / name).unlink()
    changed(recipe={"epochs": 4})(root / "run")
    return root / "run"


BIAS = "layers.0.bias"


CHECKPOINTS = {
    "no file": removed("checkpoint.safetensors"),
    "empty": rewritten("checkpoint.safetensors", b""),
    "truncated": rewritten("checkpoint.safetensors", lambda content: content[:-10]),
    "garbage": rewritten("checkpoint.safetensors", b"garbage" * 99),
    "not a number": arrays(lambda state: state | {BIAS: np.full(10, np.nan, np.float32)}),
    "infinite": arrays(lambda state: state | {BIAS: np.full(10, -np.inf, np.float32)}),
    "an array less": arrays(lambda state: {name: state[name] for name in state if name != BIAS}),
    "an array more": arrays(lambda state: state | {"layers.1.bias": state[BIAS]}),
    "another shape": arrays(lambda state: state | {BIAS: np.zeros(11, np.float32)}),
    "float64": arrays(lambda state: {name: array.astype(np.float64) for name, array in state.items()}),
    "bfloat16": retyped("BF16", 2),
    "float8": retyped("F8_E4M3", 1),
    "no epoch": arrays(unchanged_arrays, without=["epoch"]),
    "epoch as text": arrays(unchanged_arrays, epoch="2"),
    "half an epoch": arrays(unchanged_arrays, epoch=1.5),
    "epoch below 0": arrays(unchanged_arrays, epoch=-1),
    "epoch past the last": arrays(unchanged_arrays, epoch=5),
    "the best one to come": arrays(unchanged_arrays, best=3, best_error=0.5),
    "no best parameters": arrays(unchanged_arrays, best=1, best_error=0.5),
    "a second stage begun later": arrays(unchanged_arrays, best=1, first=3, target=0.1),
    "a target as text": arrays(unchanged_arrays, best=1, first=2, target="low"),
    "brackets": annotated(100_000 * "["),
}


CONFIGS = {
    "truncated": rewritten("config.json", lambda content: content[:100]),
    "a list": rewritten("config.json", b"[]"),
    "not text": rewritten("config.json", b"\xff\xfe\xfa"),
    "no versions": changed(without=["versions"]),
    "no tf32": changed(without=["tf32"]),
    "no compile": changed(without=["compile"]),
    "an unknown choice": changed(recipe={"temperature": 3}),
    "an unknown model": changed(recipe={"model": "resnet"}),
    "p below 1": changed(recipe={"p": 0.5}),
    "lr as text": changed(recipe={"lr": "fast"}),
    "half an epoch": changed(recipe={"epochs": 3.5}),
    "no batch": changed(recipe={"batch_size": 0}),
    "an unknown objective": changed(recipe={"objective": "pertub"}),
    "no data_dir": changed(without=["data_dir"]),
    "no checksum": changed(without=["data_sha256"]),
    "no backend": changed(without=["backend"]),
    "no device": changed(without=["device"]),
    "a number as folder": changed(data_dir=5),
    "brackets": rewritten("config.json", 100_000 * b"["),
}


METRICS = {
    "garbage": rewritten("metrics.jsonl", b"garbage\n"),
    "a list": rewritten("metrics.jsonl", b"[1]\n"),
    "no epoch": rewritten("metrics.jsonl", b'{"loss": 1}\n'),
    "an epoch less": rewritten("metrics.jsonl", lambda content: content.splitlines(keepends=True)[0]),
    "only epochs": rewritten("metrics.jsonl", b'{"epoch": 1}\n{"epoch": 2}\n'),
    "loss as text": rewritten(
        "metrics.jsonl", lambda content: content.replace(b'"loss": ', b'"loss": "",\n"_": ')
    ),
    "brackets": rewritten("metrics.jsonl", 100_000 * b"[" + b"\n"),
    "a folder": made_a_folder("metrics.jsonl"),
}


DAMAGES = {
    "checkpoint.safetensors": CHECKPOINTS,
    "config.json": CONFIGS,
    "metrics.jsonl": METRICS,
    "result.json": {"truncated": rewritten("result.json", b'{"test_er')},
}


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        pytest.param(name, damage, id=f"{name} {what}")
        for name, damages in DAMAGES.items()
        for what, damage in damages.items()
    ],
)
def test_a_damaged_run_is_left_alone_and_the_file_is_named(begun, tmp_path, name, damage):
    folder = shutil.copytree(begun, tmp_path / "run")
    damage(folder)
    result = unchanged(tmp_path, lambda: in_process("--resume", folder, "--quiet"))
    assert_refused(result, folder / name, "restore")


def test_a_damaged_checkpoint_is_refused_in_one_line_without_quiet(begun, tmp_path):
    folder = shutil.copytree(begun, tmp_path / "run")
    CHECKPOINTS["truncated"](folder)
    assert_refused(train("--resume", folder, cwd=tmp_path), folder / "checkpoint.safetensors")


def test_the_undamaged_run_can_be_resumed(begun, tmp_path):
    folder = shutil.copytree(begun, tmp_path / "run")
    result = in_process("--resume", folder, "--quiet")
    assert (result.returncode, result.stderr) == (0, "")
    assert [line["epoch"] for line in metrics(folder)] == [1, 2, 3, 4]


def test_a_run_is_not_resumed_on_other_data(begun, tmp_path):
    folder, other = shutil.copytree(begun, tmp_path / "run"), small_mnist(tmp_path / "mnist")
    (other / "train-labels-idx1-ubyte").write_bytes(idx(np.zeros(40)))
    result = unchanged(tmp_path, lambda: in_process("--resume", folder, "--data-dir", tmp_path))
    assert_refused(result, f"--resume {folder}", "other mnist data", "--data-dir")


@pytest.mark.parametrize("given", ["--data-dir", "LPFAMILY_DATA"])
def test_a_resumed_run_knows_the_folder_of_its_data(tmp_path, monkeypatch, given):
    monkeypatch.chdir(small_mnist(tmp_path / "mnist").parent)
    flags = ("--data", "mnist", "--validation", 5, "--batch-size", 10)
    if given == "--data-dir":
        trained(tmp_path / "run", *SOFTMAX, *flags, given, ".")
    else:
        monkeypatch.setenv(given, ".")
        trained(tmp_path / "run", *SOFTMAX, *flags)
        monkeypatch.delenv(given)
    monkeypatch.chdir("/")
    (tmp_path / "run/result.json").unlink()
    result = in_process("--resume", tmp_path / "run", "--quiet")
    assert (result.returncode, result.stderr) == (0, "")


def test_digits_need_no_folder(tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    trained(tmp_path / "run", *SOFTMAX, "--data-dir", tmp_path / "loop")
    assert json.loads((tmp_path / "run/config.json").read_text())["data_dir"] is None


@pytest.mark.parametrize("folder", ["nothing", "empty", "file", "x" * 300])
def test_only_a_run_can_be_resumed(tmp_path, folder):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    result = unchanged(tmp_path, lambda: train("--resume", folder, cwd=tmp_path))
    assert_refused(result, f"--resume {folder}", "not a run", "give the folder of one")


@pytest.mark.parametrize("flags", [("--lr", 0.1), ("--out", "other"), ("--dtype", "float64")])
def test_a_resumed_run_keeps_its_recipe(begun, tmp_path, flags):
    result = unchanged(begun, lambda: in_process("--resume", begun, *flags))
    assert_refused(result, flags[0], "cannot be changed", "start a new run")
