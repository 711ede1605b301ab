"""The contract of a backend, and how backends are found.

A backend turns a `Task` into a trainer. It does array work and nothing else: no files, no printing, no
schedules. Every backend, also those of this project, registers in the entry-point group `lpfamily.backends`
and is imported when it is chosen. `lpfamily.training.testing.BackendTests` are the tests that it must pass.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from lpfamily.training import plugins
from lpfamily.training.choices import options
from lpfamily.training.draws import Draws
from lpfamily.training.errors import BadInput
from lpfamily.training.losses import LossName
from lpfamily.training.networks import Array, Floats, Ints, Network, State
from lpfamily.training.progress import Metrics, Tick, silent
from lpfamily.training.tasks import DIFFERENCE_STEP, Machine, Objective, ObjectiveName, Optimiser, Rates, Task
from lpfamily.training.teams import Team

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

__all__ = [
    "DIFFERENCE_STEP",
    "GROUP",
    "OPTIONS",
    "SMALLER",
    "Backend",
    "Machine",
    "Metrics",
    "Objective",
    "ObjectiveName",
    "Optimiser",
    "Rates",
    "Task",
    "Trainer",
    "check_choices",
    "check_direction",
    "check_inputs",
    "check_layers",
    "check_loss",
    "check_options",
    "find",
    "find_for",
    "launches",
    "losses_of",
    "names",
    "options_of",
]

GROUP = "lpfamily.backends"

OPTIONS = frozenset({"bf16", "ema", "label_smoothing", "layer_noise", "method", "trades"})
"""The training options and objectives that a backend need not support."""

SMALLER = "give a smaller --batch-size, or a smaller network"
"""The remedy in a trainer's `MemoryError`."""


class Trainer(Protocol):
    """A network in training on its device. Arguments and results are NumPy arrays.

    A trainer whose device runs out of memory should raise `MemoryError`, which the commands print as one
    line. A trainer may have an attribute `tick`, which is set to a function. Then `epoch` calls
    tick(done, of) with the number of steps done and of all steps. A launched step counts as done, as `epoch`
    must not wait for a device. `launches` does this.

    A trainer may have a method logits_and_gradients(x, labels) that returns the results of `logits` and
    `input_gradients` from one forward pass. Callers use the function of that name.

    With `Optimiser.ema`, `logits`, `losses`, `input_gradients` and `hessian_products` use the averages, which
    `networks.evaluated` returns. Only `epoch` computes with the parameters themselves.
    """

    def epoch(self, order: Ints, rates: Rates, draws: Draws) -> Metrics:
        """Take a step for every `batch_size` indices of `order`; the last batch may be smaller.

        `order` may contain an example several times or not at all; example weights make it so. A step is
        v <- momentum * v - lr * lr_scale * gradient, w <- w + v, then the norm constraints, and finally, with
        `Optimiser.ema`, a <- a + mixing * (w - a) for the average a. Dropout and layer noise belong to
        training alone: no other method drops or adds anything.

        Returns `loss` and `error`, means over the examples as the objective saw them. `error` is the fraction
        of misclassified examples. For squared errors it is the mean distance, where the distance of an
        example is the root mean square error of its outputs.
        """

    def logits(self, x: Floats) -> Floats:
        """Return the outputs, (n, classes), for inputs (n, inputs): logits, or predictions of targets."""

    def losses(self, x: Floats, labels: Array) -> Floats:
        """Return the per-example loss: the cross-entropy, or half the mean square error of the outputs."""

    def input_gradients(self, x: Floats, labels: Array) -> Floats:
        """Return the gradient of each example's error log-odds, or distance, with respect to its input.

        It is 0 where the distance is 0 and has no gradient.
        """

    def hessian_products(self, x: Floats, labels: Array, v: Floats) -> Floats:
        """Return H v for each example, where H is the Hessian of its loss with respect to its input."""

    def state(self) -> State:
        """Return copies of all arrays that training changes, by their names in `networks.state_shapes`."""

    def load(self, state: State) -> None:
        """Replace the state by one that `state` has returned."""


