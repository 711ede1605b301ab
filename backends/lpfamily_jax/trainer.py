"""Training of networks in JAX: compiled scans over steps, or single steps of convolutions on the CPU."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from numpy.typing import NDArray

from lpfamily import error_log_odds, penalty
from lpfamily.ascent import LAST_ITERATES, frank_wolfe
from lpfamily.divergences import divergence
from lpfamily.training.backends import OPTIONS, Metrics, launches
from lpfamily.training.draws import Drawn, Draws, by_threads
from lpfamily.training.errors import BadInput
from lpfamily.training.losses import LOSSES, LossName
from lpfamily.training.networks import (
    AVERAGE,
    Floats,
    Ints,
    Network,
    State,
    evaluated,
    layer_of,
    parameter_shapes,
    shapes,
)
from lpfamily.training.progress import Tick, silent
from lpfamily.training.tasks import DIFFERENCE_STEP, Objective, Optimiser, Rates, Task
from lpfamily.training.teams import Team
from lpfamily_jax.model import LAYERS, Arrays, JaxModel, Randoms, forward
from lpfamily_jax.padding import padded
from lpfamily_jax.team import REPLICATED, devices, join, translating_errors

Settings = tuple[Network, Objective, Optimiser]

SCANNED = 64
"""The maximal number of steps of a scan, whose random numbers are all drawn before it."""

_LOSSES = LOSSES | {
    "cross-entropy": LOSSES["cross-entropy"]._replace(
        outer=jax.nn.softplus,
        slope=jax.nn.sigmoid,
        value=lambda logits, labels: jax.nn.softplus(error_log_odds(logits, labels)),
    )
}

SHARDED_BY_EXAMPLE = P(None, "examples")  # type: ignore[no-untyped-call]
"""How the draws of steps lie on the devices: each device has its examples, along the second axis."""


@dataclass(frozen=True)
class JaxBackend:
    """Trains every network on any platform of JAX."""

    layers: frozenset[type] = frozenset(LAYERS)
    direction_dtypes: frozenset[str] = frozenset({"same", "bfloat16"})
    losses: frozenset[LossName] = frozenset(LOSSES)
    options: frozenset[str] = OPTIONS - {"bf16"}

    def check_device(self, device: str) -> None:
        """Ask JAX for the device."""
        devices(device)

    def compile_problem(self, device: str) -> str:
        """Return "": JAX compiles every step, with or without --compile."""
        return ""

    def join(self, device: str) -> Team:
        """Join the processes that have the same JAX_COORDINATOR_ADDRESS."""
        return join(device)

    def trainer(self, task: Task, state: State) -> JaxTrainer:
        """Return a trainer for `task` that starts from `state`."""
        return JaxTrainer(task, state)

    def model(self, network: Network, parameters: State) -> JaxModel:
        """Return the network as a pytree on the default device; float64 needs JAX's 64-bit mode."""
        arrays = {name: jnp.array(array) for name, array in parameters.items()}
        if any(array.dtype != parameters[name].dtype for name, array in arrays.items()):
            raise BadInput(
                'JAX has no float64 until you call jax.config.update("jax_enable_x64", True); the network is '
                "of float64, so call it first"
            )
        return JaxModel(network, arrays)


backend = JaxBackend()


