"""A choice declared once: a dataclass field that carries all that is said of it.

`option` makes such a field; `options` returns what a class declares. From it come the flags of a command
and their `--help`, the checks of values in Python, on the command line and in files, the errors about
options that do nothing without another, and JSON values and back.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args, get_origin, get_type_hints

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T", bound="DataclassInstance")


@dataclass(frozen=True)
class Range:
    """Numbers; NaN is never one of them."""

    what: str
    accepts: Callable[[float], bool]
    kind: type[int] | type[float] = float

    @property
    def metavar(self) -> str:
        """N for whole numbers, X for others."""
        return "N" if self.kind is int else "X"

    def admits(self, value: object) -> bool:
        """Whether it is a number in the range."""
        if not isinstance(value, int | float) or isinstance(value, bool):
            return False
        return (self.kind is float or isinstance(value, int)) and self.accepts(value)

    def read(self, text: str) -> float:
        """Return the number."""
        try:
            value = self.kind(text)
        except ValueError:
            value = math.nan
        if not self.accepts(value):
            raise ValueError(f"must be {self.what}; got {text}")
        return value

    def from_json(self, value: Any) -> Any:
        """Return the number; JSON has no infinity but a string, and may write a float as an integer."""
        return self.kind(value) if value == "inf" or type(value) is int else value


@dataclass(frozen=True)
class Ratio(Range):
    """Numbers that may be written as fractions, such as 8/255."""

    def read(self, text: str) -> float:
        """Return the number."""
        above, _, below = text.partition("/")
        try:
            value = float(above) / float(below or "1")
        except (ValueError, ZeroDivisionError):
            value = math.nan
        if not self.accepts(value):
            raise ValueError(f"must be {self.what.replace('number', 'number or fraction')}; got {text}")
        return value


@dataclass(frozen=True)
class Numbers:
    """Lists of numbers: tuples in Python, separated by commas in text."""

    each: Range

    @property
    def what(self) -> str:
        """What each of them is."""
        return self.each.what

    @property
    def metavar(self) -> str:
        """Several numbers."""
        return f"{self.each.metavar},..."

    def admits(self, value: object) -> bool:
        """Whether it is a tuple of such numbers."""
        return isinstance(value, tuple) and all(map(self.each.admits, value))

    def read(self, text: str) -> tuple[float, ...]:
        """Return the numbers; "none" is the empty list."""
        return () if text == "none" else tuple(map(self.each.read, text.split(",")))

    def from_json(self, value: Any) -> tuple[Any, ...]:
        """Return a list's numbers."""
        return tuple(map(self.each.from_json, value))


@dataclass(frozen=True)
class Names:
    """Some names."""

    names: tuple[str, ...]

    @property
    def what(self) -> str:
        """The list of them."""
        return f"one of {', '.join(self.names)}"

    def admits(self, value: object) -> bool:
        """Whether it is one of them."""
        return value in self.names

    def read(self, text: str) -> str:
        """Return the name."""
        if text not in self.names:
            raise ValueError(f"must be {self.what}; got {text}")
        return text

    def from_json(self, value: Any) -> Any:
        """Return the name."""
        return value


@dataclass(frozen=True)
class Made:
    """Whatever a type makes of a text."""

    kind: type
    metavar: str
    what: str = "text"

    def admits(self, value: object) -> bool:
        """Whether it is of the type."""
        return isinstance(value, self.kind)

    def read(self, text: str) -> Any:
        """Return what the type makes of it."""
        return self.kind(text)

    def from_json(self, value: Any) -> Any:
        """Return the value."""
        return value


Values = Range | Numbers | Names | Made
"""Which values a choice has.

`what` says it in words that follow 'must be', and `metavar` shows a value in `--help`. `admits` looks at a
Python value, `read` at a text, whose `ValueError` says what it must be, and `from_json` takes back what JSON
keeps of a value.
"""


TEXT, PATH = Made(str, "NAME"), Made(Path, "PATH", "a path")

SWITCH = Made(bool, "", "true or false")
"""A flag that is given or not."""

FRACTION = Range("a number from 0 to 1", lambda v: 0 <= v <= 1)
DECAY = Range("a number from 0, and below 1", lambda v: 0 <= v < 1)
INCLUDE = Range("a probability, above 0 and at most 1", lambda v: 0 < v <= 1)
POSITIVE = Range("a finite number above 0", lambda v: 0 < v < math.inf)
NOT_NEGATIVE = Range("a finite number, 0 or more", lambda v: 0 <= v < math.inf)
RADIUS = Ratio(NOT_NEGATIVE.what, NOT_NEGATIVE.accepts)
EXPONENT = Range("a number of at least 1, or inf: below 1 the ball is not convex", lambda v: v >= 1)
COUNT = Range("a whole number from 1 to 10^9", lambda v: 0 < v <= 10**9, int)
COUNT_OR_NONE = Range("a whole number from 0 to 10^9", lambda v: 0 <= v <= 10**9, int)