class Backend(Protocol):
    """The object that an entry point of the group `lpfamily.backends` names.

    A backend may have an attribute `losses`, the names in `lpfamily.training.losses.LOSSES` that it supports.
    Without it, the backend supports the cross-entropy alone. It may also have an attribute `options`, the
    names in `OPTIONS` that its trainers support. Without it, they support none of these.
    """

    @property
    def layers(self) -> frozenset[type]:
        """The layer types that it supports."""

    @property
    def direction_dtypes(self) -> frozenset[str]:
        """The values of `Objective.direction_dtype` that it supports."""

    def check_device(self, device: str) -> None:
        """Raise `BadInput` if the backend cannot train on `device`."""

    def compile_problem(self, device: str) -> str:
        """Return in a few words why steps cannot be compiled for `device`, or "" if they can."""

    def join(self, device: str) -> Team:
        """Join the processes that a launcher has started for one run; `ALONE` if this is the only one.

        It is called before any other method. If `Task.team` has several processes, the trainers
        give all of them the metrics and the state that a single process would compute, up to rounding. If
        another process is lost, they raise `teams.Lost`.
        """

    def trainer(self, task: Task, state: State) -> Trainer:
        """Return a trainer for `task` that starts from `state`."""

    def model(self, network: Network, parameters: State) -> Callable[[Any], Any]:
        """Return the network as a function from (n, inputs) to (n, classes), for arrays of the library.

        It has the form that users of the library expect of a network, holds copies of the parameters, applies
        no dropout, and raises where `check_inputs` does.
        """


def logits_and_gradients(trainer: Trainer, x: Floats, labels: Array) -> tuple[Floats, Floats]:
    """Return a trainer's logits and input gradients, from one forward pass if it has a method for that."""
    if hasattr(trainer, "logits_and_gradients"):
        both: tuple[Floats, Floats] = trainer.logits_and_gradients(x, labels)
        return both
    return trainer.logits(x), trainer.input_gradients(x, labels)


