"""A choice declared once: a dataclass field with its values, help and dependencies.

`option` makes such a field, and `options` returns those of a class. The flags of a command and their
`--help` are made from them, and so are the checks of values in Python, on the command line and in files, the
errors for options that need another one, and the conversion to JSON and back.
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
    """Numbers of a range, which never contains NaN."""

    what: str
    accepts: Callable[[float], bool]
    kind: type[int] | type[float] = float

    @property
    def metavar(self) -> str:
        """N for whole numbers, X for other numbers."""
        return "N" if self.kind is int else "X"

    def admits(self, value: object) -> bool:
        """Whether a value is a number in the range."""
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
        """Return the number; JSON writes infinity as a string, and may write a float as an integer."""
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
        """What each number must be."""
        return self.each.what

    @property
    def metavar(self) -> str:
        """N,... for whole numbers, X,... for other numbers."""
        return f"{self.each.metavar},..."

    def admits(self, value: object) -> bool:
        """Whether a value is a tuple of such numbers."""
        return isinstance(value, tuple) and all(map(self.each.admits, value))

    def read(self, text: str) -> tuple[float, ...]:
        """Return the numbers; "none" is the empty list."""
        return () if text == "none" else tuple(map(self.each.read, text.split(",")))

    def from_json(self, value: Any) -> tuple[Any, ...]:
        """Return the numbers of a list."""
        return tuple(map(self.each.from_json, value))


@dataclass(frozen=True)
class Names:
    """One of several names."""

    names: tuple[str, ...]

    @property
    def what(self) -> str:
        """The list of the names."""
        return f"one of {', '.join(self.names)}"

    def admits(self, value: object) -> bool:
        """Whether a value is one of the names."""
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
class FromText:
    """Values that a type makes from text."""

    kind: type
    metavar: str
    what: str = "text"

    def admits(self, value: object) -> bool:
        """Whether a value is of the type."""
        return isinstance(value, self.kind)

    def read(self, text: str) -> Any:
        """Return the value that the type makes from the text."""
        return self.kind(text)

    def from_json(self, value: Any) -> Any:
        """Return the value."""
        return value


Values = Range | Numbers | Names | FromText
"""The values that a choice may have.

`what` describes them in words that follow 'must be', and `metavar` stands for a value in `--help`. `admits`
checks a Python value. `read` parses a text; its `ValueError` says what the text must be. `from_json` converts
a value from JSON.
"""


TEXT, PATH = FromText(str, "NAME"), FromText(Path, "PATH", "a path")

SWITCH = FromText(bool, "", "true or false")
"""A flag without a value."""

FRACTION = Range("a number from 0 to 1", lambda v: 0 <= v <= 1)
BELOW_ONE = Range("a number from 0, and below 1", lambda v: 0 <= v < 1)
PROBABILITY = Range("a probability, above 0 and at most 1", lambda v: 0 < v <= 1)
POSITIVE = Range("a finite number above 0", lambda v: 0 < v < math.inf)
NOT_NEGATIVE = Range("a finite number, 0 or more", lambda v: 0 <= v < math.inf)
RADIUS = Ratio(NOT_NEGATIVE.what, NOT_NEGATIVE.accepts)
EXPONENT = Range("a number of at least 1, or inf: below 1 the ball is not convex", lambda v: v >= 1)
COUNT = Range("a whole number from 1 to 10^9", lambda v: 0 < v <= 10**9, int)
COUNT_OR_ZERO = Range("a whole number from 0 to 10^9", lambda v: 0 <= v <= 10**9, int)


@dataclass(frozen=True)
class Option:
    """A choice with everything that its field declares."""

    name: str
    default: Any
    values: Values
    help: str
    group: str
    needs: Mapping[str, tuple[Any, ...]]
    default_text: str

    @property
    def flag(self) -> str:
        """The choice's flag."""
        return flag(self.name)

    @property
    def needed(self) -> str:
        """The other options that it needs, as flags and values on a command line."""
        words = {
            " or ".join(map(flag, names.split("|"))): " or ".join(each or "none" for each in values)
            for names, values in self.needs.items()
        }
        return " with ".join(f"{flags} {value}".strip() for flags, value in words.items())

    def has_effect(self, choices: DataclassInstance) -> bool:
        """Whether this choice has an effect, given the other ones."""
        return all(
            any(
                getattr(choices, name) in values if values else getattr(choices, name)
                for name in names.split("|")
            )
            for names, values in self.needs.items()
        )


def flag(name: str) -> str:
    """Return the flag of a field, by its name."""
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
        The value if none is chosen.
    values
        The values that it may have. None derives them from the field's type: the names of a `Literal`, or a
        switch.
    help
        Its line in `--help`, without the default.
    group
        The section of `--help` that lists it.
    needs
        The other choices that it needs to have an effect: by name, the values with which it has one. ()
        stands for any value that is not empty. The name "one|other" means that one of the two is enough.
    default_text
        The default in words, for `--help`, if the value does not say it.
    """
    needed = {name: (each,) if isinstance(each, str) else each for name, each in (needs or {}).items()}
    facts = {"values": values, "help": help, "group": group, "needs": needed, "default_text": default_text}
    return field(default=default, metadata=facts)


@cache
def options(kind: type[DataclassInstance]) -> dict[str, Option]:
    """Return the choices that a dataclass declares, by name and in order."""
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
    """Raise ValueError unless every choice of a dataclass has one of its values."""
    for name, each in options(type(choices)).items():
        if not each.values.admits(value := getattr(choices, name)):
            raise ValueError(f"{name} must be {each.values.what}; got {value!r}")


def extract(choices: DataclassInstance, kind: type[T]) -> T:
    """Return a `kind` whose fields have the values of the fields with the same names in `choices`."""
    return kind(**{each.name: getattr(choices, each.name) for each in fields(kind)})


def to_json(choices: DataclassInstance) -> dict[str, Any]:
    """Return the fields of a dataclass as JSON values; an infinite number is the string "inf"."""
    values = {each.name: getattr(choices, each.name) for each in fields(choices)}
    return {name: "inf" if value == math.inf else value for name, value in values.items()}


def from_json(kind: type[T], values: Mapping[str, Any], *, complete: bool = False) -> T:
    """Return the dataclass that `to_json` wrote.

    Fields that an earlier version did not write get their defaults, so the default of a new field must be the
    behaviour before it existed. Unknown names, values out of range and, if `complete`, missing fields raise
    `ValueError`.
    """
    known = options(kind)
    if unknown := values.keys() - known.keys():
        raise ValueError(f"{min(unknown)!r} is unknown to this version")
    if complete and (missing := known.keys() - values.keys()):
        raise ValueError(f"it lacks {min(missing)}")
    return kind(**{name: known[name].values.from_json(value) for name, value in values.items()})


def in_group(group: str, *kinds: type[DataclassInstance]) -> Iterable[Option]:
    """Return the options of a group, those that need no other option first."""
    members = [each for kind in kinds for each in options(kind).values() if each.group == group]
    return sorted(members, key=lambda each: bool(each.needs))
