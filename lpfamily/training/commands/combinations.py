"""The combinations of options that `--grid NAME=VALUE/VALUE/...` chooses among."""

from __future__ import annotations

import itertools
import re
from typing import Any

from lpfamily.training.choices import Names, Numbers, Range, flag, options
from lpfamily.training.commands import Given
from lpfamily.training.errors import BadInput, nearest
from lpfamily.training.files import LONGEST_NAME
from lpfamily.training.recipes import Recipe

_AFTERWARDS = "it has no effect on stage one, which decides the choice"
_OTHER_EXAMPLES = "errors on different examples cannot be compared"
_OTHER_INPUTS = "a run has one data set, and sigma is in its units"
_FIXED = {
    "examples": _OTHER_EXAMPLES,  # the held-out ones are the last of them
    "size": _OTHER_INPUTS,
    "scale": _OTHER_INPUTS,
    "validation": _OTHER_EXAMPLES,
    "test_examples": _AFTERWARDS,
    "second_stage": _AFTERWARDS,
    "second_lr": _AFTERWARDS,
    "second_epochs": _AFTERWARDS,
}
"""The options that `--grid` cannot choose, and why."""


def combinations(given: Given) -> dict[str, Given]:
    """Return the options of each combination of `--grid`, by its name; without `--grid` one, named ""."""
    axes: dict[str, dict[str, Any]] = {}
    for text in given.get("grid", ()):
        field, values = _axis(text)
        if field in axes:
            raise BadInput(f"--grid {text}: {_name(field)} is given twice; put all its values in one")
        if field in given:
            raise BadInput(f"--grid {text}: {flag(field)} is given too; leave one of the two out")
        if given.get("validation") == 0:
            raise BadInput(f"--grid {text}: --validation 0 leaves no examples to choose by; hold some out")
        axes[field] = values
    result = {}
    for texts in itertools.product(*axes.values()):
        pairs = list(zip(axes, texts, strict=True))
        name = ",".join(f"{_name(field)}={text}" for field, text in pairs)
        if len(name.encode()) > LONGEST_NAME:
            raise BadInput(f"--grid: {name} is too long for the name of a folder; choose among fewer options")
        result[name] = {field: axes[field][text] for field, text in pairs}
    return result


def _axis(text: str) -> tuple[str, dict[str, Any]]:
    """Return the field of NAME=VALUE/VALUE/... and its parsed values, by their texts."""
    name, equals, values = text.partition("=")
    field, problem = name.replace("-", "_"), f"--grid {text}"
    if not equals:
        raise BadInput(f"{problem}: must be NAME=VALUE/VALUE/...")
    if field in _FIXED:
        raise BadInput(f"{problem}: {_FIXED[field]}; give {flag(field)} one value")
    kinds = Range | Numbers | Names
    known = {name: each.values for name, each in options(Recipe).items() if isinstance(each.values, kinds)}
    if field not in known:
        others = map(_name, known.keys() - _FIXED.keys())
        hint = nearest(_name(field), others, "--help lists the options")
        raise BadInput(f"{problem}: {name!r} is no number, list or choice of a recipe; {hint}")
    parsed_by_text: dict[str, Any] = {}
    for value in map(str.strip, re.split(r"/(?![^(]*\))", values)):  # a "/" in parentheses is a fraction's
        try:
            parsed = known[field].read(
                value[1:-1] if value.startswith("(") and value.endswith(")") else value
            )
        except ValueError as cause:
            raise BadInput(f"{problem}: {_name(field)} {cause}") from cause
        if parsed in parsed_by_text.values():
            raise BadInput(f"{problem}: {value} is given twice; leave one out")
        parsed_by_text[repr(parsed) if "/" in value else value] = parsed  # the text names a folder
    return field, parsed_by_text


def _name(field: str) -> str:
    return flag(field).removeprefix("--")
