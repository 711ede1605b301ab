"""BackendTests fails on backends that are wrong: each mutant breaks the law that is named for it."""

import functools
from dataclasses import dataclass, replace
from unittest import mock

import numpy as np
import pytest

from lpfamily import epsilon
from lpfamily.divergences import divergence_slope, log_softmax
from lpfamily.training.backends import Objective
from lpfamily.training.draws import Draws, Random
from lpfamily.training.networks import at_rest, parameter_shapes
from lpfamily.training.testing import NETWORKS, BackendTests, oracle
from lpfamily_numpy.model import _elementwise, forward
from lpfamily_numpy.trainer import NumpyBackend, NumpyTrainer, _backward, _factors, _gradients, _smoothing

PERTURB = Objective("perturb", 2.0)
PROJECTED = replace(PERTURB, steps=3, method="projected", random_start=True)
TRADES = replace(PERTURB, objective="trades", beta=2.0)
SMOOTHED = replace(PERTURB, label_smoothing=0.2)


class WithoutWeightGradients(NumpyTrainer):
    def _update(self, gradients, *rest):
        gradients[0] = np.zeros_like(gradients[0])
        super()._update(gradients, *rest)


class WithEpsilonThatMoves(NumpyTrainer):
    """Differentiates through eps: the gradient of the maximum's value where eq. 1 wants eps constant."""

    def _step(self, x, labels, sigma, step, draws):
        losses, errors, _ = super()._step(x, labels, sigma, step, draws)
        names = list(parameter_shapes(self.task.network))

        def mean(state):
            start = np.zeros_like(x)
            eps = oracle.perturbation(self.task, state, x, labels, sigma, start)
            return oracle.cross_entropy(oracle.logits(self.task.network, state, x + eps), labels).sum()

        moving = oracle.central_differences(mean, self.state(), names)
        return losses, errors, [moving[name] for name in names]


class WithOneBallForTheBatch(NumpyTrainer):
    def _step(self, x, labels, sigma, *rest):
        eps = epsilon(self.input_gradients(x, labels), self.task.objective.p, sigma, batch_ndim=0)
        losses, errors, trained = self._losses_at(x + eps, labels)
        return losses, errors, _gradients((1.0, trained))


class WithShiftedLabels(NumpyTrainer):
    def __init__(self, task, state):
        super().__init__(replace(task, labels=(task.labels + 1) % task.network.classes), state)


class WithoutVelocityOnResume(NumpyTrainer):
    def load(self, state):
        super().load(state)
        for name in self._state:
            if name.startswith("velocity."):
                self._state[name][:] = 0


class WithHalfASlopeAtZero(NumpyTrainer):
    """What automatic differentiation of max(0, z) gives in some libraries."""

    def __init__(self, task, state):
        super().__init__(task, state)
        rectified = _elementwise(lambda z: np.maximum(z, 0), lambda y: (1 + np.sign(y)) / 2)
        *hidden, last = self._layers
        self._layers = (*((layer, rectified) for layer, _ in hidden), last)


class WithoutADirectionAtZero(NumpyTrainer):
    """A unit vector as it is written: 0 / 0 where a prediction is exact."""

    def __init__(self, task, state):
        super().__init__(task, state)

        def inner(outputs, targets):
            residual = outputs - targets
            return residual / np.linalg.norm(residual, axis=1, keepdims=True)

        self._deltas = self._deltas._replace(inner=inner)


class WithoutACurvatureAtZero(NumpyTrainer):
    """The second derivative of the loss as that of its outer function at 0, which leaves out the outputs'."""

    def hessian_products(self, x, labels, v):
        inner = self._loss.inner(self.logits(x), labels)
        return super().hessian_products(x, labels, v) * (inner > 0)[:, None]


class WithTheSumOverOutputs(NumpyTrainer):
    def _loss_delta(self, outputs, labels):
        return outputs - labels


class WithSmoothingOverTheWrongClasses(NumpyTrainer):
    """A target of 1 - A at the label, and A / (classes - 1) at the others."""

    def __init__(self, task, state):
        classes = task.network.classes
        amount = task.objective.label_smoothing * classes / (classes - 1)
        super().__init__(replace(task, objective=replace(task.objective, label_smoothing=amount)), state)


class WithSmoothedDirections(NumpyTrainer):
    def _direction(self, x, labels, masks):
        passed = self._forward(x, masks)
        outputs = passed[-1].outputs
        delta = self._loss_delta(outputs, labels)
        delta += _smoothing(self.task.objective.label_smoothing, outputs, labels)[1]
        return passed[0].to_inputs(_backward(passed, delta)[0])


