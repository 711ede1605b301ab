"""The config of a run: all that it was started with, checked when it is read."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from types import UnionType
from typing import Any

from lpfamily import __version__
from lpfamily.training import choices, data, files, runs
from lpfamily.training.data import Scaling
from lpfamily.training.errors import BadInput
from lpfamily.training.files import LONGEST_NAME, Json
from lpfamily.training.recipes import Recipe
from lpfamily.training.runs import RAISED, Run
from lpfamily.training.tasks import Machine


@dataclass(frozen=True)
class Config:
    """The `config.json` of a run: all that is needed to repeat it."""

    recipe: Recipe
    backend: str
    machine: Machine
    data_dir: Path | None
    """The folder of the data files; None if they were downloaded or not needed."""
    data_sha256: str
    versions: dict[str, str]
    grid: dict[str, Recipe] = field(default_factory=dict)
    """The recipes of `--grid`, by name."""
    shape: tuple[int, ...] | None = None
    """The shape of an example, channels first; None, like `classes`, for data sets of lpfamily."""
    classes: int | None = None
    """The number of classes."""
    scaling: Scaling | None = None
    """The scaling computed from the training set."""
    init_from: Path | None = None
    """The run that the initial weights came from, if they came from one."""
    init_sha256: str | None = None
    """The checksum of that run's checkpoint."""
    raised: tuple[dict[str, int], ...] = ()
    """The recipe's earlier values of `RAISED`, one entry per time that the run was given more epochs."""


def to_json(config: Config) -> Json:
    """Return the config as JSON values."""
    values: Json = {"recipe": choices.to_json(config.recipe), "backend": config.backend}
    values |= choices.to_json(config.machine)
    values["data_dir"] = None if config.data_dir is None else str(config.data_dir.absolute())
    values |= {"data_sha256": config.data_sha256, "versions": config.versions}
    if config.shape:
        values |= {"shape": list(config.shape), "classes": config.classes}
    if config.scaling:
        values["scaling"] = asdict(config.scaling)
    if config.init_from:
        values |= {"init_from": str(config.init_from.absolute()), "init_sha256": config.init_sha256}
    if config.raised:
        values["raised"] = list(config.raised)
    return values | ({"grid": differences(config.grid)} if config.grid else {})


def read(run: Run) -> Config:
    """Return the config of a run; raise `BadInput` if it is not a config, or one of a later version.

    Unknown fields are refused, as they might change the training. Missing fields of the recipe, and
    `bf16`, get their defaults, as an earlier version did not have them.
    """
    values, path = run.config, run.folder / runs.CONFIG
    with files.understanding(path, "not the config of a run"):
        values.setdefault("bf16", Machine.bf16)
        recipe, known = values["recipe"], {each.name for each in (*fields(Config), *fields(Machine))}
        if unknown := (values.keys() - known) | (recipe.keys() - {each.name for each in fields(Recipe)}):
            wrote = values["versions"].get("lpfamily", "another")
            raise BadInput(
                f"{path}: has {min(unknown)!r}, which lpfamily {__version__} does not know; go on with the "
                f"version that wrote it, {wrote}, or {files.REMEDY}"
            )
        for name, kind in (_KINDS | _OPTIONAL).items():
            if (name in values or name in _KINDS) and not isinstance(values[name], kind):
                raise TypeError(f"{name} is {values[name]!r}")
        config = Config(
            choices.from_json(Recipe, _ADDED | recipe, complete=not run.is_sealed),
            values["backend"],
            choices.from_json(Machine, {name: values[name] for name in choices.options(Machine)}),
            None if values["data_dir"] is None else _folder(values["data_dir"]),
            values["data_sha256"],
            values["versions"],
            candidates(values),
            tuple(values["shape"]) if "shape" in values else None,
            values.get("classes"),
            Scaling(**{name: tuple(each) for name, each in values["scaling"].items()})
            if "scaling" in values
            else None,
            _folder(values["init_from"]) if "init_from" in values else None,
            values.get("init_sha256"),
            tuple(values.get("raised", ())),
        )
        begun = {path.parent.name for path in (run.folder / "grid").glob(f"*/{runs.CONFIG}")}
        if unknown := begun - config.grid.keys():
            raise ValueError(f"it has no combination {min(unknown)!r}, which is in the folder grid")
        if not all(type(side) is int and side > 0 for side in (*(config.shape or ()), config.classes or 1)):
            raise ValueError(f"examples of shape {config.shape!r}, {config.classes} classes")
        if (config.recipe.scale == "none") != (config.scaling is None):
            raise ValueError(f"scale {config.recipe.scale!r}, with the scaling {config.scaling!r}")
        if any(set(before) - set(RAISED) for before in config.raised):
            raise ValueError(f"raised is {config.raised!r}")
        return config


