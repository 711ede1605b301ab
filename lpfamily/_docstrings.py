"""Documentation that several functions share: written once, shown in each."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import TypeVar

Function = TypeVar("Function", bound=Callable[..., object])

_ENTRY = re.compile(r"^(?P<names>\w.*)\n(?P<text>(?: {4}.*(?:\n|\Z)|\n(?= {4}))+)", re.MULTILINE)


def documented_by(source: Callable[..., object]) -> Callable[[Function], Function]:
    """Replace a docstring entry 'a, b: As in `source`.' by the entries of a and b in `source`'s docstring.

    Editors that read the source code show the reference; `help` and Sphinx show the text.
    """

    def write_out(function: Function) -> Function:
        if (shared := inspect.getdoc(source)) and (doc := inspect.getdoc(function)):

            def entries(reference: re.Match[str]) -> str:
                if reference["text"].strip() != f"As in `{source.__name__}`.":
                    return reference[0]
                names = _names(reference)
                shown = [entry[0].rstrip() for entry in _ENTRY.finditer(shared) if _names(entry) <= names]
                return "".join(f"{entry}\n" for entry in shown)

            function.__doc__ = _ENTRY.sub(entries, doc)
        return function

    return write_out


def _names(entry: re.Match[str]) -> set[str]:
    return set(re.split(r",\s*", entry["names"]))
