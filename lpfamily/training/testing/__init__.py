"""The tests that every backend must pass, as a pytest class to subclass.

A backend's whole conformance test is::

    from lpfamily.training.testing import BackendTests

    class TestMine(BackendTests):
        backend = "mine"

The tests use small networks of the layers that the backend supports. They compare with
`lpfamily.training.testing.oracle`, in NumPy float64: gradients with respect to inputs are computed by the
complex step, which is exact to rounding, and gradients with respect to parameters by central differences.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
from numpy.linalg import norm
from numpy.testing import assert_allclose, assert_array_equal

from lpfamily.step import epsilon
from lpfamily.training import backends
from lpfamily.training.backends import Backend, Trainer
from lpfamily.training.draws import Draws, Mask, Random
from lpfamily.training.errors import BadInput
from lpfamily.training.networks import (
    AVERAGE,
    ConvMaxout,
    Dense,
    Dropout,
    Floats,
    Maxout,
    Network,
    Rectifier,
    Shape,
    State,
    at_rest,
    evaluated,
    initial_state,
    parameter_shapes,
    state_shapes,
)
from lpfamily.training.tasks import Machine, Objective, Optimiser, Rates, Task
from lpfamily.training.testing import oracle

HALF = Dropout(0.5, 2.0)
FIRST: dict[str, Any] = {"max_norm": 1.2, "dropout": Dropout(0.8, 1.0), "lr_scale": 0.5}
LAST = Dense(3, max_norm=1.5, dropout=HALF)
NETWORKS = {
    "sigmoid": Network(6, (Dense(5, "sigmoid", max_norm=2.0), Dense(4, "sigmoid"), Dense(3, max_norm=1.5))),
    "rectifiers": Network(6, (Rectifier(5, **FIRST, noise=0.3), Rectifier(5, dropout=HALF), LAST)),
    "maxout": Network(6, (Maxout(4, 3, **FIRST), Maxout(5, 2, dropout=HALF, noise=0.5), LAST)),
    "convolutions": Network(
        30,
        (
            ConvMaxout(2, 2, 2, 0, 3, 2, False, max_norm=0.8, dropout=Dropout(0.8, 1.0), noise=0.2),
            ConvMaxout(2, 3, 2, 1, 2, 2, max_norm=0.9, dropout=HALF, noise=0.3, lr_scale=0.5),
            Maxout(3, 2),
            Dense(3, dropout=HALF, noise=0.1),
        ),
        image=(1, 5, 6),
    ),
    "regression": Network(6, (Dense(5, "sigmoid", **FIRST), Dense(2, dropout=HALF)), loss="squared-error"),
}
"""They have windows that extend past the edge, images that are not square, and every option of a layer."""

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
WITH_DROPOUT = [
    Objective("plain"),
    Objective("noise"),
    Objective("perturb", 2.0),
    Objective("perturb", 1.5, clean_weight=0.3, direction_dropout="same"),
    Objective("perturb", math.inf, steps=2, random_start=True, direction_dropout="independent"),
    Objective("penalty", 2.0),
    Objective("penalty", 1.0, penalty_by="difference"),
]
OPTIONAL = {
    "label_smoothing": [
        replace(objective, label_smoothing=0.2)
        for objective in WITH_DROPOUT
        if objective.name != "noise" and objective.steps == 1
    ],
    "trades": [
        Objective("trades", p, steps=steps, beta=2.0, direction_dropout=dropout)  # type: ignore[arg-type]
        for p, steps, dropout in ((2.0, 1, "none"), (math.inf, 2, "independent"), (1.5, 2, "same"))
    ],
    "method": [
        Objective("perturb", p, steps=3, method="projected", random_start=start)
        for p, start in ((1.0, True), (1.5, False), (2.0, True), (math.inf, False))
    ],
}
"""Objectives of classifiers, by the option that they need and that a backend need not support."""


class BackendTests:
    """Conformance tests of a backend. Set `backend` to the name under which it is registered.

    `device` is the device to test. Override `called` if the backend's models do not take and return arrays
    that NumPy can read. A test is skipped if it needs something that the backend need not support.
    """

    backend: ClassVar[str]
    device: ClassVar[str] = "cpu"

    def find(self) -> Backend:
        """Return the backend under test."""
        return backends.find(self.backend)

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Run each test on every network that the backend supports, with layer noise if it supports that."""
        backend = self.find()
        layers, losses, options = backend.layers, backends.losses_of(backend), backends.options_of(backend)
        networks = {
            name: network if "layer_noise" in options else _changed(network, noise=None)
            for name, network in NETWORKS.items()
            if {*map(type, network.layers)} <= layers and network.loss in losses
        }
        names = list(networks)
        if "objective" in metafunc.fixturenames:
            optional = [each for name, some in OPTIONAL.items() if name in options for each in some]
            cases = [
                pytest.param(networks[name], objective, id=f"{name}-{objective}")
                for name in names
                for objective in (
                    *(OBJECTIVES if name in ("sigmoid", "regression") else WITH_DROPOUT),
                    *(optional if name in ("sigmoid", "maxout") else ()),
                )
            ]
            if "layer_noise" in options:  # also with a curved activation
                noisy = _changed(NETWORKS["sigmoid"], noise=0.3)
                cases.append(pytest.param(noisy, Objective("penalty", 2.0), id="noisy-penalty"))
            metafunc.parametrize(("network", "objective"), cases)
        for argument, loss in ("classifier", "cross-entropy"), ("regression", "squared-error"):
            if argument in metafunc.fixturenames:
                of_loss = {name: network for name, network in networks.items() if network.loss == loss}
                metafunc.parametrize(argument, list(of_loss.values()), ids=list(of_loss))
        if "objective" not in metafunc.fixturenames and "network" in metafunc.fixturenames:
            if metafunc.function.__name__ == "test_a_compiled_step_is_the_same" and "convolutions" in names:
                names.remove("maxout")  # "convolutions" ends with such layers, and this takes half a minute
            metafunc.parametrize("network", [networks[name] for name in names], ids=names)

    def test_logits_are_the_networks(self, network: Network) -> None:
        task, state, trainer = self._made(network)
        expected = oracle.logits(network, state, task.x)
        assert_allclose(trainer.logits(task.x), expected, rtol=1e-12)

    def test_losses_are_the_cross_entropy(self, classifier: Network) -> None:
        """For confident networks too, right or wrong: as log(1 + exp(odds)); logsumexp - z_y cancels."""
        network, task, state = classifier, _task(classifier), _state(classifier)
        for scale in 1, 30:
            loud = _louder(network, state, scale)
            odds = oracle.error_log_odds(oracle.logits(network, loud, task.x), task.labels)
            losses = self._trainer(task, loud).losses(task.x, task.labels)
            assert_allclose(losses, np.logaddexp(0, odds), rtol=1e-12)

    def test_losses_are_half_the_mean_square(self, regression: Network) -> None:
        task, state, trainer = self._made(regression)
        expected = oracle.distance(oracle.logits(regression, state, task.x), task.labels) ** 2 / 2
        assert_allclose(trainer.losses(task.x, task.labels), expected, rtol=1e-12)

    def test_input_gradients_are_those_of_the_inner_function(self, network: Network) -> None:
        """The inner function is the error log-odds, or the distance from the targets."""
        task, state, trainer = self._made(network)
        expected = oracle.input_gradient(_loss(network).inner, network, state, task.x, task.labels)
        actual = trainer.input_gradients(task.x, task.labels)
        assert_allclose(actual, expected, rtol=1e-10)
        logits, again = backends.logits_and_gradients(trainer, task.x, task.labels)
        assert_allclose(logits, trainer.logits(task.x), rtol=1e-12)
        assert_allclose(again, actual, rtol=1e-12)

    def test_the_direction_of_a_confident_network_does_not_round_away(self, classifier: Network) -> None:
        network, task = classifier, _task(classifier, "float32")
        state = _louder(network, _state(network, "float32"), 100)
        x = task.x.astype(np.float64)
        labels = oracle.logits(network, state, x).argmax(axis=1)
        gradients = self._trainer(task, state).input_gradients(task.x, labels)
        actual = epsilon(gradients.astype(np.float64), 2, 1.0)
        expected = epsilon(oracle.input_gradient(oracle.error_log_odds, network, state, x, labels), 2, 1.0)
        assert_allclose(actual, expected, atol=1e-4)

    def test_the_direction_of_a_close_prediction_does_not_round_away(self, regression: Network) -> None:
        """Also where the square of its distance underflows."""
        network, task = regression, _task(regression, "float32")
        state = _louder(network, _state(network, "float32"), np.float32(1e-25))
        targets = np.zeros_like(task.labels)
        actual = self._trainer(task, state).input_gradients(task.x, targets).astype(np.float64)
        x = task.x.astype(np.float64)
        expected = oracle.input_gradient(oracle.distance, network, state, x, targets)
        assert_allclose(epsilon(actual, 2, 1.0), epsilon(expected, 2, 1.0), atol=1e-4)

    def test_exact_predictions_have_no_direction_and_stay(self, regression: Network) -> None:
        """The numbers here are exact; the Hessian product of the loss there is J'J v / outputs."""
        layers = tuple(Dense(2) for _ in range(2))
        network, rng = replace(regression, layers=layers), np.random.default_rng(4)
        before: State = {
            name: rng.integers(-8, 8, array.shape) / 4 * (not name.startswith("velocity."))
            for name, array in initial_state(network, 0, "float64").items()
        }
        x = rng.integers(-8, 8, (7, network.inputs)) / 4
        targets = oracle.logits(network, before, x)
        jacobian = before["layers.0.weight"] @ before["layers.1.weight"]
        for objective in Objective("plain"), *(each for each in OBJECTIVES if each.p == 1.5):
            if objective.random_start:
                continue
            task = replace(_task(network), objective=objective, x=x, labels=targets)
            trainer = self._trainer(task, before)
            metrics = trainer.epoch(np.arange(7), _rates(1, lr=1.0, momentum=0.0), Draws(5, 2))
            assert metrics == {"loss": 0, "error": 0}
            _assert_close(trainer.state(), before)
        assert not trainer.input_gradients(x, targets).any()
        v = rng.standard_normal(x.shape)
        actual = trainer.hessian_products(x, targets, v)
        assert_allclose(actual, v @ jacobian @ jacobian.T / 2, rtol=1e-12, atol=1e-12)

    def test_hessian_products_are_derivatives_of_the_gradient(self, network: Network) -> None:
        task, state, trainer = self._made(network)
        v = np.random.default_rng(3).standard_normal(task.x.shape)

        def gradient(x: Floats) -> Floats:
            return oracle.input_gradient(_loss(network).value, network, state, x, task.labels)

        expected = (gradient(task.x + 1e-5 * v) - gradient(task.x - 1e-5 * v)) / 2e-5
        actual = trainer.hessian_products(task.x, task.labels, v)
        assert_allclose(actual, expected, rtol=1e-6, atol=1e-9)

    def test_hessian_products_of_a_confident_network_do_not_round_away(self, classifier: Network) -> None:
        """They are s ((1 - s) <g, v> g + H v), with s the sigmoid of the odds, g and H their derivatives."""
        network = classifier
        task, state = _task(network, "float32"), _state(network, "float32")
        x, v = task.x.astype(np.float64), np.random.default_rng(3).standard_normal(task.x.shape)
        *_, second, first = np.sort(oracle.logits(network, state, x), axis=1).T
        scale = np.float32(60 / (first - second).max())  # odds of -60 are far from underflow in float32
        state = _louder(network, state, scale)
        labels = oracle.logits(network, state, x).argmax(axis=1)

        def gradient(x: Floats) -> Floats:
            return oracle.input_gradient(oracle.error_log_odds, network, state, x, labels)

        s = 1 / (1 + np.exp(-oracle.error_log_odds(oracle.logits(network, state, x), labels)))[:, None]
        g, along = gradient(x), (gradient(x + 1e-6 * v) - gradient(x - 1e-6 * v)) / 2e-6
        expected = (1 - s) * (g * v).sum(axis=1, keepdims=True) * g + along
        actual = self._trainer(task, state).hessian_products(task.x, labels, v.astype(np.float32)) / s
        size = np.abs(expected).max(axis=1, keepdims=True)
        assert_allclose(actual / size, expected / size, atol=1e-3)

    def test_no_examples_give_no_rows(self, network: Network) -> None:
        """In a small last batch, one of several processes may have no examples."""
        task, _, trainer = self._made(network)
        x, labels = task.x[:0], task.labels[:0]
        assert trainer.logits(x).shape == (0, network.classes)
        assert trainer.losses(x, labels).shape == (0,)
        assert trainer.input_gradients(x, labels).shape == x.shape
        assert trainer.hessian_products(x, labels, x).shape == x.shape

    def test_a_step_descends_the_objective(self, network: Network, objective: Objective) -> None:
        """The dropout and noise are those of the draws, wherever the objective uses them."""
        network, draws = _changed(network, max_norm=None), Draws(5, 2)
        task, before, trainer = self._made(network, objective=objective)
        metrics = trainer.epoch(np.arange(len(task.x)), _rates(1, lr=0.5, momentum=0.0), draws)
        value, gradients = oracle.objective_and_gradient(task, before, np.arange(len(task.x)), 0.4, 0, draws)
        expected, actual = oracle.updated(task, before, gradients, 0.5, 0.0), trainer.state()
        _assert_close(actual, {name: expected[name] for name in gradients}, rtol=2e-5, atol=2e-8)
        assert metrics["loss"] == pytest.approx(value, rel=1e-9)

    def test_the_direction_of_a_divergence_does_not_round_away(self, classifier: Network) -> None:
        """Also where x and x + eps have the same class so surely that f(x + eps) - f(x) rounds to 0."""
        if "trades" not in backends.options_of(self.find()):
            pytest.skip("it does not train with trades")
        network = _changed(classifier, max_norm=None, dropout=None, noise=None)
        task, state, _ = self._made(network, objective=Objective("trades", 2.0, beta=1e6))
        *_, second, first = np.sort(oracle.logits(network, state, task.x), axis=1).T
        surest = (first - second).argmax()
        state, draws = _louder(network, state, 40 / (first - second)[surest]), Draws(5, 2)
        labels = oracle.logits(network, state, task.x).argmax(axis=1)
        task, order = replace(task, labels=labels, batch_size=1), np.array([surest])
        rates = Rates(*(np.array([each]) for each in (0.0, 0.0, 0.05)))
        actual = self._trainer(task, state).epoch(order, rates, draws)
        expected = oracle.objective(task, state, order, 0.05, 0, draws)(state)
        assert actual["loss"] == pytest.approx(expected, rel=1e-6)
        assert 0 < expected < 1e-6

    @pytest.mark.parametrize("dtype", ["float32", "float64"])
    def test_a_direction_of_fewer_bits_gains_as_much_of_the_loss(self, network: Network, dtype: str) -> None:
        """It loses the square of its rounding, as the gain is stationary at its maximum on the sphere."""
        network = _changed(network, dropout=None, noise=None)

        def loss(objective: Objective) -> float:
            _, _, trainer = self._made(network, dtype, objective=objective)
            return trainer.epoch(np.arange(7), _rates(1, lr=0.0, momentum=0.0), Draws(5, 2))["loss"]

        clean, perturbed = loss(Objective("plain")), loss(Objective("perturb"))
        shares = {
            kind: (loss(Objective("perturb", direction_dtype=kind)) - clean) / (perturbed - clean)  # type: ignore[arg-type]
            for kind in self.find().direction_dtypes
        }
        assert shares.pop("same") == 1
        for kind, share in shares.items():
            assert share == pytest.approx(1, abs=0.01), kind
            assert share != 1, kind

    @pytest.mark.parametrize("kind", ["plain", "perturb", "penalty"])
    def test_rounded_products_change_a_step_a_little_and_tests_not(self, network: Network, kind: str) -> None:
        if "bf16" not in backends.options_of(self.find()):
            pytest.skip("it does not round products to bfloat16")
        objective, rounding = Objective(kind, 2.0), Machine(bf16=True)  # type: ignore[arg-type]
        for dtype, is_rounded in ("float32", True), ("float64", False):
            results = []
            for machine in Machine(), rounding:
                task, before, trainer = self._made(network, dtype, objective=objective, machine=machine)
                tested = trainer.logits(task.x), trainer.input_gradients(task.x, task.labels)
                metrics = trainer.epoch(np.arange(7), _rates(1, lr=0.5, momentum=0.5), Draws(5, 2))
                results.append((tested, metrics["loss"], trainer.state()))
            (tested, loss, after), (tested_too, rounded_loss, rounded) = results
            for expected, actual in zip(tested, tested_too, strict=True):
                assert_array_equal(actual, expected)
            assert rounded_loss == pytest.approx(loss, rel=0.02)
            assert (rounded_loss != loss) == is_rounded
            for name, array in after.items():
                moved, error = norm(array - before[name]), norm(rounded[name] - array)
                assert error <= 0.1 * moved, name
                assert (error > 0) == is_rounded, name

    def test_an_epoch_is_its_steps(self, network: Network) -> None:
        """Rates, momentum, weight decay, norm constraints, dropout, noise, average, a smaller last batch."""
        perturb, decay = Objective("perturb", 1.5), self._optimiser()
        task, state, trainer = self._made(network, objective=perturb, batch_size=3, optimiser=decay)
        order, draws = np.array([4, 0, 6, 2, 5, 1, 3]), Draws(5, 2)
        table = [[0.8, 0.5, 0.1, 0.9], [0.5, 0.6, 0.2, 0.3], [0.3, 0.9, 0.4, 0.05]]
        rates = Rates(*np.array(table).T)
        metrics = trainer.epoch(order, rates, draws)
        losses = []
        for step in range(3):
            batch, sigma = order[3 * step : 3 * step + 3], rates.sigma[step]
            loss, gradients = oracle.objective_and_gradient(task, state, batch, sigma, step, draws)
            losses.append(loss * len(batch))
            lr, momentum, _, mixing = rates.table()[step]
            state = oracle.updated(task, state, gradients, lr, momentum, mixing)
        _assert_close(trainer.state(), state, rtol=1e-5, atol=1e-8)
        assert metrics["loss"] == pytest.approx(sum(losses) / 7, rel=1e-6)

    def test_metrics_count_the_errors_that_the_objective_sees(self, network: Network) -> None:
        network = _changed(network, dropout=None, noise=None)
        task, state, trainer = self._made(network)
        metrics = trainer.epoch(np.arange(len(task.x)), _rates(1, lr=0.0, momentum=0.0), Draws(5, 2))
        seen = oracle.logits(network, state, task.x)
        assert metrics == {
            "loss": pytest.approx(_loss(network).value(seen, task.labels).mean(), rel=1e-9),
            "error": pytest.approx(_loss(network).error(seen, task.labels).mean()),
        }

    def test_dropout_keeps_what_the_draws_say(self, network: Network) -> None:
        """Masks that keep everything leave only the scale, and masks that keep nothing only the biases."""
        network = _changed(network, noise=None)
        if network == NETWORKS["sigmoid"]:
            network = _changed(network, dropout=HALF)
        task, state, trainer = self._made(network)
        losses = []
        for draws in _Injected(5, 2, True), _Injected(5, 2, False):
            losses.append(trainer.epoch(np.arange(7), _rates(1, lr=0.0, momentum=0.0), draws)["loss"])
            seen = oracle.logits(network, state, task.x, [*map(Random, draws.masks(0, network, 7))])
            expected = _loss(network).value(seen, task.labels).mean()
            assert losses[-1] == pytest.approx(expected, rel=1e-12)
        assert losses[0] != losses[1]

    def test_dropout_has_the_mean_over_all_masks(self) -> None:
        network = Network(2, (Dense(2, "sigmoid", dropout=Dropout(0.8, 1.0)), Dense(3, dropout=HALF)))
        task, state, trainer = self._made(network)
        mean = 0.0
        for bits in itertools.product([False, True], repeat=4):
            masks = [Random(np.tile(np.array(pair), (7, 1))) for pair in (bits[:2], bits[2:])]
            chance = math.prod(0.8 if bit else 0.2 for bit in bits[:2]) / 4
            dropped = oracle.logits(network, state, task.x, masks)
            mean += chance * oracle.cross_entropy(dropped, task.labels).mean()
        order, rates = np.tile(np.arange(7), 400), _rates(400, lr=0.0, momentum=0.0)
        losses = [trainer.epoch(order, rates, Draws(5, epoch))["loss"] for epoch in range(10)]
        spread = np.std(losses, ddof=1) / math.sqrt(10)
        without = oracle.cross_entropy(oracle.logits(network, state, task.x), task.labels).mean()
        assert abs(np.mean(losses) - mean) < 4 * spread < abs(without - mean) / 2

    def test_ties_give_their_gradient_to_the_first(self, network: Network) -> None:
        """With zero biases, a zero input ties all pieces, and in a convolution all positions."""
        network = _changed(network, dropout=None, noise=None)
        task = replace(_task(network), objective=Objective("plain"), x=np.zeros((7, network.inputs)))
        state = initial_state(network, 0, "float64")
        inner = _loss(network).inner
        expected = oracle.input_gradient(inner, network, state, task.x, task.labels)
        beside = oracle.input_gradient(inner, network, state, task.x + 1e-9, task.labels)
        trainer = self._trainer(task, state)
        actual = trainer.input_gradients(task.x, task.labels)
        assert_allclose(actual, expected, rtol=1e-11, atol=1e-14)
        assert np.any(beside != 0)
        trainer.epoch(np.arange(7), _rates(1, lr=1.0, momentum=0.0), Draws(5, 2))
        for index, layer in enumerate(network.layers):
            name = f"layers.{index}.bias"
            step = -layer.lr_scale * _bias_gradient(network, state, name, task)
            # those that are not first stay unchanged, to the bit
            assert_allclose(trainer.state()[name], step, rtol=1e-9, atol=0, err_msg=name)

    def test_the_norm_constraint_holds_after_every_epoch(self, network: Network) -> None:
        task, _, trainer = self._made(network)
        trainer.epoch(np.arange(len(task.x)), _rates(1, lr=50.0, momentum=0.5), Draws(5, 2))
        for index, layer in enumerate(network.layers):
            weight = trainer.state()[f"layers.{index}.weight"]
            norms = np.sqrt(np.sum(weight**2, axis=layer.norm_axes))
            assert layer.max_norm is None or norms.max() <= layer.max_norm * (1 + 1e-12)

    @pytest.mark.parametrize("dtype", ["float32", "float64"])
    def test_a_state_continues_as_if_nothing_had_happened(self, network: Network, dtype: str) -> None:
        """To the bit: resumed runs rely on it."""
        objective = Objective("perturb", 2.0, random_start=True)
        task, begin, first = self._made(
            network, dtype, objective=objective, batch_size=3, optimiser=self._optimiser()
        )
        rates, order = _rates(3, lr=0.5, momentum=0.9), np.arange(7)
        first.epoch(order, rates, Draws(5, 0))
        middle = first.state()
        first.epoch(order, rates, Draws(5, 1))
        for second in (self._trainer(task, middle), self._trainer(task, begin)):
            second.load(middle)
            second.epoch(order, rates, Draws(5, 1))
            _assert_close(second.state(), first.state())

    @pytest.mark.parametrize("objective_name", ["plain", "noise", "perturb", "penalty"])
    def test_the_average_follows_the_parameters_and_changes_nothing(self, objective_name: Any) -> None:
        """After each step the parameters are those of a trainer without an average, and give the average."""
        self._skip_without_averages()
        network, order, draws = NETWORKS["sigmoid"], np.arange(7), Draws(5, 2)
        rates = Rates(np.full(4, 0.5), np.full(4, 0.5), np.full(4, 0.4), np.array([0.9, 0.5, 0.2, 0.01]))
        task, begin, plain = self._made(network, objective=Objective(objective_name), batch_size=2)
        average = evaluated(network, begin)
        for step, mixing in enumerate(rates.table()[:, 3], 1):
            plain.load(begin)
            first = Rates(*rates.table()[:step].T)
            plain.epoch(order[: 2 * step], first, draws)
            at = plain.state()
            average = {name: (1 - mixing) * each + mixing * at[name] for name, each in average.items()}
        task = replace(task, optimiser=Optimiser(ema=0.5))
        trainer = self._trainer(task, at_rest(evaluated(network, begin), averaged=True) | begin)
        trainer.epoch(order, rates, draws)
        expected = at | {AVERAGE + name: each for name, each in average.items()}
        _assert_close(trainer.state(), expected, rtol=1e-12, atol=1e-14)

    def test_the_average_is_what_is_tested(self, network: Network) -> None:
        self._skip_without_averages()
        task, state, trainer = self._made(network, optimiser=Optimiser(ema=0.5))
        average = {name: state[f"average.{name}"] for name in parameter_shapes(network)}
        other = self._trainer(replace(task, optimiser=Optimiser()), at_rest(average))
        given = task.x, task.labels, task.x[::-1].copy()
        counts = {"logits": 1, "losses": 2, "input_gradients": 2, "hessian_products": 3}
        for name, count in counts.items():
            actual, expected = (getattr(each, name)(*given[:count]) for each in (trainer, other))
            assert_allclose(actual, expected, rtol=1e-12, err_msg=name)
        both = backends.logits_and_gradients(trainer, task.x, task.labels)
        for actual, name in zip(both, ("logits", "input_gradients"), strict=True):
            assert_allclose(actual, getattr(other, name)(*given[: counts[name]]), rtol=1e-12, err_msg=name)
        _assert_close(trainer.state(), state)

    @pytest.mark.parametrize("dtype", ["float32", "float64"])
    def test_the_state_is_named_arrays_of_the_trainers_dtype(self, network: Network, dtype: str) -> None:
        for optimiser in Optimiser(), self._optimiser():
            state = self._made(network, dtype, optimiser=optimiser)[-1].state()
            expected = state_shapes(network, optimiser.ema > 0)
            assert {name: array.shape for name, array in state.items()} == expected
            assert {str(array.dtype) for array in state.values()} == {dtype}

    def test_the_state_handed_out_is_a_copy(self, network: Network) -> None:
        _, begin, trainer = self._made(network)
        before = trainer.state()
        kept = {name: array.copy() for name, array in before.items()}
        trainer.epoch(np.arange(7), _rates(1, lr=1.0, momentum=0.5), Draws(5, 0))
        _assert_close(before, kept)
        _assert_close(begin, kept)

    def test_arrays_handed_in_may_be_read_only(self, network: Network) -> None:
        task, state = _task(network), _state(network)
        for array in (task.x, task.labels, *state.values()):
            array.flags.writeable = False
        trainer = self._trainer(task, state)
        trainer.epoch(np.arange(7), _rates(1, lr=1.0, momentum=0.5), Draws(5, 0))

    def test_it_names_the_layers_that_it_trains(self) -> None:
        backend, network = self.find(), NETWORKS["sigmoid"]
        backends.check_layers("mine", backend, network)
        with pytest.raises(BadInput, match=r"does not train Strange layers, only .*Dense"):
            backends.check_layers("mine", backend, replace(network, layers=(_Strange(3),)))

    def test_it_names_the_losses_that_it_trains_with(self) -> None:
        backend, network = self.find(), NETWORKS["sigmoid"]
        backends.check_loss("mine", backend, network)
        with pytest.raises(BadInput, match=r"does not train with hinge, only with cross-entropy"):
            backends.check_loss("mine", backend, replace(network, loss="hinge"))  # type: ignore[arg-type]

    def test_it_names_the_options_that_it_knows(self) -> None:
        known = backends.options_of(self.find())
        assert known <= backends.OPTIONS
        smoothed, without = Objective(label_smoothing=0.1), SimpleNamespace(options=frozenset())
        with pytest.raises(BadInput, match="'mine' does not know --label-smoothing; leave it out"):
            backends.check_options("mine", without, smoothed)
        if "label_smoothing" in known:
            backends.check_options("mine", self.find(), smoothed)

    def test_it_names_the_dtypes_of_its_directions(self) -> None:
        backend = self.find()
        backends.check_direction("mine", backend, Objective("perturb"))
        with pytest.raises(BadInput, match="'mine' does not compute in int4; leave --direction-dtype out"):
            backends.check_direction("mine", backend, Objective(direction_dtype="int4"))  # type: ignore[arg-type]

    def test_a_compiled_step_is_the_same(self, network: Network) -> None:
        if problem := self.find().compile_problem(self.device):
            pytest.skip(problem)
        objective = Objective("perturb", 1.5, direction_dropout="independent")
        if isinstance(network.layers[0], Dense):
            objective = Objective("penalty", 2.0)
        if isinstance(network.layers[0], Rectifier):  # for convolutions this takes a minute to compile
            objective = Objective("perturb", 1.5, clean_weight=0.3, direction_dropout="same", steps=2)
        results = []
        for machine in Machine(), Machine(compile=True):
            decay = self._optimiser()
            _, _, trainer = self._made(network, objective=objective, optimiser=decay, machine=machine)
            metrics = trainer.epoch(np.arange(7), _rates(1, lr=0.5, momentum=0.5), Draws(5, 2))
            results.append((metrics, trainer.state()))
        (metrics, state), (compiled_metrics, compiled_state) = results
        assert compiled_metrics == pytest.approx(metrics, rel=1e-9)
        _assert_close(compiled_state, state, rtol=1e-9, atol=1e-12)

    def test_a_compiled_step_rounds_products_too(self) -> None:
        if problem := self.find().compile_problem(self.device):
            pytest.skip(problem)
        if "bf16" not in backends.options_of(self.find()):
            pytest.skip("it does not round products to bfloat16")
        losses = []
        for machine in Machine(), Machine(bf16=True), Machine(bf16=True, compile=True):
            objective = Objective("perturb", 2.0)
            _, _, trainer = self._made(NETWORKS["sigmoid"], "float32", objective=objective, machine=machine)
            losses.append(trainer.epoch(np.arange(7), _rates(1, lr=0.5, momentum=0.5), Draws(5, 2))["loss"])
        exact, rounded, compiled = losses
        assert compiled == pytest.approx(rounded, abs=abs(rounded - exact) / 2)

    def test_an_epoch_says_how_far_it_is_and_is_the_same(self) -> None:
        network, states, ticks = NETWORKS["sigmoid"], [], []
        for watched in False, True:
            task, state, _ = self._made(network)
            trainer = self._trainer(replace(task, batch_size=2), state)
            if not hasattr(trainer, "tick"):
                pytest.skip("its trainers do not tick")
            if watched:
                trainer.tick = lambda done, of, what="": ticks.append((done, of))
            trainer.epoch(np.arange(7), _rates(4, lr=0.5, momentum=0.5), Draws(5, 2))
            states.append(trainer.state())
        assert {of for _, of in ticks} == {4}
        done = [each for each, _ in ticks]
        assert done == sorted({*done})
        assert done[-1] == 4
        _assert_close(states[1], states[0])

    def test_a_device_that_is_not_there_is_bad_input(self) -> None:
        self.find().check_device(self.device)
        with pytest.raises(BadInput, match="--device abacus"):
            self.find().check_device("abacus")

    def called(self, model: Callable[[Any], Any], x: Floats) -> Floats:
        """Return model(x). Override it if models do not take and return arrays that NumPy can read."""
        return np.asarray(model(x))

    def test_a_model_has_the_trainers_logits(self, network: Network) -> None:
        task, state, trainer = self._made(network, "float32")
        parameters = {name: array for name, array in state.items() if not name.startswith("velocity.")}
        model = self.find().model(network, parameters)
        expected = trainer.logits(task.x)
        for array in parameters.values():
            array[...] = 0  # the model must hold copies
        assert_allclose(self.called(model, task.x), expected, rtol=1e-4, atol=1e-6)
        with pytest.raises(ValueError, match=f"must have shape .n, {network.inputs}"):
            self.called(model, task.x[:, 1:])

    def _made(self, network: Network, dtype: str = "float64", **changes: Any) -> tuple[Task, State, Trainer]:
        """Return a task with changes, a state, and the trainer that starts from it."""
        task = replace(_task(network, dtype), **changes)
        state = _state(network, dtype, task.optimiser.ema > 0)
        return task, state, self._trainer(task, state)

    def _optimiser(self) -> Optimiser:
        """Return an optimiser with every option that the backend supports."""
        return Optimiser(0.01, ema=0.9 if "ema" in backends.options_of(self.find()) else 0.0)

    def _skip_without_averages(self) -> None:
        if "ema" not in backends.options_of(self.find()):
            pytest.skip("its trainers do not average")

    def _trainer(self, task: Task, state: State) -> Trainer:
        return self.find().trainer(replace(task, machine=replace(task.machine, device=self.device)), state)