class WithADivergenceThatRoundsAway(NumpyTrainer):
    def _direction(self, x, targets, random, gradient=None):
        if gradient:
            gradient = lambda outputs, log_p: np.exp(log_softmax(outputs)) - np.exp(log_p)  # noqa: E731
        return super()._direction(x, targets, random, gradient)


class WithoutTheDivergencesCleanSide(NumpyTrainer):
    """With f(x) held constant in the divergence."""

    def _trades(self, x, ahead, labels, random):
        losses, errors, _ = super()._trades(x, ahead, labels, random)
        clean, moved = self._forward(x, random), self._forward(ahead, random)
        logits = clean[-1].outputs
        slope = self.task.objective.beta * divergence_slope(moved[-1].outputs, log_softmax(logits))
        passes = _factors(clean, self._loss_delta(logits, labels)), _factors(moved, slope)
        return losses, errors, _gradients(*((1.0, each) for each in passes))


class WithoutProjection(NumpyTrainer):
    def _step(self, *args):
        with mock.patch("lpfamily.ascent.last_iterates.project", lambda eps, *how, **options: eps):
            return super()._step(*args)


class WithNoiseInTesting(NumpyTrainer):
    def _forward(self, x, random=None):
        noise = Draws(0, 0).layer_noise(0, self.task.network, len(x), self.task.dtype)
        return super()._forward(x, random or [Random(None, each) for each in noise])


class WithoutNoise(NumpyTrainer):
    def _forward(self, x, random=None):
        return super()._forward(x, random and [Random(kept) for kept, _ in random])


class WithTwiceTheNoise(NumpyTrainer):
    def _forward(self, x, random=None):
        twice = random and [Random(kept, None if noise is None else 2 * noise) for kept, noise in random]
        return super()._forward(x, twice)


class WithNoiseAfterTheActivation(NumpyTrainer):
    def _forward(self, x, random=None):
        def moved(activation, noise):
            def outputs(z):
                result, saved = activation.outputs(z)
                return (result if noise is None else result + noise), saved

            return activation._replace(outputs=outputs)

        if random is None:
            return super()._forward(x)
        pairs = zip(self._layers, random, strict=True)
        layers = tuple((layer, moved(activation, noise)) for (layer, activation), (_, noise) in pairs)
        return forward(layers, self._state, x, [Random(kept) for kept, _ in random])


class OfAnotherStep(Draws):
    def added(self, step, *rest):
        return super().added(step + 1, *rest)


class OfOneLayer(Draws):
    """So that two layers of one width have one noise."""

    def added(self, step, layer, *rest):
        return super().added(step, 0, *rest)


class InEveryPass(Draws):
    """Where --direction-dropout is none."""

    def step(self, step, task, examples):
        drawn = super().step(step, task, examples)
        return drawn._replace(passes=[[Random(None, noise) for _, noise in drawn.layers]])


def drawing(kind):
    class Drawing(NumpyTrainer):
        def _step(self, x, labels, sigma, step, draws):
            return super()._step(x, labels, sigma, step, kind(draws.seed, draws.epoch))

    return Drawing


class WithAnAverageOfTheStepBefore(NumpyTrainer):
    """Averages with the mixing weight of the step before."""

    before = 1.0

    def _average(self, mixing):
        super()._average(self.before)
        self.before = mixing


class WithAnAverageOfOldParameters(NumpyTrainer):
    """Updates the average before the step."""

    def _update(self, *given):
        self._old = {name: self._state[name].copy() for name in parameter_shapes(self.task.network)}
        super()._update(*given)

    def _average(self, mixing):
        now, self._state = self._state, self._state | self._old
        super()._average(mixing)
        self._state = now


class WithGradientsAtTheAverage(NumpyTrainer):
    def _step(self, *given):
        return (self._evaluated if self.task.optimiser.ema else self)._at_parameters(*given)

    def _at_parameters(self, *given):
        return super()._step(*given)


class WithoutAnAverageInTests(NumpyTrainer):
    @property
    def _evaluated(self):
        return self


class WithLogitsOfTheParameters(NumpyTrainer):
    """The logits that come with gradients are those of the parameters, not of their averages."""

    def input_gradients(self, x, labels):
        return super().logits_and_gradients(x, labels)[1]

    def logits_and_gradients(self, x, labels):
        return self._forward(x)[-1].outputs, self.input_gradients(x, labels)


class WithoutItsAverageOnResume(NumpyTrainer):
    def load(self, state):
        parameters = {name: state[name] for name in parameter_shapes(self.task.network)}
        super().load(state | {name: a for name, a in at_rest(parameters, True).items() if name in state})


@dataclass(frozen=True)
class Mutant(NumpyBackend):
    kind: type[NumpyTrainer] = NumpyTrainer

    def trainer(self, task, state):
        return self.kind(task, state)


