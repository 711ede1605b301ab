"""`BadInput`, which the commands print as one line on stderr, and helpers for its messages."""

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


def printable(text: str) -> str:
    """Return a text as one line without characters that control a terminal.

    White space becomes a single space. Other unprintable characters, such as the escape character, become
    their Python escape sequences.
    """
    line = " ".join(text.split())
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)


class BadInput(ValueError):
    """An input, such as an option or a file, cannot be used.

    The message says what is wrong, what was given and what to do. It is one printable line, even with text
    from a file or a server in it. The commands print it to stderr and exit with code 2. Any other exception
    is a failure of the program.
    """

    def __init__(self, message: object) -> None:
        super().__init__(printable(str(message)))


@contextmanager
def refusing(problem: str, remedy: str, *kinds: type[Exception]) -> Iterator[None]:
    """Turn exceptions of these kinds into `BadInput`: the problem, the reason in parentheses, the remedy.

    The reason is the first line of the exception's message. The remedy begins with the punctuation
    before it. A `BadInput` is raised unchanged.
    """
    try:
        yield
    except BadInput:
        raise
    except kinds as cause:
        message = str((isinstance(cause, OSError) and cause.strerror) or cause).strip()
        reason = (message or type(cause).__name__).splitlines()[0]
        raise BadInput(f"{problem} ({reason}){remedy}") from cause


def nearest(name: str, known: Iterable[str], otherwise: str) -> str:
    """Return "did you mean NAME?" with the known name that is most similar; `otherwise` if none is."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"did you mean {close[0]}?" if close else otherwise
