"""Ctrl-C in a command: exit code 130 and one line, from the command's first line to the end of its process.

A run survives a kill at any instant, so Ctrl-C ends the process at once. An exception instead could get lost
in callbacks, be turned into another one by the imports of compiled modules, or end in a traceback. A command
that has something to stop or to print first asks for `KeyboardInterrupt` with `interruptible`.

The commands import this module before any slow import.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import NoReturn

EXIT_CODE = 130

_program = ""


def take_over(program: str) -> None:
    """Let Ctrl-C end this process from now on, unless the process ignores Ctrl-C or handles it itself."""
    global _program
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        _program = program
        signal.signal(signal.SIGINT, end)
        sys.unraisablehook = _unraisable
        # functions registered first are called last, just before Python removes its own handlers
        atexit.register(signal.signal, signal.SIGINT, signal.SIG_IGN)


def end(signum: int = signal.SIGINT, frame: FrameType | None = None) -> NoReturn:
    """End the process. As a signal handler, it must not use anything that the signal may have interrupted."""
    with suppress(OSError):
        os.write(2, f"{_program}: interrupted\n".encode())
    os._exit(EXIT_CODE)


@contextmanager
def interruptible() -> Iterator[None]:
    """Let the first Ctrl-C raise `KeyboardInterrupt`; a second one ends the process at once."""
    if signal.getsignal(signal.SIGINT) is not end:
        yield
        return
    signal.signal(signal.SIGINT, _raise)
    try:
        yield
    except Exception as cause:
        # the handler is `end` again: compiled code has turned a KeyboardInterrupt into this exception
        if signal.getsignal(signal.SIGINT) is end:
            raise KeyboardInterrupt from cause
        raise
    finally:
        signal.signal(signal.SIGINT, end)


def _raise(signum: int, frame: FrameType | None) -> NoReturn:
    signal.signal(signal.SIGINT, end)
    raise KeyboardInterrupt


def _unraisable(problem: sys.UnraisableHookArgs) -> None:
    """End the process where Python would only print a KeyboardInterrupt and continue."""
    if isinstance(problem.exc_value, KeyboardInterrupt):
        end()
    sys.__unraisablehook__(problem)
