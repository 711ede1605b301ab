"""Errors and warnings of imports: a missing package, or two packages of different versions."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class NotInstalled(ModuleNotFoundError):
    """A required package is not installed; the message says how to install it."""


@contextmanager
def needs(remedy: str, *packages: str) -> Iterator[None]:
    """Raise `NotInstalled`, with the remedy, if an import in the block lacks one of these packages."""
    try:
        yield
    except ModuleNotFoundError as cause:
        missing = (cause.name or "").partition(".")[0]
        if missing not in packages:
            raise
        raise NotInstalled(f"{missing} is not installed; {remedy}", name=missing) from cause


@contextmanager
def same_version(file: str) -> Iterator[None]:
    """Warn if the package of this `__init__` file is from another version of lpfamily than the one running.

    This happens if Python starts in the folder of a checkout: it takes `lpfamily` from there, and this
    package from an older installation. Version numbers stay the same between two releases, so the sources
    are compared. This is done only if the two packages come from different places, one of which has both.
    """
    package, core = Path(file).resolve().parent, Path(__file__).resolve().parent
    for one, other in (core, _beside(package, core.name)), (package, _beside(core, package.name)):
        if other is not None and one != other and _sources(one) != _sources(other):
            warnings.warn(
                f"lpfamily is loaded from {core.parent} and {package.name} from {package.parent}, and their "
                f"versions differ; run `pip install .` in the checkout again, or start Python elsewhere",
                stacklevel=3,
            )
            break
    yield


def _beside(package: Path, name: str) -> Path | None:
    """Return the folder of the package of this name in the same installation or checkout."""
    parent = package.parent
    folders = parent / name, parent / "backends" / name, parent.parent / name
    return next((folder for folder in folders if (folder / "__init__.py").is_file()), None)


def _sources(package: Path) -> dict[Path, bytes]:
    return {path.relative_to(package): path.read_bytes() for path in package.rglob("*.py")}
