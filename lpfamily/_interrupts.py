"""Ctrl-C in a command: exit code 130 and one line, from the command's first line to the end of its process.

A kill does a run no harm at any instant, so Ctrl-C ends the process at once: an exception would get lost in
callbacks, be turned into another by the imports of compiled modules, or end in a traceback. Where a command
has something to stop or to say first, it asks for `KeyboardInterrupt` by `interruptible`.

The commands import this before anything that takes its time.
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
    """Let Ctrl-C end this process from now on, which is the program's own, unless Ctrl-C is ignored in it."""
    global _program
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        _program = program
        signal.signal(signal.SIGINT, end)
        sys.unraisablehook = _unraisable
        # what is registered first is called last: then Python itself takes its handlers away
        atexit.register(signal.signal, signal.SIGINT, signal.SIG_IGN)


def end(signum: int = signal.SIGINT, frame: FrameType | None = None) -> NoReturn:
    """End the process: what handles the signal, so that it must not use what the signal may have stopped."""
    with suppress(OSError):
        os.write(2, f"{_program}: interrupted\n".encode())
    os._exit(EXIT_CODE)


@contextmanager
def interruptible() -> Iterator[None]:
    """Let the first Ctrl-C raise `KeyboardInterrupt`; a second one does not wait for what it stops."""
    if signal.getsignal(signal.SIGINT) is not end:
        yield
        return
    signal.signal(signal.SIGINT, _raise)
    try:
        yield
    except Exception as cause:
        if signal.getsignal(signal.SIGINT) is end:  # compiled code has made it of the KeyboardInterrupt
            raise KeyboardInterrupt from cause
        raise
    finally:
        signal.signal(signal.SIGINT, end)


def _raise(signum: int, frame: FrameType | None) -> NoReturn:
    signal.signal(signal.SIGINT, end)
    raise KeyboardInterrupt


def _unraisable(problem: sys.UnraisableHookArgs) -> None:
    """End the process where Python would print a KeyboardInterrupt and go on."""
    if isinstance(problem.exc_value, KeyboardInterrupt):
        end()
    sys.__unraisablehook__(problem)
