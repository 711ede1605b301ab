"""What the three commands share: output that may go unread, unusual folder names, and Ctrl-C."""

import json
import os
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

import lpfamily
from helpers import ROOT
from helpers.commandline import (
    ENVIRONMENT,
    FILES,
    NAME,
    SOFTMAX,
    assert_refused,
    command,
    in_process,
    metrics,
    python,
    small_mnist,
    tabled,
    timeless,
    train,
    trained,
    unchanged,
)
from lpfamily import __main__, evaluate, reproduce, runs
from lpfamily.train import main
from lpfamily.training.runs import Run

# Ctrl-C

INSTANTS = """
import atexit, json, os, runpy, signal, sys
import lpfamily  # what Python itself imports before the first line of a command

module, of, out, *flags = sys.argv[1:]
signal.signal(signal.SIGINT, signal.default_int_handler)  # else it may be ignored, as the parent does
of = int(of)

def child(instant, told=None):
    # count the events from what the module's first line imports on; at an instant of them, Ctrl-C
    count = None
    def hook(event, arguments):
        nonlocal count
        if event == "exec" and arguments[0].co_filename.endswith("_interrupts.py"):
            count = 0
        elif count is not None and event in ("import", "open", "exec", "os.rename", "os.remove"):
            count += 1
            if count == instant:
                os.kill(os.getpid(), signal.SIGINT)
            if told is not None:
                os.pwrite(told, b"%9d" % count, 0)
    sys.addaudithook(hook)
    sys.argv = [module, *[flag.replace("OUT", f"{out}-{instant}") for flag in flags]]
    runpy.run_module(module, run_name="__main__", alter_sys=True)

def ended(instant, told=None):
    read, write = os.pipe()
    sys.stdout.flush()
    pid = os.fork()
    if not pid:
        os.dup2(write, 2)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        child(instant, told)  # and to the end of the process, as SystemExit is raised
    os.close(write)
    with os.fdopen(read) as said:
        return said.read().splitlines(), os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

told = os.memfd_create("told")
said, code = ended(0, told)
events = int(os.pread(told, 9, 0))
print(json.dumps([0, events, said, code]))
for k in range(of):
    instant = 1 + (events - 1) * k // (of - 1)
    print(json.dumps([instant, events, *ended(instant)]))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="forks, and keeps a count in a memfd")
@pytest.mark.parametrize(
    ("module", "instants", "flags"),
    [
        (
            "train",
            5,
            "--model softmax --epochs 1 --data mnist --validation 5 --quiet --data-dir DATA --out OUT",
        ),
        (
            "__main__",
            2,
            "train --model softmax --epochs 1 --data mnist --validation 5 --quiet --data-dir DATA --out OUT",
        ),
        ("evaluate", 2, "RUN --quiet --steps 2 --examples 20 --out OUT.json"),
        ("reproduce", 2, "figure6 --data-dir DATA --backend numpy --quiet --out OUT"),
    ],
)
def test_ctrl_c_exits_with_130_and_no_traceback_at_any_time(tmp_path, module, instants, flags):
    small_mnist(tmp_path / "mnist")
    if module == "evaluate":
        trained(tmp_path / "run", *SOFTMAX)
    told = flags.replace("DATA", str(tmp_path)).replace("RUN", str(tmp_path / "run")).split()
    name = f"python -m lpfamily.{'train' if module == '__main__' else module}"
    result = python(INSTANTS, f"lpfamily.{module}", instants, tmp_path / "out", *told, cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, ""), result
    (_, events, *undisturbed), *outcomes = map(json.loads, result.stdout.splitlines())
    assert undisturbed == [[], 0]
    assert len(outcomes) == instants
    assert events > 300  # the imports are among them
    for instant, _, said, code in outcomes:
        # the last one comes when all is done, and Python itself is being taken down
        assert code == (130 if instant < events else code), (instant, events, said)
        assert code in (0, 130)
        *before, last = said or [f"{name}: interrupted"]
        assert last == f"{name}: interrupted"
        assert not before or (before[0], before[1].partition(";")[0]) == ("", "stopped"), said
        assert len(before) in (0, 2)


SWALLOWED = """
import os, signal, sys
from lpfamily import _interrupts
signal.signal(signal.SIGINT, signal.default_int_handler)
_interrupts.take_over("program")

class Deaf:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)
        while True:
            pass

with _interrupts.interruptible():
    Deaf()
