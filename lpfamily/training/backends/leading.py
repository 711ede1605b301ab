"""A backend whose trainers are many processes.

The leader is the command as it is alone: it reads options and data, keeps the run folder, decides and
prints. Before its trainer does something it tells the others, in a safetensors message, and they do it with
it; they do nothing else, and nothing is unpickled.
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
from lpfamily.training.teams import Team, own

_BY_EXAMPLE = ("logits", "losses", "input_gradients", "hessian_products")
"""What a trainer computes for each example by itself, so that each process can take some."""

_STATE, _VALUES = "state.", "values"

Arrays = dict[str, NDArray[Any]]
"""Of a message: what they are of, only who sends it knows."""


@contextmanager
def leading(backend: Backend, team: Team) -> Iterator[Backend]:
    """Give a backend whose trainers the team takes part in; at the end the others are sent home.

    They are sent home where nothing is under way, at the ordinary end and on bad input. Any other error may
    have come in the middle of what all do together, so that only parting from them reaches them.
    """
    try:
        yield cast(Backend, _Leader(backend, team)) if team.size > 1 else backend
    except BadInput:
        team.share(b"")
        raise
    else:
        team.share(b"")


def follow(backend: Backend, team: Team) -> None:
    """Do what the leader says until it sends the others home."""
    trainer: Trainer | None = None
    while content := team.share(b""):
        values, arrays = _read(content)
        if values["call"] == "trainer":
            trainer = _trainer(backend, team, values, arrays)
        else:
            assert trainer is not None  # noqa: S101 (the leader has none either before it says so)
            _do(trainer, team, values, arrays)


class _Leader:
    """A backend whose trainers lead a team; all else is as in the one that it stands for."""

    def __init__(self, backend: Backend, team: Team) -> None:
        self._backend, self._team = backend, team

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def trainer(self, task: Task, state: State) -> Trainer:
        return _Leading(self._backend, self._team, task, state)


class _Leading:
    """A trainer that the other processes take part in, as `lpfamily.training.backends.Trainer` has it."""

    def __init__(self, backend: Backend, team: Team, task: Task, state: State) -> None:
        self.team = team
        values = {
            "network": networks.to_json(task.network),
            "parts": {name: to_json(getattr(task, name)) for name in _PARTS},
            "rest": {"batch_size": task.batch_size, "dtype": task.dtype},
        }
        arrays = {"x": task.x, "labels": task.labels}
        arrays |= {_STATE + name: array for name, array in state.items()}
        self._trainer = _trainer(backend, team, *self._told("trainer", values, arrays))

    @property
    def tick(self) -> Tick:
        """What the part of the leader says of an epoch's progress, if it does."""
        return getattr(self._trainer, "tick", silent)

    @tick.setter
    def tick(self, tick: Tick) -> None:
        if hasattr(self._trainer, "tick"):
            self._trainer.tick = tick

    def epoch(self, order: Ints, rates: Rates, draws: Draws) -> Metrics:
        arrays = {"order": order, "rates": rates.table()}
        metrics: Metrics = self._all("epoch", asdict(draws), arrays)
        return metrics

    def logits(self, x: Floats) -> Floats:
        return self._rows("logits", x)

    def losses(self, x: Floats, labels: Array) -> Floats:
        return self._rows("losses", x, labels)

    def input_gradients(self, x: Floats, labels: Array) -> Floats:
        return self._rows("input_gradients", x, labels)

    def hessian_products(self, x: Floats, labels: Array, v: Floats) -> Floats:
        return self._rows("hessian_products", x, labels, v)

    def state(self) -> State:
        return self._trainer.state()

    def load(self, state: State) -> None:
        self._all("load", {}, state)

    def _rows(self, call: str, *arrays: Array) -> Floats:
        rows: Floats = self._all(call, {}, {str(place): array for place, array in enumerate(arrays)})
        return rows

    def _all(self, call: str, values: Json, arrays: Arrays) -> Any:
        return _do(self._trainer, self.team, *self._told(call, values, arrays))

    def _told(self, call: str, values: Json, arrays: Arrays) -> tuple[Json, Arrays]:
        return _read(self.team.share(_message(values | {"call": call}, arrays)))


_PARTS = {"objective": Objective, "optimiser": Optimiser, "machine": Machine}


def _trainer(backend: Backend, team: Team, values: Json, arrays: Arrays) -> Trainer:
    network = networks.from_json(values["network"])
    parts: dict[str, Any] = {name: from_json(kind, values["parts"][name]) for name, kind in _PARTS.items()}
    task = Task(network, x=arrays["x"], labels=arrays["labels"], team=team, **parts, **values["rest"])
    state = {name.removeprefix(_STATE): array for name, array in arrays.items() if name.startswith(_STATE)}
    return backend.trainer(task, state)


def _do(trainer: Trainer, team: Team, values: Json, arrays: Arrays) -> Any:
    """Do what a message says, in the leader and in the others."""
    call = values.pop("call")
    if call == "epoch":
        return trainer.epoch(arrays["order"], Rates(*arrays["rates"].T), Draws(**values))
    if call == "load":
        return trainer.load(arrays)
    if call not in _BY_EXAMPLE:
        raise ValueError(f"the leader says {call!r}, which no trainer does; start all processes anew")
    given = [arrays[str(place)] for place in range(len(arrays))]
    rows = own(team, len(given[0]))
    return team.gather(getattr(trainer, call)(*(array[rows] for array in given)))


def _message(values: Json, arrays: Arrays) -> bytes:
    from safetensors.numpy import save

    text = np.frombuffer(json.dumps(values).encode(), np.uint8)
    content: bytes = save({_VALUES: text} | {name: np.ascontiguousarray(a) for name, a in arrays.items()})
    return content


def _read(content: bytes) -> tuple[Json, Arrays]:
    from safetensors.numpy import load

    arrays = load(content)
    return json.loads(arrays.pop(_VALUES).tobytes()), arrays