def launches(order: Ints, batch_size: int, most: int, tick: Tick = silent) -> Iterator[Ints]:
    """Yield the batches of an epoch, at most `most` at a time, as (steps, examples); tick after each yield.

    `steps` takes at most two values, apart from a smaller last batch, which is yielded alone.
    """
    whole = order[: len(order) // batch_size * batch_size].reshape(-1, batch_size)
    chunks = np.array_split(whole, -(-len(whole) // most)) if len(whole) else []
    if whole.size < len(order):
        chunks.append(order[None, whole.size :])
    done, steps = 0, sum(map(len, chunks))
    for batches in chunks:
        yield batches
        tick(done := done + len(batches), steps)


def names() -> list[str]:
    """Return the names of the installed backends; imports none of them."""
    return plugins.names(GROUP)


def find(name: str) -> Backend:
    """Import and return the backend of this name, or raise `BadInput` with the reason and the remedy."""
    backend: Backend | None = plugins.load(GROUP, "backend", name, _check)
    if backend is None:
        raise BadInput(f"unknown backend {name!r}; {_installed()}")
    return backend


def _check(backend: Any) -> None:
    members = [name for name in vars(Backend) if not name.startswith("_")]
    if lacking := [name for name in members if not hasattr(backend, name)]:
        raise TypeError(f"it is not a backend: it lacks {', '.join(lacking)}")


def _installed() -> str:
    """Return in words the backends that can be loaded, and the problems of the others."""
    loadable, problems = [], []
    for name in names():
        try:
            find(name)
        except BadInput as problem:
            problems.append(str(problem))
        else:
            loadable.append(name)
    return "; ".join([f"installed: {', '.join(loadable) or 'none'}", *problems])


def find_for(name: str, network: Network) -> Backend:
    """Return the backend; raise `BadInput` if it does not support a layer or the loss of `network`."""
    backend = find(name)
    check_layers(name, backend, network)
    check_loss(name, backend, network)
    return backend


def check_direction(name: str, backend: Backend, objective: Objective) -> None:
    """Raise `BadInput` if `backend` does not compute directions in the objective's dtype."""
    if objective.direction_dtype not in backend.direction_dtypes:
        raise BadInput(
            f"backend {name!r} does not compute in {objective.direction_dtype}; leave --direction-dtype "
            f"out, or choose another --backend of {', '.join(other for other in names() if other != name)}"
        )


def check_layers(name: str, backend: Backend, network: Network) -> None:
    """Raise `BadInput` if `backend` does not train a layer of `network`."""
    for layer in network.layers:
        if type(layer) not in backend.layers:
            known = ", ".join(sorted(kind.__name__ for kind in backend.layers))
            raise BadInput(
                f"backend {name!r} does not train {type(layer).__name__} layers, only {known}; choose "
                f"another --backend of {', '.join(other for other in names() if other != name)}"
            )


def check_loss(name: str, backend: Backend, network: Network) -> None:
    """Raise `BadInput` if `backend` does not train with the network's loss."""
    if network.loss not in losses_of(backend):
        raise BadInput(
            f"backend {name!r} does not train with {network.loss}, only with "
            f"{', '.join(sorted(losses_of(backend)))}; choose another backend of "
            f"{', '.join(other for other in names() if other != name)}"
        )


def check_options(name: str, backend: Backend, choices: DataclassInstance) -> None:
    """Raise `BadInput` if `backend` does not support the objective, or a non-default option."""
    unknown = OPTIONS - options_of(backend)
    for each in options(type(choices)).values():
        value = getattr(choices, each.name)
        if each.name == "objective" and value in unknown:
            what = f"{each.flag} {value}"
        elif each.name in unknown and value != each.default:
            what = each.flag
        else:
            continue
        raise BadInput(f"backend {name!r} does not know {what}; leave it out, or choose another backend")


def options_of(backend: Backend) -> frozenset[str]:
    """Return the names in `OPTIONS` that a backend supports."""
    supported: frozenset[str] = getattr(backend, "options", frozenset())
    return supported


def losses_of(backend: Backend) -> frozenset[LossName]:
    """Return the names of the losses that a backend supports."""
    supported: frozenset[LossName] = getattr(backend, "losses", frozenset({Network.loss}))
    return supported


def check_choices(
    objective: str,
    clean_weight: float,
    steps: int,
    start: Any,
    penalty_by: str,
    difference_step: float | None,
) -> None:
    """Raise ValueError unless the arguments of a training loop's objective are valid and go together."""
    for name, value, choices in (
        ("objective", objective, ("perturb", "penalty")),
        ("penalty_by", penalty_by, ("gradient", "difference")),
    ):
        if value not in choices:
            raise ValueError(f"{name} must be {' or '.join(map(repr, choices))}; got {value!r}")
    if not 0 <= clean_weight <= 1:
        raise ValueError(f"clean_weight must lie in [0, 1]; got {clean_weight}")
    if not isinstance(steps, int) or steps < 1:
        raise ValueError(f"steps must be a whole number of at least 1; got {steps}")
    if difference_step is not None and not 0 < difference_step < math.inf:
        raise ValueError(f"difference_step must be a finite number above 0; got {difference_step}")
    if objective == "penalty" and (clean_weight or steps > 1 or start is not None):
        raise ValueError("clean_weight, steps and start belong to objective='perturb'")
    if objective == "perturb" and penalty_by == "difference":
        raise ValueError("penalty_by='difference' belongs to objective='penalty'")
    if difference_step is not None and penalty_by != "difference":
        raise ValueError("difference_step belongs to penalty_by='difference'")


def check_inputs(network: Network, shape: tuple[int, ...]) -> None:
    """Raise ValueError unless arrays of this shape are inputs of `network`, (n, inputs)."""
    if len(shape) != 2 or shape[1] != network.inputs:
        raise ValueError(f"inputs must have shape (n, {network.inputs}), flattened; got {tuple(shape)}")
