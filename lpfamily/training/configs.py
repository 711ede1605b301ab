"""What a run was started with, checked where it is read."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from lpfamily.training import grid, recipes, runs
from lpfamily.training.errors import BadInput
from lpfamily.training.recipes import Recipe
from lpfamily.training.runs import Json, Run


@dataclass(frozen=True)
class Config:
    """The `config.json` of a run: all that is needed to repeat it."""

    recipe: Recipe
    backend: str
    device: str
    tf32: bool
    compile: bool
    data_dir: Path | None
    """The folder that the examples were read from; None where they were downloaded, or need no files."""
    data_sha256: str
    versions: dict[str, str]
    grid: dict[str, Recipe] = field(default_factory=dict)
    """By name, the recipes to choose from, where there are any."""


def to_json(config: Config) -> Json:
    """Return the config as JSON values."""
    values = {each.name: getattr(config, each.name) for each in fields(config) if each.name != "grid"}
    folder = None if config.data_dir is None else str(config.data_dir.absolute())
    values |= {"recipe": recipes.to_json(config.recipe), "data_dir": folder}
    return values | ({"grid": grid.to_json(config.grid)} if config.grid else {})


def read(run: Run) -> Config:
    """Return the config of a run; raise `BadInput` if it is not one."""
    values = run.config
    try:
        for name, kind in _KINDS.items():
            if not isinstance(values[name], kind):
                raise TypeError(f"{name} is {values[name]!r}")
        found = {name: values[name] for name in _KINDS} | {"recipe": recipes.from_json(values["recipe"])}
        if found["data_dir"] is not None:
            found["data_dir"] = Path(found["data_dir"])
        return Config(**found, grid=grid.from_json(values))
    except (AttributeError, KeyError, TypeError, ValueError) as cause:
        path = run.folder / runs.CONFIG
        raise BadInput(f"{path}: not the config of a run ({cause!r}); restore it from a copy") from cause


_KINDS: dict[str, Any] = {
    "backend": str,
    "device": str,
    "tf32": bool,
    "compile": bool,
    "data_dir": str | None,
    "data_sha256": str,
    "versions": dict,
}