class _Strange(Dense):
    """A layer that no backend supports."""


_Strange.__name__ = "Strange"


@dataclass(frozen=True)
class _Injected(Draws):
    """Draws whose dropout masks keep everything, or nothing."""

    keeps: bool = True

    def kept(self, step: int, layer: int, shape: Shape, include: float, again: int = 0) -> Mask:
        return np.full(shape, self.keeps)


def _assert_close(actual: State, expected: State, rtol: float = 0.0, atol: float = 0.0) -> None:
    """Compare states array by array, by default for equality."""
    for name, array in expected.items():
        assert_allclose(actual[name], array, rtol=rtol, atol=atol, err_msg=name)


def _task(network: Network, dtype: str = "float64") -> Task:
    rng = np.random.default_rng(1)
    x = rng.uniform(0, 1, (7, network.inputs)).astype(dtype)
    labels = rng.integers(0, network.classes, 7)
    if network.loss == "squared-error":
        labels = rng.normal(0, 1, (7, network.classes)).astype(dtype)
    return Task(network, Objective("plain"), x, labels, batch_size=7, dtype=dtype)  # type: ignore[arg-type]


def _loss(network: Network) -> oracle.Loss:
    return oracle.LOSSES[network.loss]


def _state(network: Network, dtype: str = "float64", averaged: bool = False) -> State:
    """Return a state whose biases and averages differ from those at the start of training."""
    rng = np.random.default_rng(2)
    state = initial_state(network, 0, dtype, averaged)
    return {
        name: array
        if name.endswith("weight") and not name.startswith(AVERAGE)
        else array + rng.normal(0, 0.1, array.shape).astype(dtype)
        for name, array in state.items()
    }


def _bias_gradient(network: Network, state: State, name: str, task: Task) -> Floats:
    """Return the gradient of the mean loss with respect to a bias, by complex steps."""
    gradient = np.zeros_like(state[name])
    for index in np.ndindex(gradient.shape):
        moved = state[name].astype(complex)
        moved[index] += 1e-30j
        outputs = oracle.logits(network, state | {name: moved}, task.x)
        losses = _loss(network).value(outputs, task.labels)
        gradient[index] = losses.imag.mean() / 1e-30
    return gradient


def _louder(network: Network, state: State, scale: float | np.float32) -> State:
    """Return a state whose logits are `scale` times as large."""
    last = f"layers.{len(network.layers) - 1}."
    return {name: scale * array if name.startswith(last) else array for name, array in state.items()}


def _changed(network: Network, **changes: Any) -> Network:
    """Return a network with changes in all its layers."""
    return replace(network, layers=tuple(replace(layer, **changes) for layer in network.layers))


def _rates(steps: int, lr: float, momentum: float) -> Rates:
    return Rates(np.full(steps, lr), np.full(steps, momentum), np.full(steps, 0.4), np.full(steps, 0.3))
