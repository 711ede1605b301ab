"""Entry points of other distributions: listed without an import, loaded when they are chosen."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from lpfamily._packages import NotInstalled
from lpfamily.training.errors import BadInput


def names(group: str) -> list[str]:
    """Return the names in a group of entry points; imports nothing."""
    return sorted({entry.name for entry in entry_points(group=group)})


def load(group: str, what: str, name: str, check: Callable[[Any], None]) -> Any:
    """Import and return the object registered under a name; None if there is none.

    Raises
    ------
    BadInput
        Two distributions register the name, the import raises, or `check` of the object raises. The message
        begins with `what`, for example "backend", and the name.
    """
    entries = list(entry_points(group=group, name=name))
    if not entries:
        return None
    if len({entry.value for entry in entries}) > 1:
        owners = " and ".join(sorted(f"{entry.value} of {_owner(entry)}" for entry in entries))
        raise BadInput(f"two {what}s are named {name!r}: {owners}; uninstall one of them")
    entry = entries[0]
    try:
        registered = entry.load()
        check(registered)
    except NotInstalled as cause:
        raise BadInput(f"{what} {name!r} cannot be loaded: {cause}") from cause
    except Exception as cause:  # a third-party module may fail in any way
        raise BadInput(f"{what} {name!r} cannot be loaded ({cause}); {_remedy(entry)}") from cause
    return registered


def _owner(entry: EntryPoint) -> str:
    return entry.dist.name if entry.dist else "an unknown distribution"


def _remedy(entry: EntryPoint) -> str:
    extras = (entry.dist.metadata.get_all("Provides-Extra") or []) if entry.dist else []
    if entry.name in extras:
        return f'pip install "{_owner(entry)}[{entry.name}]"'
    return f"install what {_owner(entry)} needs"
