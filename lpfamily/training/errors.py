"""The one exception that the commands turn into a line on stderr, and what its messages are made of."""

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


def printable(text: str) -> str:
    """Return a text as one line that a terminal shows and does not obey.

    White space becomes a single space; what else cannot be printed, such as the escape character, becomes
    its escape sequence in Python.
    """
    line = " ".join(text.split())
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)


class BadInput(ValueError):
    """Something from outside (an option, a file) cannot be used.

    The message is one printable line, whatever a file or a server put into it: what is wrong, what was
    given, what to do. The commands print it to stderr and end with exit code 2; whatever else is raised is
    a failure of the program.
    """

    def __init__(self, message: object) -> None:
        super().__init__(printable(str(message)))


@contextmanager
def refusing(problem: str, remedy: str, *kinds: type[Exception]) -> Iterator[None]:
    """Make exceptions of these kinds a `BadInput`: the problem, the reason in parentheses, the remedy.

    The reason is the first line of what the exception says. The remedy begins with its punctuation. A
    `BadInput` passes as it is.
    """
    try:
        yield
    except BadInput:
        raise
    except kinds as cause:
        said = str((isinstance(cause, OSError) and cause.strerror) or cause).strip()
        reason = (said or type(cause).__name__).splitlines()[0]
        raise BadInput(f"{problem} ({reason}){remedy}") from cause


def nearest(name: str, known: Iterable[str], otherwise: str) -> str:
    """Return the question whether the known name that is most alike was meant; without one, `otherwise`."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"did you mean {close[0]}?" if close else otherwise
