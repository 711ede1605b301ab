"""What other distributions register under a name: listed without an import, loaded where it is chosen."""

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
    """Import and return what is registered under a name; None if there is nothing.

    Raises
    ------
    BadInput
        Two distributions register the name; or the import, or `check` of what it gives, raises. The message
        begins with `what`, such as "backend", and the name.
    """
    found = list(entry_points(group=group, name=name))
    if not found:
        return None
    if len({entry.value for entry in found}) > 1:
        owners = " and ".join(sorted(f"{entry.value} of {_owner(entry)}" for entry in found))
        raise BadInput(f"two {what}s are named {name!r}: {owners}; uninstall one of them")
    entry = found[0]
    try:
        registered = entry.load()
        check(registered)
    except NotInstalled as cause:
        raise BadInput(f"{what} {name!r} cannot be loaded: {cause}") from cause
    except Exception as cause:  # a stranger's module may fail in any way
        raise BadInput(f"{what} {name!r} cannot be loaded ({cause}); {_remedy(entry)}") from cause
    return registered


def _owner(entry: EntryPoint) -> str:
    return entry.dist.name if entry.dist else "an unknown distribution"


def _remedy(entry: EntryPoint) -> str:
    extras = (entry.dist.metadata.get_all("Provides-Extra") or []) if entry.dist else []
    if entry.name in extras:
        return f'pip install "{_owner(entry)}[{entry.name}]"'
    return f"install what {_owner(entry)} needs"