def laws(kind):
    tests = BackendTests()
    tests.find = lambda: Mutant(kind=kind)
    step = functools.partial(tests.test_a_step_descends_the_objective, NETWORKS["sigmoid"], PERTURB)
    return tests, step


NOISY = replace(
    NETWORKS["rectifiers"],
    layers=tuple(replace(layer, noise=0.3, dropout=None) for layer in NETWORKS["rectifiers"].layers),
)


def descends(network, objective):
    return lambda tests, step: functools.partial(tests.test_a_step_descends_the_objective, network, objective)


def follows(tests, step):
    return functools.partial(tests.test_the_average_follows_the_parameters_and_changes_nothing, "perturb")


CASES = {
    "noise in testing": (
        WithNoiseInTesting,
        lambda tests, step: functools.partial(tests.test_logits_are_the_networks, NOISY),
    ),
    "no noise in training": (WithoutNoise, descends(NOISY, PERTURB)),
    "twice the noise": (WithTwiceTheNoise, descends(NOISY, PERTURB)),
    "noise after the activation": (WithNoiseAfterTheActivation, descends(NOISY, PERTURB)),
    "noise of another step": (drawing(OfAnotherStep), descends(NOISY, PERTURB)),
    "one noise for all layers": (drawing(OfOneLayer), descends(NOISY, PERTURB)),
    "noise in the pass of the direction": (drawing(InEveryPass), descends(NOISY, PERTURB)),
    "weight gradients missing": (WithoutWeightGradients, lambda tests, step: step),
    "eps not held constant": (WithEpsilonThatMoves, lambda tests, step: step),
    "sigma applied to the batch": (WithOneBallForTheBatch, lambda tests, step: step),
    "a slope where a rectifier's is 0": (
        WithHalfASlopeAtZero,
        lambda tests, step: functools.partial(
            tests.test_ties_give_their_gradient_to_the_first, NETWORKS["rectifiers"]
        ),
    ),
    "labels shifted": (WithShiftedLabels, lambda tests, step: step),
    "no direction where a prediction is exact": (
        WithoutADirectionAtZero,
        lambda tests, step: functools.partial(
            tests.test_exact_predictions_have_no_direction_and_stay, NETWORKS["regression"]
        ),
    ),
    "no curvature where a prediction is exact": (
        WithoutACurvatureAtZero,
        lambda tests, step: functools.partial(
            tests.test_exact_predictions_have_no_direction_and_stay, NETWORKS["regression"]
        ),
    ),
    "outputs summed": (
        WithTheSumOverOutputs,
        descends(NETWORKS["regression"], PERTURB),
    ),
    "smoothing over the wrong classes": (
        WithSmoothingOverTheWrongClasses,
        descends(NETWORKS["sigmoid"], SMOOTHED),
    ),
    "a direction of smoothed labels": (
        WithSmoothedDirections,
        descends(NETWORKS["sigmoid"], SMOOTHED),
    ),
    "f(x) held constant in a divergence": (
        WithoutTheDivergencesCleanSide,
        descends(NETWORKS["sigmoid"], TRADES),
    ),
    "a divergence that rounds away": (
        WithADivergenceThatRoundsAway,
        lambda tests, step: functools.partial(
            tests.test_the_direction_of_a_divergence_does_not_round_away, NETWORKS["maxout"]
        ),
    ),
    "steps out of the ball": (
        WithoutProjection,
        descends(NETWORKS["sigmoid"], PROJECTED),
    ),
    "velocity lost on resume": (
        WithoutVelocityOnResume,
        lambda tests, step: functools.partial(
            tests.test_a_state_continues_as_if_nothing_had_happened, NETWORKS["sigmoid"], "float64"
        ),
    ),
    "average updated before the step": (WithAnAverageOfOldParameters, follows),
    "logits of the parameters with gradients at the average": (
        WithLogitsOfTheParameters,
        lambda tests, step: functools.partial(tests.test_the_average_is_what_is_tested, NETWORKS["sigmoid"]),
    ),
    "average a step late": (WithAnAverageOfTheStepBefore, follows),
    "gradients at the average": (WithGradientsAtTheAverage, follows),
    "the parameters themselves tested": (
        WithoutAnAverageInTests,
        lambda tests, step: functools.partial(tests.test_the_average_is_what_is_tested, NETWORKS["sigmoid"]),
    ),
    "average lost on resume": (
        WithoutItsAverageOnResume,
        lambda tests, step: functools.partial(
            tests.test_a_state_continues_as_if_nothing_had_happened, NETWORKS["sigmoid"], "float64"
        ),
    ),
}


@pytest.mark.parametrize(("mutant", "law"), CASES.values(), ids=CASES)
def test_a_mutant_breaks_its_law(mutant, law):
    law(*laws(NumpyTrainer))()  # and the original does not
    with pytest.raises(AssertionError):
        law(*laws(mutant))()