print("went on")
"""
CONVERTED = """
import os, signal, sys
from lpfamily import _interrupts
signal.signal(signal.SIGINT, signal.default_int_handler)
_interrupts.take_over("program")
try:
    with _interrupts.interruptible():
        try:
            os.kill(os.getpid(), signal.SIGINT)
        except KeyboardInterrupt as cause:
            raise ImportError("initialization failed") from cause
except KeyboardInterrupt:
    print("stopped", flush=True)
os.kill(os.getpid(), signal.SIGINT)
print("went on")
"""
IGNORED = """
import os, signal
from lpfamily import _interrupts
signal.signal(signal.SIGINT, signal.SIG_IGN)
_interrupts.take_over("program")
with _interrupts.interruptible():
    os.kill(os.getpid(), signal.SIGINT)
print("went on")
"""


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        pytest.param(SWALLOWED, (130, "", "program: interrupted\n"), id="where no exception can be raised"),
        pytest.param(CONVERTED, (130, "stopped\n", "program: interrupted\n"), id="made another, and again"),
        pytest.param(IGNORED, (0, "went on\n", ""), id="in the background"),
    ],
)
def test_ctrl_c_is_not_lost_and_stays_ignored_where_it_was(tmp_path, code, expected):
    result = python(code, cwd=tmp_path)
    assert (result.returncode, result.stdout, result.stderr) == expected


# One command for all


@pytest.mark.parametrize("flags", [("--sigma", "much"), ("--out", "run", *SOFTMAX, "--quiet")])
def test_one_command_does_what_each_module_does(tmp_path, monkeypatch, flags):
    monkeypatch.chdir(tmp_path)
    again = [str(flag).replace("run", "again") for flag in flags]
    done = in_process(*flags), in_process("train", *again, command=__main__.main)
    one, other = ((each.returncode, each.stdout, each.stderr) for each in done)
    assert one == (other[0], other[1].replace("again", "run"), other[2])
    if "run" in flags:
        assert timeless(tmp_path / "run") == timeless(tmp_path / "again")


@pytest.mark.parametrize("name", __main__.COMMANDS)
def test_one_command_has_the_help_of_each(name):
    told = []
    for code in (
        f"import sys; sys.argv = ['x', '{name}', '--help']; from lpfamily.__main__ import start; start()",
        f"import sys; sys.argv = ['x', '--help']; from lpfamily.{name} import main; main()",
    ):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        told.append((done.stdout, done.stderr))
    assert told[0] == told[1]
    assert told[0][0].startswith(f"usage: python -m lpfamily.{name} ")


@pytest.mark.parametrize("name", __main__.COMMANDS)
def test_a_command_begins_without_the_packages_that_it_may_not_need(tmp_path, name):
    """To import SciPy takes longer than all that is the project's own."""
    packages = {"scipy", "sklearn", "matplotlib", "PIL", "torch", "jax"}
    code = f"import lpfamily.{name}, sys; print(*({packages} & sys.modules.keys()))"
    run = python(code, cwd=tmp_path)
    assert (run.stdout, run.stderr) == ("\n", "")