class JaxTrainer:
    """A network in training; `lpfamily.training.backends.Trainer` says what each method does."""

    tick: Tick = staticmethod(silent)

    def __init__(self, task: Task, state: State) -> None:
        self.task = task
        all_devices = devices(task.device, task.team)
        self._device = next(device for device in all_devices if device.process_index == jax.process_index())
        self._mesh = Mesh(all_devices, "examples") if len(all_devices) > 1 else None
        with self._scope():
            self._x, self._labels = self._put(task.x), self._put(task.labels)
        self.load(state)

    def state(self) -> State:
        with self._scope():
            return {name: np.array(array) for name, array in self._state.items()}

    def load(self, state: State) -> None:
        dtype = self.task.dtype
        with self._scope():
            self._state = {name: self._put(jnp.array(array, dtype)) for name, array in state.items()}

    def epoch(self, order: Ints, rates: Rates, draws: Draws) -> Metrics:
        schedule = rates.table().astype(self.task.dtype)
        settings = self.task.network, self.task.objective, self.task.optimiser
        totals, done = [], 0
        map_or_threads = nullcontext(map) if self._device.platform == "cpu" else by_threads()
        with self._scope(), map_or_threads as map_draws:
            for batches in launches(order, self.task.batch_size, self._steps_per_launch, self.tick):
                numbers = range(done, done := done + len(batches))
                drawn = draws.steps(numbers, self.task, batches.shape[1], map_draws)
                steps = self._steps(batches, schedule[numbers], drawn)
                arguments = (settings, self._state, self._x, self._labels, steps)
                run = _epoch if self._mesh is None else functools.partial(_sharded_epoch, self._mesh)
                self._state, total = run(*arguments)
                totals.append(total)
            loss, error = (np.sum(jax.device_get(totals), axis=0) / len(order)).tolist()
        return {"loss": loss, "error": error}

    def logits(self, x: Floats) -> Floats:
        return self._computed(forward, x)[0]

    def losses(self, x: Floats, labels: NDArray[np.generic]) -> Floats:
        return self._computed(_losses, x, labels)[0]

    def input_gradients(self, x: Floats, labels: NDArray[np.generic]) -> Floats:
        return self.logits_and_gradients(x, labels)[1]

    def logits_and_gradients(self, x: Floats, labels: NDArray[np.generic]) -> tuple[Floats, Floats]:
        logits, gradients = self._computed(_logits_and_gradients, x, labels)
        return logits, gradients

    def hessian_products(self, x: Floats, labels: NDArray[np.generic], v: Floats) -> Floats:
        return self._computed(_hessian_products, x, labels, v)[0]

    def _computed(self, function: Callable[..., Any], *arrays: NDArray[np.generic]) -> list[Floats]:
        """Return the results of a function of the network and arrays, on one device of this process."""
        with self._scope():
            state = evaluated(self.task.network, self._state)
            local = {name: array.addressable_data(0) for name, array in state.items()}
            results = function(self.task.network, local, *map(padded, arrays))
            return [np.asarray(result)[: len(arrays[0])] for result in jax.tree.leaves(results)]

    @property
    def _steps_per_launch(self) -> int:
        """The maximal number of steps in one launch."""
        convolves = any(len(entering) > 1 for entering in shapes(self.task.network))
        # on a CPU, convolutions take 12 times as long inside of a scan
        return 1 if convolves and self._device.platform == "cpu" else SCANNED

    def _steps(self, batches: Ints, rates: Floats, drawn: Drawn) -> tuple[Any, ...]:
        """Return the inputs of `_epoch` for each step.

        Where a batch does not divide among the devices, some of its examples occur twice and count once.
        """
        if self._mesh is None:
            return jnp.asarray(batches), jnp.asarray(rates), drawn.map(jnp.asarray), None
        steps, width = batches.shape
        rows = np.arange(-(-width // self._mesh.size) * self._mesh.size)
        counted = np.tile(rows < width, (steps, 1))

        def put(array: NDArray[np.generic]) -> Array:
            return self._put(array.take(rows % width, axis=1), SHARDED_BY_EXAMPLE)

        return put(batches), self._put(rates), drawn.map(put), self._put(counted, SHARDED_BY_EXAMPLE)

    def _put(self, array: Array | NDArray[np.generic], spec: P = REPLICATED) -> Array:
        """Put an array on the devices, in the given sharding."""
        if self._mesh is None:
            return jnp.asarray(array)
        sharding = NamedSharding(self._mesh, spec)
        # copy, as on a CPU JAX would share the memory of the array
        return jax.make_array_from_callback(array.shape, sharding, lambda index: np.array(array[index]))

    @contextmanager
    def _scope(self) -> Iterator[None]:
        """Compute with the device, dtype and precision of the trainer, whatever the process has set."""
        precision = "tensorfloat32" if self.task.tf32 else "highest"
        with (
            translating_errors(),
            jax.default_device(self._device),
            jax.enable_x64(self.task.dtype == "float64"),
            jax.default_matmul_precision(precision),
        ):
            yield


@functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
def _epoch(settings: Settings, state: Arrays, x: Array, labels: Array, steps: Any) -> tuple[Arrays, Array]:
    """Take the steps in order; return the state and the sums of the objective and of the errors."""
    network, objective, optimiser = settings

    def step(state: Arrays, inputs: Any) -> tuple[Arrays, Array]:
        batch, (lr, momentum, sigma, mixing), drawn, counted = inputs
        parameters = {name: state[name] for name in parameter_shapes(network)}
        batch_x, batch_labels = x[batch], labels[batch]

        def mean(parameters: Arrays) -> tuple[Array, tuple[Array, Array]]:
            losses, logits = _objective(network, objective, parameters, batch_x, batch_labels, sigma, drawn)
            errors = _LOSSES[network.loss].error(jax.lax.stop_gradient(logits), batch_labels)
            if counted is None:
                return losses.mean(), (losses.sum(), errors.sum())
            losses = jnp.where(counted, losses, 0)
            return losses.sum(), (losses.sum(), jnp.where(counted, errors, 0).sum())

        gradients, (loss, error) = jax.grad(mean, has_aux=True)(parameters)
        total = jnp.stack([loss, error.astype(loss.dtype)])
        if counted is not None:
            gradients, total = _mean_over_devices(gradients, total, counted)
        return _updated(network, state, gradients, lr, momentum, mixing, optimiser), total

    if len(steps[0]) == 1:
        return step(state, jax.tree.map(lambda array: array[0], steps))
    state, totals = jax.lax.scan(step, state, steps)
    return state, totals.sum(axis=0)


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=2)
def _sharded_epoch(
    mesh: Mesh, settings: Settings, state: Arrays, x: Array, labels: Array, steps: Any
) -> tuple[Arrays, Array]:
    """Take the steps in order, each device on its share of the examples."""
    step_specs = (SHARDED_BY_EXAMPLE, REPLICATED, SHARDED_BY_EXAMPLE, SHARDED_BY_EXAMPLE)
    epoch = jax.shard_map(
        functools.partial(_epoch, settings),
        mesh=mesh,
        in_specs=(REPLICATED, REPLICATED, REPLICATED, step_specs),
        out_specs=REPLICATED,
        check_vma=False,  # `_mean_over_devices` sums over devices; differentiation must not insert sums
    )
    result: tuple[Arrays, Array] = epoch(state, x, labels, steps)
    return result


def _mean_over_devices(gradients: Arrays, total: Array, counted: Array) -> tuple[Arrays, Array]:
    """Return the mean gradient over the examples of all devices, and their total, in one exchange."""
    local, unravel = ravel_pytree((gradients, total, counted.sum(dtype=total.dtype)))
    gradients, total, examples = unravel(jax.lax.psum(local, "examples"))  # type: ignore[no-untyped-call]
    return {name: gradient / examples for name, gradient in gradients.items()}, total


def _objective(
    network: Network, objective: Objective, state: Arrays, x: Array, labels: Array, sigma: Array, drawn: Drawn
) -> tuple[Array, Array]:
    """Return the objective of each example, and the logits that it was computed from."""
    random = drawn.layers
    if objective.name == "penalty":
        return _penalised(network, objective, state, x, labels, sigma, random)
    clean = x
    if objective.name == "noise":
        x = x + sigma * drawn.shift
    elif objective.name in ("perturb", "trades"):
        constant, draws_of_passes = jax.lax.stop_gradient(state), iter(drawn.passes)
        start = None if drawn.shift is None else sigma * drawn.shift
        function, targets, dtype = "inner", labels, objective.direction_dtype
        if objective.name == "trades":
            clean_logits = forward(network, constant, x, drawn.passes[0])
            function, targets = "divergence", jax.nn.log_softmax(clean_logits)
        ascent, arguments = LAST_ITERATES[objective.method], (objective.p, sigma, objective.steps, start)

        def direction(at: Array) -> Array:
            layer_draws = next(draws_of_passes)
            gradient: Array = _direction(network, constant, at, targets, layer_draws, dtype, function)
            return gradient

        x = x + ascent(direction, x, *arguments)
    logits = forward(network, state, x, random)
    if objective.name == "trades":
        clean_logits = forward(network, state, clean, random)
        divergences = divergence(logits, jax.nn.log_softmax(clean_logits))
        losses = _trained_losses(network, objective, clean_logits, labels)
        return losses + objective.beta * divergences, clean_logits
    losses = _trained_losses(network, objective, logits, labels)
    if objective.name == "perturb" and (weight := objective.clean_weight):
        clean_losses = _trained_losses(network, objective, forward(network, state, clean, random), labels)
        losses = weight * clean_losses + (1 - weight) * losses
    return losses, logits


def _trained_losses(network: Network, objective: Objective, logits: Array, labels: Array) -> Array:
    """Return the loss of each example that trains the weights, with smoothed labels."""
    losses: Array = _LOSSES[network.loss].value(logits, labels) + _smoothing(objective, logits, labels)
    return losses


def _smoothing(objective: Objective, logits: Array, labels: Array) -> Array | float:
    """Return the term that smoothed labels add to the loss of each example."""
    if not objective.label_smoothing:
        return 0.0
    right = jnp.take_along_axis(logits, labels[:, None], axis=1)[:, 0]
    return objective.label_smoothing * (right - logits.mean(axis=1))


def _penalised(
    network: Network,
    objective: Objective,
    state: Arrays,
    x: Array,
    labels: Array,
    sigma: Array,
    random: Randoms,
) -> tuple[Array, Array]:
    loss = _LOSSES[network.loss]

    def inner_of(x: Array) -> tuple[Array, tuple[Array, Array]]:
        logits = forward(network, state, x, random)
        inner = loss.inner(logits, labels)
        return inner.sum(), (inner, logits)

    gradient, (inner, logits) = jax.grad(inner_of, has_aux=True)(x)
    losses, smoothing = loss.outer(inner), _smoothing(objective, logits, labels)
    if objective.penalty_by == "difference":
        constant = jax.lax.stop_gradient(gradient)
        eps = frank_wolfe(lambda _: constant, x, objective.p, sigma, 1)
        perturbed = _losses(network, state, x + DIFFERENCE_STEP * eps, labels, random)
        return losses + smoothing + (perturbed - losses) / DIFFERENCE_STEP, logits
    return losses + smoothing + loss.slope(inner) * penalty(gradient, objective.p, sigma), logits


@functools.partial(jax.jit, static_argnums=0)
def _losses(network: Network, state: Arrays, x: Array, labels: Array, random: Randoms | None = None) -> Array:
    losses: Array = _LOSSES[network.loss].value(forward(network, state, x, random), labels)
    return losses


@functools.partial(jax.jit, static_argnums=(0, 5, 6))
def _direction(
    network: Network,
    state: Arrays,
    x: Array,
    targets: Array,
    random: Randoms | None = None,
    dtype: str = "same",
    function: str = "inner",
) -> Array:
    """Return the input gradient of the loss's inner function, or of the divergence; weights get none."""
    of_outputs = divergence if function == "divergence" else _LOSSES[network.loss].inner
    compute_dtype = x.dtype if dtype == "same" else jnp.dtype(dtype)
    rounded = {name: array.astype(compute_dtype) for name, array in state.items()}

    def total(at: Array) -> Array:
        outputs = forward(network, rounded, at.astype(compute_dtype), random)
        return jnp.sum(of_outputs(outputs, targets))

    gradient: Array = jax.grad(total)(x)
    return gradient


@functools.partial(jax.jit, static_argnums=0)
def _logits_and_gradients(network: Network, state: Arrays, x: Array, labels: Array) -> tuple[Array, Array]:
    def total(at: Array) -> tuple[Array, Array]:
        outputs = forward(network, state, at)
        return jnp.sum(_LOSSES[network.loss].inner(outputs, labels)), outputs

    gradient, outputs = jax.grad(total, has_aux=True)(x)
    return outputs, gradient


@functools.partial(jax.jit, static_argnums=0)
def _hessian_products(network: Network, state: Arrays, x: Array, labels: Array, v: Array) -> Array:
    gradient = jax.grad(lambda at: _losses(network, state, at, labels).sum())
    product: Array = jax.jvp(gradient, (x,), (v,))[1]
    return product


def _updated(
    network: Network,
    state: Arrays,
    gradients: Arrays,
    lr: Array,
    momentum: Array,
    mixing: Array,
    optimiser: Optimiser,
) -> Arrays:
    new = {}
    for name, gradient in gradients.items():
        layer, is_weight = layer_of(network, name), name.endswith("weight")
        if is_weight and optimiser.weight_decay:
            gradient = gradient + optimiser.weight_decay * state[name]
        velocity = momentum * state[f"velocity.{name}"] - lr * layer.lr_scale * gradient
        parameter = state[name] + velocity
        if is_weight and layer.max_norm is not None:
            norms = jnp.sqrt(jnp.sum(parameter**2, axis=layer.norm_axes, keepdims=True))
            parameter = parameter * jnp.where(norms > layer.max_norm, layer.max_norm / norms, 1.0)
        new[name], new[f"velocity.{name}"] = parameter, velocity
        if optimiser.ema:
            average = state[AVERAGE + name]
            new[AVERAGE + name] = average + mixing * (parameter - average)
    return new
