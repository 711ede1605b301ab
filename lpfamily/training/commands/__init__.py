"""What the commands share: one-line errors, option types, exit codes."""

from __future__ import annotations

import argparse
import contextlib
import errno
import functools
import importlib.util
import io
import itertools
import os
import platform
import shutil
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NoReturn

from lpfamily import __version__, _interrupts
from lpfamily.training.choices import SWITCH, Names, Values
from lpfamily.training.errors import BadInput, nearest, printable
from lpfamily.training.teams import Lost

Given = dict[str, Any]
"""The options that a command was given, by their names."""

EXTRA = {
    "matplotlib": "matplotlib",
    "safetensors": "safetensors",
    "sklearn": "scikit-learn",
    "threadpoolctl": "threadpoolctl",
    "tqdm": "tqdm",
}


VERSIONS = ("lpfamily", "numpy", "scipy", "array-api-compat", "safetensors", "torch", "jax", "jaxlib")
"""Of which distributions a result depends on, where they are there."""

DEEPEST = 100
"""So many folders are made for an --out, at most."""


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, and whose namespace holds only what was given."""

    def __init__(self, **settings: Any) -> None:
        width = min(100, shutil.get_terminal_size().columns - 1)
        kind = settings.pop("formatter_class", argparse.HelpFormatter)
        super().__init__(
            argument_default=argparse.SUPPRESS,
            allow_abbrev=False,
            formatter_class=functools.partial(kind, max_help_position=28, width=width),
            **settings,
        )
        self.add_argument("--version", action="version", version=f"lpfamily {__version__}")

    def group(self, title: str) -> Callable[..., None]:
        """Start a group of options and return what adds one: its flag, help, values, and an older flag."""
        name, _, description = title.partition(": ")  # argparse breaks the lines of the latter alone
        group = self.add_argument_group(name, description or None)

        def add(flag: str, what: str, values: Values = SWITCH, *, default: Any = None, old: str = "") -> None:
            flags = [flag, old] if old else [flag]
            text = what if default is None else f"{what} (default: {default})"
            if values is SWITCH:
                group.add_argument(*flags, action="store_true", help=text)
            elif isinstance(values, Names):
                # not argparse's list in braces, which no line breaks
                text = text.replace(what, f"{what}: {', '.join(values.names)}", 1)
                group.add_argument(*flags, choices=list(values.names), metavar="NAME", help=text)
            else:
                group.add_argument(
                    *flags, type=functools.partial(_read, values), metavar=values.metavar, help=text
                )

        return add

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing the usage block."""
        raise BadInput(message.removeprefix("argument "))

    def parse(self, argv: list[str] | None) -> Given:
        """Return the options that were given; an unknown flag is answered with the nearest one."""
        values, unknown = self.parse_known_args(argv)
        if unknown:
            flags = [flag for action in self._actions for flag in action.option_strings]
            hint = nearest(unknown[0].partition("=")[0], flags, "--help lists the options")
            raise BadInput(f"unknown option {unknown[0]}; {hint}")
        return vars(values)


def start(name: str, main: Callable[[], int]) -> NoReturn:
    """Run the main function of a command as the program that this process is, and exit with its code.

    It runs to its end whoever listens: what stdout or stderr cannot take (it is closed, its reader has left,
    its disk is full) is dropped, and what it cannot encode is escaped. The exit code is 1 where what was
    printed on stdout is lost, unless nobody reads it.
    """
    _keep_standard_descriptors()
    sys.stdout, sys.stderr = _output(sys.stdout), _output(sys.stderr)
    try:
        code: Any = main()
    except SystemExit as ended:  # argparse has printed the help
        code = ended.code
    sys.stdout.flush()
    out = getattr(sys.stdout, "buffer", None)
    lost = getattr(getattr(out, "raw", out), "lost", None)
    if lost and not isinstance(lost, BrokenPipeError):
        print(f"{name}: stdout cannot be written ({lost.strerror}); all else is done", file=sys.stderr)
        code = code or 1
    sys.exit(code)