@dataclass(frozen=True)
class Option:
    """All that is said of a choice."""

    name: str
    default: Any
    values: Values
    help: str
    group: str
    needs: Mapping[str, tuple[Any, ...]]
    default_text: str

    @property
    def flag(self) -> str:
        """The flag of a command."""
        return flag(self.name)

    @property
    def needed(self) -> str:
        """What it needs, as it is given to a command."""
        words = {
            " or ".join(map(flag, names.split("|"))): " or ".join(each or "none" for each in values)
            for names, values in self.needs.items()
        }
        return " with ".join(f"{flags} {value}".strip() for flags, value in words.items())

    def has_effect(self, choices: DataclassInstance) -> bool:
        """Whether other choices are such that this one makes a difference."""
        return all(
            any(
                getattr(choices, name) in values if values else getattr(choices, name)
                for name in names.split("|")
            )
            for names, values in self.needs.items()
        )


def flag(name: str) -> str:
    """Return a field's name as a flag."""
    return "--" + name.replace("_", "-")


def option(
    default: Any,
    values: Values | None,
    help: str,  # noqa: A002 (as argparse has it)
    *,
    group: str,
    needs: Mapping[str, str | tuple[Any, ...]] | None = None,
    default_text: str = "",
) -> Any:
    """Return a dataclass field that is a choice.

    Parameters
    ----------
    default
        Its value unless another is chosen.
    values
        What it may be; None takes the names of a `Literal`, or a switch, from the field's type.
    help
        What `--help` says of it, before its default.
    group
        Under which of a command's titles it stands.
    needs
        Other choices without which it has no effect: by name their values, () for any that is not empty. Of
        several names, "one|other", it needs one.
    default_text
        What `--help` says of the default where that is no value.
    """
    given = {name: (each,) if isinstance(each, str) else each for name, each in (needs or {}).items()}
    facts = {"values": values, "help": help, "group": group, "needs": given, "default_text": default_text}
    return field(default=default, metadata=facts)


@cache
def options(kind: type[DataclassInstance]) -> dict[str, Option]:
    """Return by name the choices that a dataclass declares, in order."""
    hints = get_type_hints(kind)
    return {
        each.name: Option(
            each.name,
            each.default,
            **{**each.metadata, "values": each.metadata["values"] or _values_of(hints[each.name])},
        )
        for each in fields(kind)
        if "values" in each.metadata
    }


def _values_of(hint: object) -> Values:
    return Names(get_args(hint)) if get_origin(hint) is Literal else SWITCH


def check(choices: DataclassInstance) -> None:
    """Raise ValueError unless every choice of a dataclass has a value that it may have."""
    for name, each in options(type(choices)).items():
        if not each.values.admits(value := getattr(choices, name)):
            raise ValueError(f"{name} must be {each.values.what}; got {value!r}")


def part(choices: DataclassInstance, kind: type[T]) -> T:
    """Return what a dataclass has of the fields of another, as that other."""
    return kind(**{each.name: getattr(choices, each.name) for each in fields(kind)})


def to_json(choices: DataclassInstance) -> dict[str, Any]:
    """Return the fields of a dataclass as JSON values; an infinite number is the string "inf"."""
    values = {each.name: getattr(choices, each.name) for each in fields(choices)}
    return {name: "inf" if value == math.inf else value for name, value in values.items()}


def from_json(kind: type[T], values: Mapping[str, Any], *, complete: bool = False) -> T:
    """Return the dataclass that `to_json` wrote; fields that an earlier version lacks have their defaults.

    So the default of a field that is added is what was done before there was that field. Where the values
    must be complete, what is lacking is a `ValueError`, as are unknown names and values that cannot be.
    """
    known = options(kind)
    if unknown := values.keys() - known.keys():
        raise ValueError(f"{min(unknown)!r} is unknown to this version")
    if complete and (missing := known.keys() - values.keys()):
        raise ValueError(f"it lacks {min(missing)}")
    return kind(**{name: known[name].values.from_json(value) for name, value in values.items()})


def in_group(group: str, *kinds: type[DataclassInstance]) -> Iterable[Option]:
    """Return the options of a group: first those that need no other."""
    found = [each for kind in kinds for each in options(kind).values() if each.group == group]
    return sorted(found, key=lambda each: bool(each.needs))
