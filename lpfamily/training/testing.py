"""The laws that every backend must obey, as a pytest class to subclass.

A backend's whole conformance test is::

    from lpfamily.training.testing import BackendTests

    class TestMine(BackendTests):
        backend = "mine"

The laws compare with the definitions, evaluated in NumPy float64 on a network of 74 parameters:
gradients with respect to inputs by the complex step, which is exact to rounding, and with respect to
parameters by central differences.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from numpy.typing import NDArray

from lpfamily.norms import dual_exponent, norm
from lpfamily.steepest import epsilon
from lpfamily.training import backends
from lpfamily.training.backends import DIFFERENCE_STEP, Backend, Objective, Rates, Task, Trainer
from lpfamily.training.draws import Draws
from lpfamily.training.errors import BadInput
from lpfamily.training.networks import Dense, Network, State, initial_state, parameter_shapes, state_shapes

Array = NDArray[Any]

NETWORK = Network(6, (Dense(5, "sigmoid", max_norm=2.0), Dense(4, "sigmoid"), Dense(3, max_norm=1.5)))

OBJECTIVES = [
    Objective("plain"),
    Objective("noise"),
    *[
        objective
        for p in (1.0, 1.5, 2.0, math.inf)
        for objective in (
            Objective("perturb", p),
            Objective("perturb", p, steps=3, random_start=True),
            Objective("perturb", p, clean_weight=0.3),
            Objective("penalty", p),
            Objective("penalty", p, penalty_by="difference"),
        )
    ],
]


class BackendTests:
    """The laws. Set `backend` to the name that the backend is registered under."""

    backend: ClassVar[str]
    device: ClassVar[str] = "cpu"

    def find(self) -> Backend:
        """Return the backend under test."""
        return backends.find(self.backend)

    def test_logits_are_the_networks(self) -> None:
        task, state = _task(), _state()
        trainer = self._trainer(task, state)
        assert_allclose(trainer.logits(task.x), logits(NETWORK, state, task.x), rtol=1e-12)

    def test_losses_are_the_cross_entropy(self) -> None:
        task, state = _task(), _state()
        expected = cross_entropy(logits(NETWORK, state, task.x), task.labels)
        assert_allclose(self._trainer(task, state).losses(task.x, task.labels), expected, rtol=1e-12)

    def test_input_gradients_are_those_of_the_error_log_odds(self) -> None:
        task, state = _task(), _state()
        expected = odds_gradient(NETWORK, state, task.x, task.labels)
        assert_allclose(self._trainer(task, state).input_gradients(task.x, task.labels), expected, rtol=1e-10)

    def test_the_direction_of_a_confident_network_does_not_round_away(self) -> None:
        task, state = _task("float32"), _state("float32")
        state["layers.2.weight"] *= 100
        labels = logits(NETWORK, state, task.x).argmax(axis=1)
        gradients = self._trainer(task, state).input_gradients(task.x, labels)
        found = epsilon(gradients.astype(np.float64), 2, 1.0)
        expected = epsilon(odds_gradient(NETWORK, state, task.x.astype(np.float64), labels), 2, 1.0)
        assert_allclose(found, expected, atol=1e-4)

    def test_hessian_products_are_derivatives_of_the_gradient(self) -> None:
        task, state = _task(), _state()
        v = np.random.default_rng(3).standard_normal(task.x.shape)

        def gradient(x: Array) -> Array:
            return complex_step(lambda at: cross_entropy(logits(NETWORK, state, at), task.labels), x)

        expected = (gradient(task.x + 1e-5 * v) - gradient(task.x - 1e-5 * v)) / 2e-5
        found = self._trainer(task, state).hessian_products(task.x, task.labels, v)
        assert_allclose(found, expected, rtol=1e-6, atol=1e-9)

    @pytest.mark.parametrize("objective", OBJECTIVES, ids=str)
    def test_a_step_descends_the_objective(self, objective: Objective) -> None:
        task, before = replace(_task(), objective=objective, network=_unconstrained()), _state()
        trainer = self._trainer(task, before)
        metrics = trainer.epoch(np.arange(len(task.x)), _rates(1, lr=0.5, momentum=0.0), Draws(5, 2))
        value, gradients = objective_and_gradient(task, before, np.arange(len(task.x)), 0.4, 0, Draws(5, 2))
        after = trainer.state()
        for name, gradient in gradients.items():
            assert_allclose(after[name] - before[name], -0.5 * gradient, rtol=2e-5, atol=2e-8, err_msg=name)
        assert metrics["loss"] == pytest.approx(value, rel=1e-9)

    def test_an_epoch_is_its_steps(self) -> None:
        """Order, rates, momentum, weight decay, norm constraints and a smaller last batch."""
        task = replace(_task(), objective=Objective("perturb", 1.5), batch_size=3, weight_decay=0.01)
        state, order = _state(), np.array([4, 0, 6, 2, 5, 1, 3])
        rates = Rates(np.array([0.8, 0.5, 0.3]), np.array([0.5, 0.6, 0.9]), np.array([0.1, 0.2, 0.4]))
        trainer = self._trainer(task, state)
        metrics = trainer.epoch(order, rates, Draws(5, 2))
        losses = []
        for step in range(3):
            batch = order[3 * step : 3 * step + 3]
            loss, gradients = objective_and_gradient(task, state, batch, rates.sigma[step], step, Draws(5, 2))
            losses.append(loss * len(batch))
            state = updated(task, state, gradients, rates.lr[step], rates.momentum[step])
        found = trainer.state()
        for name, expected in state.items():
            assert_allclose(found[name], expected, rtol=1e-5, atol=1e-8, err_msg=name)
        assert metrics["loss"] == pytest.approx(sum(losses) / 7, rel=1e-6)

    def test_metrics_count_the_errors_that_the_objective_sees(self) -> None:
        task, state = _task(), _state()
        trainer = self._trainer(task, state)
        metrics = trainer.epoch(np.arange(len(task.x)), _rates(1, lr=0.0, momentum=0.0), Draws(5, 2))
        wrong = logits(NETWORK, state, task.x).argmax(axis=1) != task.labels
        assert metrics == {
            "loss": pytest.approx(
                cross_entropy(logits(NETWORK, state, task.x), task.labels).mean(), rel=1e-9
            ),
            "error": pytest.approx(wrong.mean()),
        }

    def test_the_norm_constraint_holds_after_every_epoch(self) -> None:
        task = _task()
        trainer = self._trainer(task, _state())
        trainer.epoch(np.arange(len(task.x)), _rates(1, lr=50.0, momentum=0.5), Draws(5, 2))
        for index, layer in enumerate(NETWORK.layers):
            norms = np.linalg.norm(trainer.state()[f"layers.{index}.weight"], axis=0)
            assert layer.max_norm is None or norms.max() <= layer.max_norm * (1 + 1e-12)

    @pytest.mark.parametrize("dtype", ["float32", "float64"])
    def test_a_state_continues_as_if_nothing_had_happened(self, dtype: str) -> None:
        """To the bit: what a resumed run stands on."""
        task = replace(_task(dtype), objective=Objective("perturb", 2.0, random_start=True), batch_size=3)
        first = self._trainer(task, _state(dtype))
        rates, order = _rates(3, lr=0.5, momentum=0.9), np.arange(7)
        first.epoch(order, rates, Draws(5, 0))
        middle = first.state()
        first.epoch(order, rates, Draws(5, 1))
        for second in (self._trainer(task, middle), self._trainer(task, _state(dtype))):
            second.load(middle)
            second.epoch(order, rates, Draws(5, 1))
            for name, expected in first.state().items():
                assert_array_equal(second.state()[name], expected, err_msg=name)

    @pytest.mark.parametrize("dtype", ["float32", "float64"])
    def test_the_state_is_named_arrays_of_the_trainers_dtype(self, dtype: str) -> None:
        state = self._trainer(_task(dtype), _state(dtype)).state()
        assert {name: array.shape for name, array in state.items()} == state_shapes(NETWORK)
        assert {str(array.dtype) for array in state.values()} == {dtype}

    def test_the_state_handed_out_is_a_copy(self) -> None:
        task, begin = _task(), _state()
        trainer = self._trainer(task, begin)
        before = trainer.state()
        kept = {name: array.copy() for name, array in before.items()}
        trainer.epoch(np.arange(7), _rates(1, lr=1.0, momentum=0.5), Draws(5, 0))
        for name in kept:
            assert_array_equal(before[name], kept[name])
            assert_array_equal(begin[name], kept[name])

    def test_arrays_handed_in_may_be_read_only(self) -> None:
        task, state = _task(), _state()
        for array in (task.x, task.labels, *state.values()):
            array.flags.writeable = False
        trainer = self._trainer(task, state)
        trainer.epoch(np.arange(7), _rates(1, lr=1.0, momentum=0.5), Draws(5, 0))

    def test_it_names_the_layers_that_it_trains(self) -> None:
        backend = self.find()
        backends.check_layers("mine", backend, NETWORK)
        with pytest.raises(BadInput, match=r"does not train Strange layers, only .*Dense"):
            backends.check_layers("mine", backend, replace(NETWORK, layers=(_Strange(3),)))

    def test_a_device_that_is_not_there_is_bad_input(self) -> None:
        self.find().check_device(self.device)
        with pytest.raises(BadInput, match="--device abacus"):
            self.find().check_device("abacus")

    def _trainer(self, task: Task, state: State) -> Trainer:
        return self.find().trainer(replace(task, device=self.device), state)


class _Strange(Dense):
    """A layer that no backend knows."""


_Strange.__name__ = "Strange"


# The definitions, for real and complex arrays.


def logits(network: Network, state: State, x: Array) -> Array:
    """Return the network's logits."""
    for index, layer in enumerate(network.layers):
        z: Array = x @ state[f"layers.{index}.weight"] + state[f"layers.{index}.bias"]
        x = 1 / (1 + np.exp(-z)) if layer.activation == "sigmoid" else z
    return x


