"""A backend whose trainers run in many processes.

The leader does all that a single process would do: it reads options and data, keeps the run folder, decides
and prints. Before each call of its trainer it sends that call to the others, as a safetensors message, and
they make the same call. They do nothing else, and nothing is unpickled.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from lpfamily.training import networks
from lpfamily.training.backends import Backend, Metrics, Trainer
from lpfamily.training.choices import from_json, to_json
from lpfamily.training.draws import Draws
from lpfamily.training.errors import BadInput
from lpfamily.training.files import Json
from lpfamily.training.networks import Array, Floats, Ints, State
from lpfamily.training.progress import Tick, silent
from lpfamily.training.tasks import Machine, Objective, Optimiser, Rates, Task
from lpfamily.training.teams import Team, local_slice

_PER_EXAMPLE = ("logits", "losses", "input_gradients", "hessian_products")
"""The methods of a trainer that treat each example separately, so that processes can divide the examples."""

_STATE, _VALUES = "state.", "values"

Arrays = dict[str, NDArray[Any]]
"""The arrays of a message. Their meaning depends on its call."""


@contextmanager
def leading(backend: Backend, team: Team) -> Iterator[Backend]:
    """Yield a backend whose trainers use the whole team; at the end the other processes are dismissed.

    They are dismissed when no common work is under way: at a normal end and after bad input. Any other error
    may interrupt common work. Then only leaving the team reaches them.
    """
    try:
        yield cast(Backend, _TeamBackend(backend, team)) if team.size > 1 else backend
    except BadInput:
        team.share(b"")
        raise
    else:
        team.share(b"")


def follow(backend: Backend, team: Team) -> None:
    """Do what the leader says until it dismisses the others."""
    trainer: Trainer | None = None
    while content := team.share(b""):
        values, arrays = _read(content)
        if values["call"] == "trainer":
            trainer = _trainer(backend, team, values, arrays)
        else:
            assert trainer is not None  # noqa: S101 (the leader makes a trainer before it calls one)
            _do(trainer, team, values, arrays)


class _TeamBackend:
    """A backend whose trainers lead a team; everything else is that of the wrapped backend."""

    def __init__(self, backend: Backend, team: Team) -> None:
        self._backend, self._team = backend, team

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def trainer(self, task: Task, state: State) -> Trainer:
        return _TeamTrainer(self._backend, self._team, task, state)


class _TeamTrainer:
    """A `lpfamily.training.backends.Trainer` whose work the other processes share."""

    def __init__(self, backend: Backend, team: Team, task: Task, state: State) -> None:
        self.team = team
        values = {
            "network": networks.to_json(task.network),
            "choices": {name: to_json(getattr(task, name)) for name in _CHOICES},
            "rest": {"batch_size": task.batch_size, "dtype": task.dtype},
        }
        arrays = {"x": task.x, "labels": task.labels}
        arrays |= {_STATE + name: array for name, array in state.items()}
        self._trainer = _trainer(backend, team, *self._sent("trainer", values, arrays))

    @property
    def tick(self) -> Tick:
        """The tick of the leader's trainer, if it has one."""
        return getattr(self._trainer, "tick", silent)

    @tick.setter
    def tick(self, tick: Tick) -> None:
        if hasattr(self._trainer, "tick"):
            self._trainer.tick = tick

    def epoch(self, order: Ints, rates: Rates, draws: Draws) -> Metrics:
        arrays = {"order": order, "rates": rates.table()}
        metrics: Metrics = self._call_in_all("epoch", asdict(draws), arrays)
        return metrics

    def logits(self, x: Floats) -> Floats:
        return self._per_example("logits", x)

    def losses(self, x: Floats, labels: Array) -> Floats:
        return self._per_example("losses", x, labels)

    def input_gradients(self, x: Floats, labels: Array) -> Floats:
        return self._per_example("input_gradients", x, labels)

    def hessian_products(self, x: Floats, labels: Array, v: Floats) -> Floats:
        return self._per_example("hessian_products", x, labels, v)

    def state(self) -> State:
        return self._trainer.state()

    def load(self, state: State) -> None:
        self._call_in_all("load", {}, state)

    def _per_example(self, call: str, *arrays: Array) -> Floats:
        result: Floats = self._call_in_all(
            call, {}, {str(index): array for index, array in enumerate(arrays)}
        )
        return result

    def _call_in_all(self, call: str, values: Json, arrays: Arrays) -> Any:
        return _do(self._trainer, self.team, *self._sent(call, values, arrays))

    def _sent(self, call: str, values: Json, arrays: Arrays) -> tuple[Json, Arrays]:
        return _read(self.team.share(_message(values | {"call": call}, arrays)))


_CHOICES = {"objective": Objective, "optimiser": Optimiser, "machine": Machine}


def _trainer(backend: Backend, team: Team, values: Json, arrays: Arrays) -> Trainer:
    network = networks.from_json(values["network"])
    choices: dict[str, Any] = {
        name: from_json(kind, values["choices"][name]) for name, kind in _CHOICES.items()
    }
    task = Task(network, x=arrays["x"], labels=arrays["labels"], team=team, **choices, **values["rest"])
    state = {name.removeprefix(_STATE): array for name, array in arrays.items() if name.startswith(_STATE)}
    return backend.trainer(task, state)


def _do(trainer: Trainer, team: Team, values: Json, arrays: Arrays) -> Any:
    """Make the trainer's call that a message describes, in the leader and in the others alike."""
    call = values.pop("call")
    if call == "epoch":
        return trainer.epoch(arrays["order"], Rates(*arrays["rates"].T), Draws(**values))
    if call == "load":
        return trainer.load(arrays)
    if call not in _PER_EXAMPLE:
        raise ValueError(f"the leader says {call!r}, which no trainer does; start all processes anew")
    arguments = [arrays[str(index)] for index in range(len(arrays))]
    local = local_slice(team, len(arguments[0]))
    return team.gather(getattr(trainer, call)(*(array[local] for array in arguments)))


def _message(values: Json, arrays: Arrays) -> bytes:
    from safetensors.numpy import save

    text = np.frombuffer(json.dumps(values).encode(), np.uint8)
    content: bytes = save({_VALUES: text} | {name: np.ascontiguousarray(a) for name, a in arrays.items()})
    return content


def _read(content: bytes) -> tuple[Json, Arrays]:
    from safetensors.numpy import load

    arrays = load(content)
    return json.loads(arrays.pop(_VALUES).tobytes()), arrays