def differences(candidates: dict[str, Recipe]) -> Json:
    """Return for each name the fields in which the recipes differ.

    Merged into any of the recipes, they give the recipe of that name.
    """
    values = {name: choices.to_json(recipe) for name, recipe in candidates.items()}
    first, *others = values.values()
    differing = [field for field in first if any(other[field] != first[field] for other in others)]
    return {name: {field: recipe[field] for field in differing} for name, recipe in values.items()}


def candidates(config: Json) -> dict[str, Recipe]:
    """Return the recipes of `--grid` in a run's config, by name; none if it has no grid.

    The names are those of folders. A name that leads out of the run folder raises `ValueError`.
    """
    result: dict[str, Recipe] = {}
    for name, differing in config.get("grid", {}).items():
        if name in ("", ".", "..") or set(name) & set("/\\:\0") or len(os.fsencode(name)) > LONGEST_NAME:
            raise ValueError(f"{name!r} cannot be the name of a combination")
        result[name] = choices.from_json(Recipe, config["recipe"] | differing)
    return result


def dataset(config: Config, data_dir: Path | None, begin: str) -> data.Dataset:
    """Return the data set of a run, from another folder if one is given.

    If it is another data set, raise `BadInput` with a message that starts with `begin`, for example "RUN: the
    run used".
    """
    name = config.recipe.data
    if config.shape and config.data_dir is None and not data.is_named(name):
        raise BadInput(
            f"{begin} {name!r}, arrays of a program (no such data set is installed); in that program, "
            "lpfamily.training.fit(..., resume=True) continues the run, and load returns its network"
        )
    result = data.load(name, data_dir or config.data_dir, config.recipe.size)
    if result.sha256() != config.data_sha256:
        raise BadInput(f"{begin} other {name} data; give its --data-dir")
    return result.scaled(config.scaling)


def facts(dataset: data.Dataset) -> dict[str, Any]:
    """Return the fields of a config that describe a data set, by name."""
    result = {"data_sha256": dataset.sha256(), "scaling": dataset.scaling}
    if dataset.name in data.SOURCES:
        return result
    return result | {"shape": dataset.shape, "classes": dataset.classes}


def _folder(name: str) -> Path:
    """Return the path of a name; raise `ValueError` if no folder can have that name."""
    if b"\0" in os.fsencode(name):
        raise ValueError(f"{name!r} cannot be the name of a folder")
    return Path(name)


_ADDED = {
    name: getattr(Recipe, name)
    for name in (
        "monitor",
        "size",
        "scale",
        "recipe",
        "label_smoothing",
        "layer_noise",
        "method",
        "beta",
        "ema",
    )
}
"""The defaults of the fields that configs from before the checksum may lack, as recipes got them later."""

_KINDS: dict[str, type | UnionType] = {
    "backend": str,
    "data_dir": str | None,
    "data_sha256": str,
    "versions": dict,
}
_OPTIONAL: dict[str, type] = {
    "shape": list,
    "classes": int,
    "scaling": dict,
    "init_from": str,
    "init_sha256": str,
    "raised": list,
}
