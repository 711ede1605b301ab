"""Documentation that several functions share: written in one, shown in each."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import TypeVar

Function = TypeVar("Function", bound=Callable[..., object])

_ENTRY = re.compile(r"^(?P<names>\w.*)\n(?P<text>(?: {4}.*(?:\n|\Z)|\n(?= {4}))+)", re.MULTILINE)


def documented_by(source: Callable[..., object]) -> Callable[[Function], Function]:
    """Replace an entry 'a, b: As in `source`.' of a docstring by the entries of a and b in that of `source`.

    Editors that read the source show the reference, `help` and Sphinx the text.
    """

    def write_out(function: Function) -> Function:
        if (shared := inspect.getdoc(source)) and (doc := inspect.getdoc(function)):

            def entries(short: re.Match[str]) -> str:
                if short["text"].strip() != f"As in `{source.__name__}`.":
                    return short[0]
                listed = _names(short)
                return "".join(each[0] for each in _ENTRY.finditer(shared) if _names(each) <= listed)

            function.__doc__ = _ENTRY.sub(entries, doc)
        return function

    return write_out


def _names(entry: re.Match[str]) -> set[str]:
    return set(re.split(r",\s*", entry["names"]))
