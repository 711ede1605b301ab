"""`python -m lpfamily.train`, judged by what it leaves behind: as a user runs it, or without the wait."""

import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np

from lpfamily.train import main

NAME = "python -m lpfamily.train"
FILES = ["checkpoint.safetensors", "config.json", "curves.png", "metrics.jsonl", "result.json"]
SOFTMAX = ("--model", "softmax", "--epochs", "2")

_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NPROC"), "1")
# a process that is killed may leave half of a compiled program, of which JAX warns the next
_WITHOUT = {"LPFAMILY_DATA", "JAX_COMPILATION_CACHE_DIR"}
ENVIRONMENT = {name: value for name, value in os.environ.items() if name not in _WITHOUT} | _ONE_THREAD


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


def in_process(*flags: object) -> subprocess.CompletedProcess[str]:
    """Run the command in this process, which has imported already what takes a new one seconds."""
    arguments, out, err = list(map(str, flags)), io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = main(arguments)
    return subprocess.CompletedProcess(arguments, code, out.getvalue(), err.getvalue())


def trained(folder: Path, *flags: object) -> subprocess.CompletedProcess[str]:
    """Train into a new folder, quietly, and raise unless that succeeds without a word on stderr."""
    result = in_process(*flags, "--quiet", "--out", folder)
    assert (result.returncode, result.stderr) == (0, ""), result
    return result


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
    """Return when the metrics show so many epochs; raise if the process ends before, or after a minute."""
    deadline = time.monotonic() + 60
    while not (folder / "metrics.jsonl").exists() or len(metrics(folder)) < epochs:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, f"{folder} has no epoch {epochs}"
        time.sleep(0.002)


def assert_refused(result: subprocess.CompletedProcess[str], *parts: object) -> None:
    """Raise unless the command ended with code 2 and one line on stderr that holds the parts."""
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
    """Return what two runs of one trajectory share: all but the plot and how long things took."""
    result = json.loads((folder / "result.json").read_text())
    del result["seconds_per_epoch"]
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


def small_mnist(folder: Path) -> Path:
    """Write 40 and 20 images of noise as MNIST's four files, which load faster than the digits."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(3)
    for prefix, count in (("train", 40), ("t10k", 20)):
        images, labels = rng.integers(0, 256, (count, 28, 28)), rng.integers(0, 10, count)
        (folder / f"{prefix}-images-idx3-ubyte").write_bytes(idx(images))
        (folder / f"{prefix}-labels-idx1-ubyte").write_bytes(idx(labels))
    return folder


def idx(array: Any) -> bytes:
    """Return an array as an IDX file of unsigned bytes."""
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return bytes((0, 0, 8, array.ndim)) + sizes + array.astype(np.uint8).tobytes()
