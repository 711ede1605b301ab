"""`lpfamily`, or `python -m lpfamily`: the commands of the project behind one name."""

from __future__ import annotations

import importlib
import sys
from typing import NoReturn

from lpfamily import _interrupts

NAME = "lpfamily"
COMMANDS = {
    "train": "train a network and save the run",
    "evaluate": "measure the robustness of runs or any model",
    "reproduce": "measure the paper's tables and figures anew",
    "runs": "list the runs of a folder",
}
"""The purpose of each command; `python -m lpfamily.COMMAND` is the same command."""


def _program(argv: list[str]) -> str:
    """Return the name that the requested command has in its messages."""
    return f"python -m lpfamily.{argv[0]}" if argv and argv[0] in COMMANDS else NAME


if __name__ == "__main__":
    _interrupts.take_over(_program(sys.argv[1:]))  # first, as the imports take seconds


def main(argv: list[str] | None = None) -> int:
    """Run the command that the first argument names, and return its exit code."""
    given = sys.argv[1:] if argv is None else argv
    if given and given[0] in COMMANDS:
        code: int = importlib.import_module(f"lpfamily.{given[0]}").main(given[1:])
        return code
    from lpfamily.training import commands

    return commands.run(NAME, lambda: _answer(given))


def start() -> NoReturn:
    """Run as the program `lpfamily`; the console script calls this."""
    _interrupts.take_over(_program(sys.argv[1:]))
    from lpfamily.training import commands

    commands.start(_program(sys.argv[1:]), main)


def _answer(given: list[str]) -> int:
    """Answer arguments without a command: with the help, the version, or a suggestion."""
    import argparse

    from lpfamily.training import commands
    from lpfamily.training.errors import BadInput, nearest

    listed = "\n".join(f"  {name:<10} {what}" for name, what in COMMANDS.items())
    parser = commands.Parser(
        prog=NAME,
        usage="%(prog)s COMMAND ...",
        description="Train networks with the Lp family, and measure them.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=f"commands:\n{listed}\n\n'{NAME} COMMAND --help' lists the options of a command.",
    )
    if not given:
        parser.print_help(sys.stderr)
        return 2
    if not given[0].startswith("-"):
        hint = nearest(given[0], COMMANDS, f"choose one of {', '.join(COMMANDS)}")
        raise BadInput(f"there is no command {given[0]!r}; {hint}")
    parser.parse(given)
    raise BadInput(f"{given[0]}: give a command first, one of {', '.join(COMMANDS)}")


if __name__ == "__main__":
    start()
