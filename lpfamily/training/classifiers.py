"""A classifier and examples named on the command line: any torch module, JAX or NumPy function."""

from __future__ import annotations

import importlib
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from lpfamily.ensemble import robustness
from lpfamily.measured import Robustness
from lpfamily.training.data import custom, npz
from lpfamily.training.errors import BadInput
from lpfamily.training.networks import Floats, Ints

RETURNS = "a torch module, a JAX function of x, or a NumPy one that returns logits and their pullback"


def examples(path: Path) -> tuple[Floats, Ints]:
    """Return `x` and `y` of an .npz file after checks; nothing is unpickled."""
    arrays = npz.read(path, ("x", "y"), f"--data {path}")
    x, y = arrays["x"], arrays["y"]
    if x.dtype.kind != "f":
        hint = "; divide by 255 for pixels from 0 to 1" if x.dtype == np.uint8 else ""
        raise BadInput(f"--data {path}: x must be floating; got {x.dtype}{hint}")
    custom.check_labelled(x, y, (f"--data {path}: x", f"--data {path}: y"))
    if bad := np.count_nonzero(~np.isfinite(x).reshape(len(x), -1).all(axis=1)):
        raise BadInput(f"--data {path}: x is not finite in {bad} of {len(x)} examples")
    return x, y.astype(np.int64)


def measured(name: str, x: Floats, y: Ints, device: str | None, **options: Any) -> Robustness:
    """Return the robustness of a classifier: the result of the function `name`, package.module:function.

    `options` are those of `lpfamily.robustness`.
    """
    model = _build(name)
    with _blaming(name, "calling it on one example"):
        classes, measure = _of_library(name, model, x[:1], device)
    if y.min() < 0 or y.max() >= classes:
        raise BadInput(
            f"--data: y has classes from {y.min()} to {y.max()}, and {name} returns {classes} logits, for "
            f"0 to {classes - 1}"
        )
    with _blaming(name, "measuring it"):
        try:
            return measure(x, y, **options)
        except (TypeError, ValueError) as cause:
            raise BadInput(f"--model {name}: {cause}") from cause


def _build(name: str) -> Any:
    module, colon, function = name.partition(":")
    if not (module and colon and function):
        raise BadInput(f"--model {name}: must be package.module:function")
    # `python -m` puts the current folder on sys.path; the script `lpfamily` puts its own there instead
    if not sys.flags.safe_path and not {"", here := str(Path.cwd())} & set(sys.path):
        sys.path.insert(0, here)
    with _blaming(name, f"importing {module}"):
        try:
            imported = importlib.import_module(module)
        except ModuleNotFoundError as cause:
            raise BadInput(f"--model {name}: there is no module {cause.name!r} here") from cause
    if not callable(make := getattr(imported, function, None)):
        raise BadInput(f"--model {name}: {module} has no function {function!r}")
    with _blaming(name, f"{function}()"):
        return make()


@contextmanager
def _blaming(name: str, what: str) -> Iterator[None]:
    """Turn an exception in the user's code into a `BadInput` that says where it was raised."""
    try:
        yield
    except (BadInput, MemoryError):
        raise
    except (Exception, SystemExit) as cause:
        last = traceback.extract_tb(cause.__traceback__)[-1]
        raise BadInput(
            f"--model {name}: {what} raised {type(cause).__name__} in {Path(last.filename).name}, line "
            f"{last.lineno}: {cause}"
        ) from cause


def _of_library(
    name: str, model: Any, one: Floats, device: str | None
) -> tuple[int, Callable[..., Robustness]]:
    """Return the number of classes, and a function that measures the classifier on NumPy arrays."""
    if (torch := sys.modules.get("torch")) is not None and isinstance(model, torch.nn.Module):
        return _of_torch(model, one, device)
    if device is not None:
        raise BadInput(f"--device {device}: is for torch modules; {name} returns {_kind(model)}")
    if not callable(model):
        raise BadInput(f"--model {name}: must return {RETURNS}; it returns {_kind(model)}")
    returned = model(one)
    if isinstance(returned, tuple) and len(returned) == 2 and callable(returned[1]):
        return _classes(name, returned[0]), partial(robustness, model)
    if (jax := sys.modules.get("jax")) is not None and isinstance(returned, jax.Array):
        from lpfamily_jax import robustness as of_jax

        return _classes(name, returned), partial(of_jax, model)
    raise BadInput(
        f"--model {name}: must return {RETURNS}; it returns a function from x to {_kind(returned)}"
    )


def _of_torch(model: Any, one: Floats, device: str | None) -> tuple[int, Callable[..., Robustness]]:
    import torch

    from lpfamily_torch import robustness as of_torch
    from lpfamily_torch.side_effects import without_side_effects
    from lpfamily_torch.team import usable

    if device is not None:
        with usable(device):
            model = model.to(device)
    parameters = [*model.parameters(), *model.buffers()]
    floating = [each for each in parameters if each.is_floating_point()]
    dtype = floating[0].dtype if floating else torch.get_default_dtype()

    def measure(x: Floats, y: Ints, **options: Any) -> Robustness:
        return of_torch(model, torch.as_tensor(x).to(dtype), torch.as_tensor(y), **options)

    where = floating[0].device if floating else torch.device("cpu")
    with without_side_effects(model, where, "none", "running"), torch.no_grad():
        logits = model(torch.as_tensor(one).to(where, dtype))
    return _classes("the model", logits), measure


def _classes(name: str, logits: Any) -> int:
    shape = tuple(getattr(logits, "shape", ()))
    if len(shape) != 2 or shape[0] != 1 or shape[1] < 2:
        raise BadInput(
            f"--model: {name} must map examples to logits, (n, classes); for one it gives shape {shape}"
        )
    return int(shape[1])


def _kind(value: Any) -> str:
    kind = type(value)
    return f"{kind.__module__}.{kind.__qualname__}".removeprefix("builtins.")