def cross_entropy(logits: Array, labels: Array) -> Array:
    """Return logsumexp(z) - z_y."""
    return np.asarray(_logsumexp(logits) - logits[np.arange(len(labels)), labels])


def error_log_odds(logits: Array, labels: Array) -> Array:
    """Return logsumexp over the wrong classes - z_y."""
    wrong = np.arange(logits.shape[1]) != labels[:, None]
    rest = logits[wrong].reshape(len(labels), -1)
    return np.asarray(_logsumexp(rest) - logits[~wrong])


def _logsumexp(z: Array) -> Array:
    top = z.real.max(axis=1)
    return np.asarray(top + np.log(np.exp(z - top[:, None]).sum(axis=1)))


def complex_step(function: Callable[[Array], Array], x: Array) -> Array:
    """Return the gradient of each row's value with respect to that row: Im f(x + ih) / h."""
    h = 1e-30
    columns = [function(x + 1j * h * unit).imag / h for unit in np.eye(x.shape[1])]
    return np.stack(columns, axis=1)


def odds_gradient(network: Network, state: State, x: Array, labels: Array) -> Array:
    """Return the input gradient of the error log-odds."""
    return complex_step(lambda at: error_log_odds(logits(network, state, at), labels), x)


def perturbation(task: Task, state: State, x: Array, labels: Array, sigma: float, start: Array) -> Array:
    """Return eps: Frank-Wolfe from x + start."""
    p, eps = task.objective.p, start
    for k in range(task.objective.steps):
        to = epsilon(odds_gradient(task.network, state, x + eps, labels), p, sigma)
        eps = eps + 2 / (k + 2) * (to - eps)
    return eps