def run(name: str, command: Callable[[], int]) -> int:
    """Run a command and return its exit code.

    It is 2 for bad input and for a file that cannot be read or written, such as on a full disk; 1 where
    computing fails; 130 for Ctrl-C.
    """
    try:
        return command()
    except (BadInput, ArithmeticError, OSError, MemoryError) as problem:
        print(f"{name}: {printable(str(problem)) or type(problem).__name__}", file=sys.stderr)
        return 1 if isinstance(problem, (ArithmeticError, MemoryError, Lost)) else 2
    except KeyboardInterrupt:
        print(f"{name}: interrupted", file=sys.stderr)
        return _interrupts.EXIT_CODE


class _Output(io.RawIOBase):
    """What is under stdout or stderr: it drops what cannot be written, and knows the first reason."""

    def __init__(self, raw: Any) -> None:
        self._raw = raw
        self.lost: OSError | None = None

    def writable(self) -> bool:
        """Return True."""
        return True

    def isatty(self) -> bool:
        """Return whether it is a terminal."""
        return bool(self._raw.isatty())

    def fileno(self) -> int:
        """Return its descriptor."""
        return int(self._raw.fileno())

    def write(self, content: Any) -> int | None:
        """Write what can be written, and say that it was all."""
        try:
            written: int | None = self._raw.write(content)
        except OSError as cause:
            self.lost = self.lost or cause
            return len(content)
        return written


def _output(stream: Any) -> Any:
    """Return what goes on where stdout or stderr would raise; None is a closed one."""
    if stream is None:
        return Path(os.devnull).open("w", errors="replace")
    if not isinstance(stream, io.TextIOWrapper):  # such as a notebook's
        return stream
    stream.flush()
    raw, unbuffered = _Output(getattr(stream.buffer, "raw", stream.buffer)), stream.write_through
    return io.TextIOWrapper(
        raw if unbuffered else io.BufferedWriter(raw),
        stream.encoding,
        "backslashreplace",
        line_buffering=stream.line_buffering,
        write_through=unbuffered,
    )


def _keep_standard_descriptors() -> None:
    """Open those of stdin, stdout and stderr that are closed.

    Else a file that is opened later gets such a number, and what libraries print with it.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)


def versions(processes: int = 1) -> dict[str, str]:
    """Return what a result depends on: versions, and how many cores and processes there are."""
    found = {"python": platform.python_version(), "cores": str(cores())}
    if processes > 1:
        found["processes"] = str(processes)
    for name in VERSIONS:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def check_extra() -> None:
    """Raise `BadInput` with the install line if what the commands stand on is not there."""
    missing = [project for module, project in EXTRA.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise BadInput(f'this command needs {", ".join(missing)}; pip install "lpfamily[train]"')


def check_out(out: Path, longest: Path) -> None:
    """Raise `BadInput` for an --out where nothing can be made, as far as can be known before the work.

    `longest` is the longest path of what is to be written.
    """
    problem: str | None = None
    for depth, there in enumerate(itertools.chain([longest], longest.parents)):
        try:
            there.stat()
        except FileNotFoundError:
            continue
        except OSError as cause:
            problem = cause.strerror
        else:
            problem = "" if os.access(there, os.W_OK | os.X_OK) else os.strerror(errno.EACCES)
            if depth > DEEPEST:
                problem = f"{depth} folders in one another would be made, and {DEEPEST} is the limit"
        break
    if problem:
        name = str(out) if len(str(out)) <= 200 else f"{str(out)[:200]}..."
        raise BadInput(f"--out {name}: cannot be written ({problem}); choose another")


def _read(values: Values, text: str) -> Any:
    """Return the value that is written so; argparse prints the message of this error alone."""
    try:
        return values.read(text)
    except ValueError as cause:
        raise argparse.ArgumentTypeError(str(cause)) from cause
