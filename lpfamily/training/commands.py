"""What the commands share: one-line errors, option types, exit codes."""

from __future__ import annotations

import argparse
import difflib
import functools
import importlib.util
import math
import os
import platform
import sys
from collections.abc import Callable, Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NoReturn

from lpfamily.training.errors import BadInput
from lpfamily.training.recipes import Range

EXTRA = {
    "matplotlib": "matplotlib",
    "safetensors": "safetensors",
    "sklearn": "scikit-learn",
    "threadpoolctl": "threadpoolctl",
    "tqdm": "tqdm",
}


VERSIONS = ("lpfamily", "numpy", "scipy", "array-api-compat", "safetensors", "torch", "jax", "jaxlib")
"""Of which distributions a result depends on, where they are there."""


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, and whose namespace holds only what was given."""

    def __init__(self, **settings: Any) -> None:
        formatter = functools.partial(argparse.HelpFormatter, max_help_position=28, width=100)
        super().__init__(
            argument_default=argparse.SUPPRESS, allow_abbrev=False, formatter_class=formatter, **settings
        )

    def group(self, title: str) -> Callable[..., None]:
        """Start a group of options and return what adds one; `many` takes a list of `kind`, a `Range`."""
        group = self.add_argument_group(title)

        def add(
            flag: str,
            what: str,
            kind: Any = None,
            *,
            many: bool = False,
            choices: Iterable[str] = (),
            default: Any = None,
        ) -> None:
            text = what if default is None else f"{what} (default: {default})"
            if choices:
                group.add_argument(flag, choices=list(choices), help=text)
            elif kind is None:
                group.add_argument(flag, action="store_true", help=text)
            elif isinstance(kind, Range):
                metavar = "N" if kind.kind is int else "X"
                if many:
                    group.add_argument(flag, type=numbers(kind), metavar=f"{metavar},...", help=text)
                else:
                    group.add_argument(flag, type=number(kind), metavar=metavar, help=text)
            else:
                group.add_argument(flag, type=kind, metavar="PATH" if kind is Path else "NAME", help=text)

        return add

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing the usage block."""
        raise BadInput(message.removeprefix("argument "))

    def parse(self, argv: list[str] | None) -> dict[str, Any]:
        """Return the options that were given; an unknown flag is answered with the nearest one."""
        values, unknown = self.parse_known_args(argv)
        if unknown:
            flags = [flag for action in self._actions for flag in action.option_strings]
            close = difflib.get_close_matches(unknown[0].partition("=")[0], flags, n=1)
            hint = f"did you mean {close[0]}?" if close else "--help lists the options"
            raise BadInput(f"unknown option {unknown[0]}; {hint}")
        return vars(values)


def run(name: str, command: Callable[[], int]) -> int:
    """Run a command and return its exit code: 2 for bad input, 1 for a failure, 130 for Ctrl-C."""
    try:
        return command()
    except BadInput as problem:
        print(f"{name}: {one_line(problem)}", file=sys.stderr)
        return 2
    except (ArithmeticError, OSError, MemoryError) as problem:
        print(f"{name}: {one_line(problem) or type(problem).__name__}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{name}: interrupted", file=sys.stderr)
        return 130


def one_line(problem: BaseException) -> str:
    """Return the message of an exception in one line."""
    return " ".join(str(problem).split())


def versions(processes: int = 1) -> dict[str, str]:
    """Return what a result depends on: versions, and how many cores and processes there are."""
    found = {"python": platform.python_version(), "cores": str(cores())}
    if processes > 1:
        found["processes"] = str(processes)
    for name in VERSIONS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def check_extra() -> None:
    """Raise `BadInput` with the install line if what the commands stand on is not there."""
    missing = [project for module, project in EXTRA.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise BadInput(f'this command needs {", ".join(missing)}; pip install "lpfamily[train]"')


def number(range_: Range) -> Callable[[str], float]:
    """Return an option type: a number in a range."""

    def convert(text: str) -> float:
        try:
            value = range_.kind(text)
        except ValueError:
            value = math.nan
        if not range_.accepts(value):
            raise argparse.ArgumentTypeError(f"must be {range_.what}; got {text}")
        return value

    return convert


def numbers(range_: Range) -> Callable[[str], tuple[float, ...]]:
    """Return an option type: numbers in a range, separated by commas; none is the empty list."""
    convert = number(range_)
    return lambda text: () if text == "none" else tuple(convert(part) for part in text.split(","))