def objective_and_gradient(
    task: Task, state: State, batch: Array, sigma: float, step: int, draws: Draws
) -> tuple[float, State]:
    """Return the mean objective of a batch and its gradient by central differences, eps held constant."""
    objective, network, x, labels = task.objective, task.network, task.x[batch], task.labels[batch]
    if objective.name == "noise":
        x = x + sigma * draws.noise(step, x.shape, task.dtype)
    start = np.zeros_like(x)
    if objective.random_start:
        start = sigma * draws.start(step, x.shape, objective.p, task.dtype)
    eps = perturbation(task, state, x, labels, sigma, start)

    def loss(parameters: State, at: Array) -> Array:
        return cross_entropy(logits(network, parameters, at), labels)

    def mean(parameters: State) -> float:
        if objective.name == "perturb":
            weight = objective.clean_weight
            values = weight * loss(parameters, x) + (1 - weight) * loss(parameters, x + eps)
        elif objective.name == "penalty" and objective.penalty_by == "gradient":
            gradient = complex_step(lambda at: loss(parameters, at), x)
            values = loss(parameters, x) + sigma * norm(gradient, dual_exponent(objective.p))
        elif objective.name == "penalty":
            clean, h = loss(parameters, x), DIFFERENCE_STEP
            values = clean + (loss(parameters, x + h * eps) - clean) / h
        else:
            values = loss(parameters, x)
        return float(values.mean())

    return mean(state), central_differences(mean, state, list(parameter_shapes(network)))


