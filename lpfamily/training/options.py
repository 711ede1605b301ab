"""The options of `python -m lpfamily.train`, and the recipe that they make."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from lpfamily.training import backends, commands, data, grid, recipes
from lpfamily.training.data import Dataset
from lpfamily.training.errors import BadInput
from lpfamily.training.recipes import Recipe

NAME = "python -m lpfamily.train"
ON_RESUME = {"resume", "backend", "device", "tf32", "compile", "data_dir", "quiet"}
"""What may be given when a run goes on."""


def parser() -> commands.Parser:
    """Return the command's parser; what was not given is not in the namespace."""
    by = Recipe()
    values, numbers, lists = recipes.CHOICES, recipes.RANGES, recipes.LISTS
    result = commands.Parser(
        prog=NAME,
        description="Train a network on perturbed inputs, or with the dual-norm penalty, and test it.",
        epilog="example: python -m lpfamily.train --backend torch --data mnist --p inf --sigma 0.1",
    )

    add = result.group("what is trained")
    add("--model", "the network", choices=values["model"], default=by.model)
    add("--data", "the data set", choices=data.NAMES, default=by.data)
    add(
        "--data-dir",
        "local data files, in PATH, PATH/mnist or PATH/cifar10",
        Path,
        default="LPFAMILY_DATA, or a download into the user's cache",
    )
    for name, which in ("examples", "training"), ("test_examples", "test"):
        flag = f"--{name.replace('_', '-')}"
        add(flag, f"use the first N {which} examples; 0 is all", numbers[name], default=getattr(by, name))
    add(
        "--validation",
        "hold out the last N training examples",
        numbers["validation"],
        default=f"{by.validation}; digits 197",
    )
    add("--seed", "of weights, order and noise", numbers["seed"], default=by.seed)

    add = result.group("the network: numbers one a layer, separated by commas, or one for all")
    for name, what in {
        "units": "of the hidden layers: units, or channels of convolutions",
        "pieces": "of their maxout units; none makes them sigmoid units",
        "kernel": "of convolutions, as many as the first layers",
        "padding": "of convolutions",
        "pool": "side of the windows of max pooling",
        "stride": "of max pooling",
        "dropout": "with which probability an input of a layer stays, of the last layer too",
        "dropout-scale": "what those that stay are multiplied by",
        "max-norm": "the limit on the norm of the weights into a unit or piece; 0 is none",
        "lr-scale": "factors of the learning rate",
    }.items():
        field = name.replace("-", "_")
        text = (
            "1 in the first layer, 1 / probability in others"
            if name == "dropout-scale"
            else _published(field)
        )
        add(f"--{name}", what, lists[field], many=True, default=text)
    add(
        "--bias",
        "of convolutions: a number a piece, or a piece and position",
        choices=values["bias"],
        default=_published("bias"),
    )
    add(
        "--init",
        "the range of the first weights; 0 is that for sigmoid units",
        numbers["init"],
        default=_published("init"),
    )

    add = result.group("the objective")
    add(
        "--objective",
        "plain: L(x); noise: L(x + Gaussian); perturb: L(x + eps), eq. 3; "
        "penalty: L(x) + sigma ||grad L||_p*, eq. 4",
        choices=values["objective"],
        default=by.objective,
    )
    add("--p", "the exponent of the ball, from 1 to inf", numbers["p"], default=by.p)
    add(
        "--sigma",
        "the radius, or the noise's standard deviation, in units of the input",
        numbers["sigma"],
        default="1 at p = 2 on MNIST, 2 on CIFAR-10, 2/7 on digits; times d^(1/p - 1/2) at other p, "
        "d coordinates, and times d^(-1/2) for noise",
    )
    add(
        "--steps",
        "perturb: gradients a perturbation takes, by Frank-Wolfe",
        numbers["steps"],
        default=by.steps,
    )
    add("--random-start", "perturb: take the first gradient at a random point of the ball")
    add(
        "--clean-weight",
        "perturb: C in C L(x) + (1 - C) L(x + eps)",
        numbers["clean_weight"],
        default=by.clean_weight,
    )
    add(
        "--direction-dropout",
        "perturb: the dropout of the passes that find eps",
        choices=values["direction_dropout"],
        default=by.direction_dropout,
    )
    add(
        "--direction-dtype",
        "perturb: what these passes compute in",
        choices=values["direction_dtype"],
        default=by.direction_dtype,
    )
    add(
        "--penalty-by",
        "penalty: differentiate through the gradient, or take a finite difference along eps",
        choices=values["penalty_by"],
        default=by.penalty_by,
    )
    add(
        "--sigma-ramp",
        "epochs over which sigma rises to its value",
        numbers["sigma_ramp"],
        default=by.sigma_ramp,
    )

    add = result.group("the optimiser: SGD, v <- m v - lr g, w <- w + v")
    add(
        "--epochs",
        "how often to go through the training set, at most",
        numbers["epochs"],
        default=f"{_published('epochs')}; digits 100",
    )
    add("--batch-size", "examples a step", numbers["batch_size"], default=_published("batch_size"))
    add("--lr", "the learning rate", numbers["lr"], default=_published("lr"))
    add(
        "--lr-decay",
        "by the step, by the epoch, or not",
        choices=values["lr_decay"],
        default=_published("lr_decay"),
    )
    add(
        "--lr-factor",
        "exponential: what lr is divided by after every step",
        numbers["lr_factor"],
        default=_published("lr_factor"),
    )
    add("--lr-floor", "exponential: the least lr", numbers["lr_floor"], default=by.lr_floor)
    add(
        "--lr-final",
        "linear: the last lr, as a fraction of the first",
        numbers["lr_final"],
        default=by.lr_final,
    )
    add("--lr-epochs", "linear: the epoch that reaches it", numbers["lr_epochs"], default=by.lr_epochs)
    add("--momentum", "at first", numbers["momentum"], default=by.momentum)
    add("--momentum-final", "at last", numbers["momentum_final"], default=_published("momentum_final"))
    add(
        "--momentum-epochs",
        "the epoch that reaches it",
        numbers["momentum_epochs"],
        default=by.momentum_epochs,
    )
    add(
        "--weight-decay",
        "C in C/2 |W|^2, on weights, not biases",
        numbers["weight_decay"],
        default=by.weight_decay,
    )

    add = result.group("the two stages")
    add(
        "--patience",
        "stop after so many epochs without a new least validation error, and keep its epoch; 0 never",
        numbers["patience"],
        default=f"{_published('patience')}; digits 0",
    )
    add(
        "--second-stage",
        "then train on all examples, until the held-out ones have the loss that the others had",
        choices=values["second_stage"],
        default=f"{_published('second_stage')}; digits none",
    )
    add(
        "--second-lr",
        "how the learning rate goes on, if it continues",
        choices=values["second_lr"],
        default=_published("second_lr"),
    )
    add(
        "--second-epochs",
        "how long, at most",
        numbers["second_epochs"],
        default=f"{_published('second_epochs')}; no more than --epochs, if that is given",
    )

    choice = result.add_argument_group("the choice among recipes by validation error")
    choice.add_argument(
        "--grid",
        action="append",
        metavar="NAME=VALUE/VALUE/...",
        help="train stage one with each value of another option, such as units=400,400/600,600 or "
        "sigma=0.1/0.5/1/2, and with every combination if repeated, each in OUT/grid/; go on from the one "
        "whose kept epoch has the least validation error to the second stage and the test",
    )

    add = result.group("where and how")
    add("--backend", f"one of {', '.join(backends.names())}", str, default="numpy")
    add("--device", "torch: cpu, cuda, cuda:1; JAX: cpu, gpu (all GPUs), gpu:1", str, default="cpu")
    add("--dtype", "of weights and data", choices=values["dtype"], default=by.dtype)
    add(
        "--compile",
        "torch: make one program of a step, in some 20 s; needs a C++ compiler, or Triton on a GPU",
    )
    add("--tf32", "let a GPU round the factors of float32 products to 10 bits")

    add = result.group("the run")
    add("--out", "the run folder, empty or new", Path, default="runs/, by what is trained and when")
    kept = ", ".join(sorted("--" + name.replace("_", "-") for name in ON_RESUME - {"resume"}))
    add("--resume", f"go on with the run in this folder; of the other flags only {kept} go with it", Path)
    add("--quiet", "no progress, only the table at the end")
    return result


