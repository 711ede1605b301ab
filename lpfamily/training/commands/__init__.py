"""Shared code of the commands: one-line errors, option types, exit codes."""

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
import re
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
"""The options given to a command, by name."""

EXTRA = {
    "matplotlib": "matplotlib",
    "safetensors": "safetensors",
    "sklearn": "scikit-learn",
    "threadpoolctl": "threadpoolctl",
    "tqdm": "tqdm",
}


VERSIONS = ("lpfamily", "numpy", "scipy", "array-api-compat", "safetensors", "torch", "jax", "jaxlib")
"""The distributions whose versions a result depends on, if they are installed."""

DEEPEST = 100
"""The largest number of nested folders that --out may create."""


class Parser(argparse.ArgumentParser):
    """A parser with one-line errors, whose namespace holds only the options that were given."""

    def __init__(self, **settings: Any) -> None:
        width = min(100, shutil.get_terminal_size().columns - 1)
        kind = settings.pop("formatter_class", argparse.HelpFormatter)
        super().__init__(
            argument_default=argparse.SUPPRESS,
            allow_abbrev=False,
            formatter_class=functools.partial(kind, max_help_position=28, width=width),
            **settings,
        )
        # argparse takes -1 for a value after a flag, but -1,1 and -inf for flags
        self._negative_number_matcher = re.compile(r"-(\d|\.\d|inf)")
        self.add_argument("--version", action="version", version=f"lpfamily {__version__}")

    def group(self, title: str) -> Callable[..., None]:
        """Start a group of options and return the function that adds one: flag, help, values, old flag."""
        name, _, description = title.partition(": ")  # argparse breaks lines only in descriptions
        group = self.add_argument_group(name, description or None)

        def add(flag: str, what: str, values: Values = SWITCH, *, default: Any = None, old: str = "") -> None:
            flags = [flag, old] if old else [flag]
            text = what if default is None else f"{what} (default: {default})"
            if values is SWITCH:
                group.add_argument(*flags, action="store_true", help=text)
            elif isinstance(values, Names):
                # argparse would show the names in braces, and never break that line
                names = values.names
                named = f"; one of {', '.join(names)}" if len(names) > 1 else f": {names[0]}"
                text = text.replace(what, f"{what}{named}", 1)
                group.add_argument(*flags, choices=list(values.names), metavar="NAME", help=text)
            else:
                group.add_argument(
                    *flags, type=functools.partial(_read, values), metavar=values.metavar, help=text
                )

        return add

    def error(self, message: str) -> NoReturn:
        """Raise `BadInput` instead of printing the usage."""
        raise BadInput(message.removeprefix("argument "))

    def parse(self, argv: list[str] | None) -> Given:
        """Return the options that were given; the error for an unknown flag suggests the nearest one."""
        values, unknown = self.parse_known_args(argv)
        if unknown:
            flags = [flag for action in self._actions for flag in action.option_strings]
            hint = nearest(unknown[0].partition("=")[0], flags, "--help lists the options")
            raise BadInput(f"unknown option {unknown[0]}; {hint}")
        return vars(values)


def start(name: str, main: Callable[[], int]) -> NoReturn:
    """Run the main function of a command as the program of this process, and exit with its code.

    Problems with stdout or stderr do not stop the command. Output that cannot be written (the stream is
    closed, its reader is gone, the disk is full) is dropped, and characters that cannot be encoded are
    escaped. The exit code is 1 if output on stdout was lost, unless its reader had left.
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
        print(f"{name}: stdout cannot be written ({lost.strerror}); the rest is done", file=sys.stderr)
        code = code or 1
    sys.exit(code)


def run(name: str, command: Callable[[], int]) -> int:
    """Run a command and return its exit code.

    The code is 2 for bad input and for files that cannot be read or written, for example on a full disk; 1 if
    a computation fails; 130 for Ctrl-C.
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
    """A raw stream under stdout or stderr that drops what cannot be written and keeps the first error."""

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
        """Write the content; if that fails, keep the error and report the content as written."""
        try:
            written: int | None = self._raw.write(content)
        except OSError as cause:
            self.lost = self.lost or cause
            return len(content)
        return written


def _output(stream: Any) -> Any:
    """Return a stream in the place of stdout or stderr that never raises; None stands for a closed one."""
    if stream is None:
        return Path(os.devnull).open("w", errors="replace")
    if not isinstance(stream, io.TextIOWrapper):  # for example that of a notebook
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
    """Open stdin, stdout and stderr on the null device if they are closed.

    Otherwise a file that is opened later could get such a descriptor, and libraries would print into it.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)


def versions(processes: int = 1) -> dict[str, str]:
    """Return versions, the number of cores and, if above 1, of processes: a result depends on them."""
    result = {"python": platform.python_version(), "cores": str(cores())}
    if processes > 1:
        result["processes"] = str(processes)
    for name in VERSIONS:
        with contextlib.suppress(PackageNotFoundError):
            result[name] = version(name)
    return result


def cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def check_extra() -> None:
    """Raise `BadInput` with the install command if a package that the commands need is missing."""
    missing = [project for module, project in EXTRA.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise BadInput(f'this command needs {", ".join(missing)}; pip install "lpfamily[train]"')


def check_out(out: Path, longest: Path) -> None:
    """Raise `BadInput` for an --out that cannot be written, as far as this is known before the work.

    `longest` is the longest path that will be written.
    """
    problem: str | None = None
    for depth, path in enumerate(itertools.chain([longest], longest.parents)):
        try:
            path.stat()
        except FileNotFoundError:
            continue
        except OSError as cause:
            problem = cause.strerror
        else:
            problem = "" if os.access(path, os.W_OK | os.X_OK) else os.strerror(errno.EACCES)
            if depth > DEEPEST:
                problem = f"it needs {depth} new nested folders, and the limit is {DEEPEST}"
        break
    if problem:
        name = str(out) if len(str(out)) <= 200 else f"{str(out)[:200]}..."
        raise BadInput(f"--out {name}: cannot be written ({problem}); choose another")


def _read(values: Values, text: str) -> Any:
    """Return the value of a text; argparse shows the message of `ArgumentTypeError`, and of no other."""
    try:
        return values.read(text)
    except ValueError as cause:
        raise argparse.ArgumentTypeError(str(cause)) from cause