def central_differences(mean: Callable[[State], float], state: State, names: list[str]) -> State:
    """Return the gradient of `mean` with respect to the named arrays."""
    gradients = {}
    for name in names:
        gradient = np.zeros_like(state[name])
        for index in np.ndindex(gradient.shape):
            ends = []
            for h in (1e-5, -1e-5):
                moved = state[name].copy()
                moved[index] += h
                ends.append(mean(state | {name: moved}))
            gradient[index] = (ends[0] - ends[1]) / 2e-5
        gradients[name] = gradient
    return gradients


def updated(task: Task, state: State, gradients: State, lr: float, momentum: float) -> State:
    """Return the state after one step."""
    new = dict(state)
    for name, gradient in gradients.items():
        weight = name.endswith("weight")
        total = gradient + task.weight_decay * state[name] if weight else gradient
        velocity = momentum * state[f"velocity.{name}"] - lr * total
        parameter = state[name] + velocity
        limit = task.network.layers[int(name.split(".")[1])].max_norm
        if weight and limit is not None:
            parameter = parameter * np.minimum(1, limit / np.linalg.norm(parameter, axis=0))
        new[name], new[f"velocity.{name}"] = parameter, velocity
    return new


def _task(dtype: str = "float64") -> Task:
    rng = np.random.default_rng(1)
    x = rng.uniform(0, 1, (7, NETWORK.inputs)).astype(dtype)
    labels = rng.integers(0, NETWORK.classes, 7)
    return Task(NETWORK, Objective("plain"), x, labels, batch_size=7, dtype=dtype)  # type: ignore[arg-type]


def _state(dtype: str = "float64") -> State:
    rng = np.random.default_rng(2)
    state = initial_state(NETWORK, 0, dtype)
    return {
        name: array if name.endswith("weight") else array + rng.normal(0, 0.1, array.shape).astype(dtype)
        for name, array in state.items()
    }


def _unconstrained() -> Network:
    return replace(NETWORK, layers=tuple(replace(layer, max_norm=None) for layer in NETWORK.layers))


def _rates(steps: int, lr: float, momentum: float) -> Rates:
    return Rates(np.full(steps, lr), np.full(steps, momentum), np.full(steps, 0.4))