def _published(name: str) -> str:
    """Return what a number is by default, and in which models it differs."""
    default = _text(getattr(Recipe(), name))
    others: dict[str, list[str]] = {}
    for model, published in recipes.PUBLISHED.items():
        if name in published and (value := _text(published[name])) != default:
            others.setdefault(value, []).append(model)
    return "; ".join([default, *(f"{', '.join(models)} {value}" for value, models in others.items())])


def _text(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(map(_text, value)) or "none"
    return f"{value:.7g}" if isinstance(value, float) else str(value)


def recipes_of(given: dict[str, Any], dataset: Dataset) -> dict[str, Recipe]:
    """Return by name the recipe of each combination of `--grid`; without it one, of no name.

    An option that changes recipes in what none of them looks at is `BadInput`.
    """
    combinations = grid.combinations(given)
    found = {name: recipe_of(given | values, dataset) for name, values in combinations.items()}
    for option, (owner, is_effective) in _OWNERS.items():
        if any(map(is_effective, found.values())):
            continue
        for name, values in combinations.items():
            told = given | values
            if option not in told:
                continue
            without = recipe_of({key: told[key] for key in told if key != option}, dataset)
            if getattr(found[name], option) != getattr(without, option):
                flag, where = f"--{option.replace('_', '-')}", f"--grid {name}: " if name else ""
                raise BadInput(f"{where}{flag} belongs to {owner}; leave it out, or give {owner}")
    return found


# By option, which other one it goes with, in words and as a condition.
_PERTURB = "--objective perturb", lambda recipe: recipe.objective == "perturb"
_KERNEL = "--kernel", lambda recipe: recipe.kernel
_EXPONENTIAL = "--lr-decay exponential", lambda recipe: recipe.lr_decay == "exponential"
_LINEAR = "--lr-decay linear", lambda recipe: recipe.lr_decay == "linear"
_OWNERS: dict[str, tuple[str, Callable[[Recipe], Any]]] = {
    **dict.fromkeys(("steps", "random_start", "clean_weight", "direction_dtype"), _PERTURB),
    "direction_dropout": (
        "--objective perturb with --dropout",
        lambda recipe: recipe.objective == "perturb" and recipe.dropout,
    ),
    "penalty_by": ("--objective penalty", lambda recipe: recipe.objective == "penalty"),
    "sigma_ramp": ("an --objective that perturbs", lambda recipe: recipe.objective != "plain"),
    "dropout_scale": ("--dropout", lambda recipe: recipe.dropout),
    **dict.fromkeys(("padding", "pool", "stride", "bias"), _KERNEL),
    **dict.fromkeys(("lr_factor", "lr_floor"), _EXPONENTIAL),
    **dict.fromkeys(("lr_final", "lr_epochs"), _LINEAR),
    "second_lr": ("--second-stage continue", lambda recipe: recipe.second_stage == "continue"),
    "second_epochs": ("--second-stage continue or scratch", lambda recipe: recipe.second_stage != "none"),
}


def recipe_of(given: dict[str, Any], dataset: Dataset) -> Recipe:
    """Return the published recipe with what was given in the place of its numbers."""
    recipe = recipes.default(
        given.get("model", Recipe.model),
        dataset.name,
        given.get("objective", Recipe.objective),
        given.get("p", Recipe.p),
        dataset.train.x.shape[1],
    )
    if "epochs" in given:  # a short run has a short second stage
        recipe = replace(recipe, second_epochs=min(recipe.second_epochs, given["epochs"]))
    if given.get("validation") == 0:  # then there is nothing to stop by, unless it was asked for
        recipe = replace(recipe, patience=0, second_stage="none")
    return replace(recipe, **{f.name: given[f.name] for f in fields(Recipe) if f.name in given})
