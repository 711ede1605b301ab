"""Run `python -m lpfamily.train`, as users do or faster in this process, and check what it leaves."""

import contextlib
import io
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from helpers import TESTS
from helpers.data_files import idx
from lpfamily.report import drawing
from lpfamily.train import main
from lpfamily.training.runs import Run

NAME = "python -m lpfamily.train"
FILES = ["checkpoint.safetensors", "config.json", "curves.png", "metrics.jsonl", "result.json"]
SOFTMAX = ("--model", "softmax", "--epochs", "2")

_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NPROC"), "1")
# a killed process may leave half of a compiled program in the cache, and JAX warns the next process
_WITHOUT = {"LPFAMILY_DATA", "JAX_COMPILATION_CACHE_DIR"}
ENVIRONMENT = {name: value for name, value in os.environ.items() if name not in _WITHOUT} | _ONE_THREAD
WITH_HELPERS = ENVIRONMENT | {
    "PYTHONPATH": os.pathsep.join([str(TESTS), *filter(None, [ENVIRONMENT.get("PYTHONPATH")])])
}
"""The environment of a process that imports `helpers`."""


def command(*flags: object) -> list[str]:
    return [sys.executable, "-m", "lpfamily.train", *map(str, flags)]


def train(*flags: object, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command to its end, with variables added to the environment."""
    return _run(command(*flags), cwd, environment)


def python(code: str, *arguments: object, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run Python code to its end; its sys.argv holds the arguments."""
    return _run([sys.executable, "-c", code, *map(str, arguments)], cwd, environment)


def _run(arguments: list[str], cwd: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        arguments,
        cwd=cwd,
        env=ENVIRONMENT | environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def joined(size: int, *arguments: object, cwd: Path) -> None:
    """Run Python with these arguments in processes that have torchrun's variables, without torchrun."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    variables = {"TORCHELASTIC_RUN_ID": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    with contextlib.ExitStack() as stack:
        processes = []
        for rank in map(str, range(size)):
            ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": str(size)}
            process = subprocess.Popen(
                [sys.executable, *map(str, arguments)], cwd=cwd, env=WITH_HELPERS | variables | ranks,
                stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
            )  # fmt: skip
            processes.append(stack.enter_context(process))
            stack.callback(process.kill)
        for process in processes:
            _, words = process.communicate(timeout=300)
            assert process.returncode == 0, words


def in_process(*flags: object, command: Callable[..., int] = main) -> subprocess.CompletedProcess[str]:
    """Run the command in this process: it has already imported modules that take a new process seconds."""
    arguments, out, err = list(map(str, flags)), io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = command(arguments)
    return subprocess.CompletedProcess(arguments, code, out.getvalue(), err.getvalue())


def trained(folder: Path, *flags: object) -> subprocess.CompletedProcess[str]:
    """Train into a new folder with --quiet; raise unless that succeeds and prints only the folder."""
    result = in_process(*flags, "--quiet", "--out", folder)
    assert (result.returncode, result.stdout, result.stderr) == (0, f"{folder}\n", ""), result
    return result


def tabled(folder: Path, *flags: object) -> str:
    """Train into a new folder and return the printed table; raise unless that succeeds without a warning."""
    result = in_process(*flags, "--out", folder)
    assert (result.returncode, "warning" in result.stderr) == (0, False), result
    return result.stdout


def draw_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Write some bytes as curves.png: drawing takes most of the time of a short run in this process."""
    monkeypatch.setattr(drawing, "rendered", lambda *arguments: {"png": bytes(99)})


def start(
    *flags: object, cwd: Path, stderr: int = subprocess.PIPE, **environment: str
) -> subprocess.Popen[str]:
    """Start the command and return its process, which a `with` statement ends."""
    return subprocess.Popen(
        command(*flags),
        cwd=cwd,
        env=ENVIRONMENT | environment,
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
    )


def wait_for_epochs(folder: Path, epochs: int, process: subprocess.Popen[str]) -> None:
    """Wait until the metrics show this many epochs; raise if the process ends first, or after a minute."""
    deadline = time.monotonic() + 60
    while not (folder / "metrics.jsonl").exists() or len(metrics(folder)) < epochs:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, f"{folder} has no epoch {epochs}"
        time.sleep(0.002)


def assert_refused(result: subprocess.CompletedProcess[str], *parts: object) -> None:
    """Raise unless the command ended with code 2 and one line on stderr that contains the parts."""
    assert (result.returncode, result.stdout, len(result.stderr.splitlines())) == (2, "", 1), result
    assert result.stderr.startswith(f"{NAME}: "), result.stderr
    for part in parts:
        assert str(part) in result.stderr, f"{part} is not in {result.stderr}"


def unchanged(root: Path, act: Callable[[], Any]) -> Any:
    """Return act(); raise if it made, changed, touched or removed a file below the root."""
    before = _contents(root)
    result = act()
    after = _contents(root)
    different = [name for name in before.keys() | after.keys() if before.get(name) != after.get(name)]
    assert not different, f"{different} changed by {result}"
    return result


def _contents(root: Path) -> dict[str, tuple[int, bytes]]:
    paths = (path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): (path.stat().st_mtime_ns, path.read_bytes()) for path in paths}


def metrics(folder: Path) -> list[dict[str, Any]]:
    """Return the whole lines of a run's metrics."""
    whole = (folder / "metrics.jsonl").read_text().rpartition("\n")[0]
    return [json.loads(line) for line in whole.splitlines()]


def timeless(folder: Path) -> dict[str, Any]:
    """Return all results of a run except the plot and the times: equal runs agree in them."""
    result = json.loads((folder / "result.json").read_text())
    del result["seconds_per_epoch"], result["sha256"]
    lines = metrics(folder)
    for line in lines:
        del line["seconds"]
    return {
        "files": sorted(path.name for path in folder.iterdir()),
        "config.json": (folder / "config.json").read_text(),
        "metrics.jsonl": lines,
        "checkpoint.safetensors": (folder / "checkpoint.safetensors").read_bytes(),
        "result.json": result,
    }


def position(folder: Path) -> dict[str, Any]:
    """Return the position in the run that a checkpoint records."""
    with safe_open(folder / "checkpoint.safetensors", framework="numpy") as file:
        values: dict[str, Any] = json.loads(file.metadata()["lpfamily"])
    return {name: value for name, value in values.items() if name not in ("format", "sha256")}


def begun_with(folder: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    """Rewrite a run as if it had begun with another config; `edit` changes its config in place."""
    run, state, where = Run(folder), load_file(folder / "checkpoint.safetensors"), position(folder)
    config, result = run.config, run.result
    edit(config)
    run.write("config.json", config)
    checkpoint = run.save(state, where, run.decisive)
    if result is not None:
        run.finish(result | {"checkpoint": checkpoint})


def of_an_earlier_version(folder: Path) -> Path:
    """Rewrite the files of a run as they were before they had checksums."""
    if (folder / "checkpoint.safetensors").exists():
        state, where = load_file(folder / "checkpoint.safetensors"), position(folder)
        del where["metrics"]
        save_file(state, folder / "checkpoint.safetensors", {"lpfamily": json.dumps(where)})
    for name in ("config.json", "result.json", "grid.json"):
        if (folder / name).exists():
            values = json.loads((folder / name).read_text())
            for added in ("format", "sha256", "checkpoint"):
                values.pop(added, None)
            (folder / name).write_text(json.dumps(values, indent=2) + "\n")
    return folder


def small_mnist(folder: Path) -> Path:
    """Write 40 and 20 images of noise as MNIST's four files, which load faster than the digits."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(3)
    for prefix, count in (("train", 40), ("t10k", 20)):
        images, labels = rng.integers(0, 256, (count, 28, 28)), rng.integers(0, 10, count)
        (folder / f"{prefix}-images-idx3-ubyte").write_bytes(idx(images))
        (folder / f"{prefix}-labels-idx1-ubyte").write_bytes(idx(labels))
    return folder