def test_one_command_lists_its_subcommands(capsys):
    assert __main__.main([]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert all(f"\n  {name} " in shown.err for name in __main__.COMMANDS)
    with pytest.raises(SystemExit, match=r"^0$"):
        __main__.main(["--help"])
    assert capsys.readouterr().out == shown.err
    for given, answer in (
        (["trian", "--p", "2"], "there is no command 'trian'; did you mean train?"),
        (["xyz"], f"there is no command 'xyz'; choose one of {', '.join(__main__.COMMANDS)}"),
        (["--p", "2"], "unknown option --p; "),
    ):
        assert __main__.main(given) == 2
        out, err = capsys.readouterr()
        assert (out, len(err.splitlines())) == ("", 1)
        assert err.startswith(f"lpfamily: {answer}")


@pytest.mark.parametrize("columns", [60, 80, 200])
@pytest.mark.parametrize("command", [evaluate.main, reproduce.main, main, runs.main, __main__.main])
def test_help_fits_the_terminal_and_version_is_printed(capsys, monkeypatch, command, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    with pytest.raises(SystemExit, match=r"^0$"):
        command(["--help"])
    widest = max(map(len, capsys.readouterr().out.splitlines()))
    assert widest <= columns
    assert widest > min(columns, 100) - 20 or command in (runs.main, __main__.main)
    with pytest.raises(SystemExit, match=r"^0$"):
        command(["--version"])
    assert capsys.readouterr().out == f"lpfamily {lpfamily.__version__}\n"


def test_one_command_is_installed():
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text())
    script = EntryPoint("lpfamily", pyproject["project"]["scripts"]["lpfamily"], "console_scripts")
    assert script.load() is __main__.start


def test_a_run_may_print_only_its_folder_or_its_result(tmp_path):
    folder = tmp_path / "run"
    json_alone = in_process(*SOFTMAX, "--json", "--quiet", "--out", folder)
    result = json.loads((folder / "result.json").read_text())
    del result["format"], result["sha256"]
    assert (json_alone.returncode, json_alone.stderr) == (0, "")
    assert json.loads(json_alone.stdout) == {"run": str(folder)} | result
    again = in_process("--resume", folder, "--json")
    assert (again.returncode, again.stdout, again.stderr) == (0, json_alone.stdout, "")
    quiet = in_process("--resume", folder, "--quiet")
    assert (quiet.returncode, quiet.stdout, quiet.stderr) == (0, f"{folder}\n", "")


def test_runs_are_listed_with_their_states(tmp_path):
    folder = tmp_path / "all"
    trained(folder / "c-finished", *SOFTMAX, "--p", "inf", "--sigma", "0.1")
    for name in ("a-damaged", "b-unfinished", "d-trained", "e-checkpoint"):
        shutil.copytree(folder / "c-finished", folder / name)
    for name in ("b-unfinished", "d-trained"):
        (folder / name / "result.json").unlink()
    for name, file in (("a-damaged", "config.json"), ("e-checkpoint", "checkpoint.safetensors")):
        path = folder / name / file
        content = bytearray(path.read_bytes())
        content[-9] ^= 1
        path.write_bytes(content)
    (folder / "no run").mkdir()
    with Run(folder / "d-trained").locked():
        told = unchanged(tmp_path, lambda: in_process(folder, "--json", command=runs.main))
        table = in_process(folder, command=runs.main)
    assert (told.returncode, told.stderr, table.returncode, table.stderr) == (0, "", 0, "")
    lines = json.loads(told.stdout)
    states = ["damaged", "unfinished", "finished", "being trained", "damaged"]
    assert [line["state"] for line in lines] == states
    assert [Path(line["run"]).name for line in lines] == sorted(f.name for f in folder.iterdir())[:5]
    config, result = (
        json.loads((folder / "c-finished" / f"{n}.json").read_text()) for n in ("config", "result")
    )
    finished = lines[2]
    for name in ("model", "data", "objective", "p", "sigma"):
        assert finished[name] == config["recipe"][name]
    assert finished["epoch"] == metrics(folder / "c-finished")[-1]["epoch"]
    assert finished["test_error"] == result["test_error"]["clean"]
    assert "config.json" in lines[0]["problem"]
    rows = [
        line for line in table.stdout.splitlines() if any(line.strip().startswith(f"{c}-") for c in "abcde")
    ]
    assert [line.endswith(state) for line, state in zip(rows, states, strict=True)] == [True] * 5
    assert in_process(tmp_path / "none", command=runs.main).returncode == 2


# Output that may go unread


def run_with(redirections, arguments, folder):
    """Run a command with a shell's redirections; return its exit code, stdout and stderr."""
    done = subprocess.run(
        ["sh", "-c", f'exec "$@" {redirections}', "sh", *map(str, arguments)],
        cwd=folder, env=ENVIRONMENT, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300,
        check=False,
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An undisturbed run: its stdout, and the content of its folder except the times."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    return tabled(folder, *SOFTMAX), timeless(folder)


LOST = f"{NAME}: stdout cannot be written (No space left on device); the rest is done\n"


@pytest.mark.parametrize(
    ("redirections", "code", "hears_out", "hears_err"),
    [
        (">&-", 0, False, True),
        ("2>&-", 0, True, False),
        ("<&- >&- 2>&-", 0, False, False),
        ("2>/dev/full", 0, True, False),
        (">/dev/full", 1, False, True),
    ],
)
def test_a_run_is_complete_whatever_happens_to_its_output(
    whole, tmp_path, redirections, code, hears_out, hears_err
):
    table, expected = whole
    got, out, err = run_with(redirections, command(*SOFTMAX, "--out", "run"), tmp_path)
    assert timeless(tmp_path / "run") == expected
    assert (got, out) == (code, table if hears_out else "")
    assert err.startswith("run folder: run\nepoch 1/2: loss" if hears_err else "")
    assert err.endswith(LOST) == (code == 1)
    assert bool(err) == hears_err
    assert "Traceback" not in err


@pytest.mark.parametrize("deaf", ["stdout", "stderr"])
def test_a_run_is_complete_if_its_output_pipe_is_closed(whole, tmp_path, deaf):
    """As with `| head -1`: nobody reads a pipe any more, from the first line of the program on."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    arguments = command(*SOFTMAX, "--out", "run")
    with subprocess.Popen(arguments, cwd=tmp_path, env=ENVIRONMENT, text=True, **pipes) as process:
        getattr(process, deaf).close()
        heard = (process.stderr if deaf == "stdout" else process.stdout).read()
    assert process.returncode == 0
    assert timeless(tmp_path / "run") == whole[1]
    assert heard.startswith("run folder: run\n" if deaf == "stdout" else whole[0])
    assert "Traceback" not in heard
    assert "Exception" not in heard


@pytest.mark.parametrize("redirections", ["<&- >&- 2>&-", ">/dev/full 2>/dev/full"])
def test_the_other_commands_complete_whatever_happens_to_their_output(tmp_path, redirections):
    small_mnist(tmp_path / "mnist")
    trained(tmp_path / "run", *SOFTMAX)
    full = "full" in redirections
    for name, *flags in (
        ("evaluate", "run", "--steps", 2, "--examples", 20),
        ("reproduce", "figure6", "--data-dir", ".", "--backend", "numpy"),
    ):
        arguments = [sys.executable, "-m", f"lpfamily.{name}", *flags]
        assert run_with(redirections, arguments, tmp_path) == (int(full), "", "")
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == sorted(
        [*FILES, "robustness.json", "robustness.png"]
    )
    made = {path.name for path in (tmp_path / "reproduction").iterdir()}
    assert made == {"index.html", "figure6.png", "figure6.svg", "measured"}


# Names of folders

NAMELESS = os.fsdecode(b"r\xff\xc3n")


@pytest.mark.parametrize("encoding", ["ascii", "utf-8", "latin-1"])
def test_a_name_that_the_terminal_cannot_encode_is_escaped(tmp_path, encoding):
    trained(tmp_path / NAMELESS, *SOFTMAX)
    result = train("--resume", NAMELESS, cwd=tmp_path, PYTHONIOENCODING=encoding)
    expected = "r\\udcff\\udcc3n is finished; nothing to do\n"
    assert (result.returncode, result.stdout, result.stderr) == (0, expected, "")


def test_control_characters_in_a_name_are_escaped(tmp_path):
    name = f"{NAMELESS}\x1b[2J\x07\x9b"
    result = in_process("--resume", tmp_path / name)
    assert_refused(result, "r\\udcff\\udcc3n\\x1b[2J\\x07\\x9b: holds no config.json")
    assert result.stderr.rstrip("\n").isprintable()


@pytest.mark.parametrize(
    "out",
    [
        pytest.param("d/" * 1000, id="1000 deep"),
        pytest.param("d/" * 101, id="101 deep"),
        pytest.param("d/" * 40_000, id="40,000 deep"),
        pytest.param("d" * 256, id="256 long"),
        pytest.param("d" * 100_000, id="100,000 long"),
        pytest.param(("d" * 200 + "/") * 20 + "d" * 50, id="4,000 in all, and more with the files"),
        pytest.param("file/run", id="in a file"),
        pytest.param("loop/run", id="in a link to itself"),
    ],
)
def test_an_out_that_cannot_be_created_is_refused_before_anything_is_written(
    tmp_path, monkeypatch, capsys, out
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    result = unchanged(tmp_path, lambda: in_process(*SOFTMAX, "--out", out))
    assert_refused(result, f"--out {out[:200]}", "cannot be written (", "choose another")
    assert len(result.stderr) < 400
    flags = ["figure6", "--data-dir", str(tmp_path), "--backend", "numpy", "--out", out]
    assert unchanged(tmp_path, lambda: reproduce.main(flags)) == 2
    out, err = capsys.readouterr()
    assert (out, len(err.splitlines())) == ("", 1)
    assert "cannot be written (" in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "loop"]


def test_an_out_may_be_90_folders_deep(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trained(Path("d/" * 90), *SOFTMAX)
