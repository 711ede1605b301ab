"""Passes that compute perturbations in torch leave no trace, whatever a model changes or draws in them."""

import copy
import functools
import random
from types import SimpleNamespace

import numpy as np
import pytest
from numpy.testing import assert_allclose

from helpers.libraries_under_test import NAMES

if "torch" not in NAMES:
    pytest.skip("torch is not under test", allow_module_level=True)

import torch
from torch import nn
from torch.nn.functional import linear, normalize

import lpfamily
from helpers.torch_models import (
    assert_same,
    batch,
    buffers_of,
    gradients,
    losses_of,
    network,
    set_buffers,
    snapshot,
    untidy_model,
)
from lpfamily_torch import ascend, perturb, regularized_loss

pytestmark = pytest.mark.torch

# Parameters and buffers.


class OlderSpectralNorm(nn.Module):
    """Keeps the vector of its power iteration as a frozen parameter, and iterates in every pass."""

    def __init__(self, how):
        super().__init__()
        self.how = how
        self.weight = nn.Parameter(torch.randn(5, 5))
        self.u = nn.Parameter(torch.randn(5), requires_grad=False)

    def forward(self, x):
        with torch.no_grad():
            v = normalize(self.weight.T @ self.u, dim=0)
            u = normalize(self.weight @ v, dim=0)
            if self.how == "rebound":
                self.u = nn.Parameter(u, requires_grad=False)
            elif self.how == "other memory":
                self.u.data = u
            elif self.how == "unseen":
                self.u.data.copy_(u)
            else:
                self.u.copy_(u)
        return linear(x, self.weight / (u @ self.weight @ v))


class Codebook(nn.Module):
    """Moves the codes that its inputs are near to, behind autograd's back."""

    def __init__(self):
        super().__init__()
        self.register_buffer("codes", torch.randn(4, 5))

    def forward(self, x):
        nearest = torch.cdist(x.detach(), self.codes).argmin(dim=1)
        self.codes.data[nearest] += 0.3 * (x.detach() - self.codes[nearest])
        return x + self.codes[nearest]


class Queue(nn.Module):
    """Keeps its last inputs in a buffer that is larger than what is compared."""

    def __init__(self):
        super().__init__()
        self.register_buffer("last", torch.zeros(2**16, 5))

    def forward(self, x):
        self.last[: len(x)] = x.detach()
        return x + self.last.mean(dim=0)


class Momentum(nn.Module):
    """Follows a layer with a frozen one, whose weight of more than 1 MiB it exchanges."""

    def __init__(self):
        super().__init__()
        self.layer, self.slow = nn.Linear(5, 2**16), nn.Linear(5, 2**16).requires_grad_(False)

    def forward(self, x):
        for one, other in zip(self.layer.parameters(), self.slow.parameters(), strict=True):
            other.data = 0.9 * other.data + 0.1 * one.data
        return x + self.slow(x).mean(dim=1, keepdim=True) + self.layer(x).mean(dim=1, keepdim=True)


class Positive(nn.Module):
    """Clamps its weight behind autograd's back."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(5, 5))

    def forward(self, x):
        self.weight.data.clamp_(0)
        return linear(x, self.weight)


class Words(nn.Module):
    """Adds an embedding whose rows its passes scale."""

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(2**16, 5, max_norm=0.1)

    def forward(self, x):
        return x + self.words(torch.arange(len(x)))


class Variables(nn.Module):
    """Normalises as Keras 3 does: frozen parameters in a dict, which are updated by another reference."""

    def __init__(self):
        super().__init__()
        mean = nn.Parameter(torch.zeros(5), requires_grad=False)
        self.variables = SimpleNamespace(mean=mean)
        self.parameters_of_torch = nn.ParameterDict({"mean": mean})

    def forward(self, x):
        mean = self.variables.mean
        with torch.no_grad():
            mean.copy_(0.9 * mean + 0.1 * x.mean(dim=0))
        return x - mean.clone()


class Growing(nn.Module):
    """Resizes a buffer where it stands, replaces one, and makes another."""

    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros(0))
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x):
        self.seen.resize_(len(x)).copy_(x.detach()[:, 0])
        self.count = self.count + 1
        self.register_buffer("made", torch.ones(()))
        return x * self.count


def quantised(activation, weight):
    """Return a layer as prepared for quantisation-aware training."""
    model = nn.Sequential(nn.Linear(5, 5), nn.ReLU())
    model.qconfig = torch.ao.quantization.QConfig(activation=activation, weight=weight)
    return torch.ao.quantization.prepare_qat(model)


def fused():
    usual = torch.ao.quantization.get_default_qat_qconfig("fbgemm")
    return quantised(usual.activation, usual.weight)


def unfused():
    per_tensor = torch.ao.quantization.FakeQuantize.with_args(
        observer=torch.ao.quantization.MovingAverageMinMaxObserver, quant_min=0, quant_max=255
    )
    return quantised(per_tensor, torch.ao.quantization.default_per_channel_weight_fake_quant)


CHANGING = {
    "frozen, rebound": functools.partial(OlderSpectralNorm, "rebound"),
    "frozen, in other memory": functools.partial(OlderSpectralNorm, "other memory"),
    "frozen, unseen": functools.partial(OlderSpectralNorm, "unseen"),
    "frozen, in place": functools.partial(OlderSpectralNorm, "in place"),
    "buffer, unseen": Codebook,
    "large buffer": Queue,
    "large frozen parameter, exchanged": Momentum,
    "parameter, unseen": Positive,
    "embedding": Words,
    "another reference": Variables,
    "hook": lambda: nn.utils.spectral_norm(nn.Linear(5, 5)),
    "parametrization": lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(5, 5)),
    "resized": Growing,
    "fused observers": fused,
    "unfused observers": unfused,
}
"""Modules of five inputs and outputs that change their tensors in a pass."""
OF_DOUBLES = [kind for kind in CHANGING if "observers" not in kind]


def all_of(model):
    """Return the tensors of a model, with the bits in them."""
    tensors = [*model.named_parameters(), *model.named_buffers()]
    return [(name, each, each.detach().clone(), each.requires_grad) for name, each in tensors]


def assert_as_before(before, model):
    after = all_of(model)
    assert [name for name, *_ in before] == [name for name, *_ in after]
    for (name, each, bits, trained), (_, now, now_bits, now_trained) in zip(before, after, strict=True):
        assert each is now, name
        assert trained == now_trained, name
        assert torch.equal(bits, now_bits), name


def raising(outputs, y):
    raise KeyError("the loss")


@pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:Please use quant_min and quant_max:UserWarning")
@pytest.mark.parametrize("kind", CHANGING)
@pytest.mark.parametrize("dropout", ["none", "same", "independent"])
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_torch_parameters_and_buffers_keep_their_identity_and_bits(kind, dropout, training):
    torch.manual_seed(0)
    model, (x, y) = network(dtype=torch.float32), batch(dtype=torch.float32)
    model.insert(2, CHANGING[kind]())
    model.train(training)
    before = all_of(model)
    for function in perturb, ascend:
        function(model, losses_of, x, y, sigma=0.5, steps=2, direction_dropout=dropout)
        assert_as_before(before, model)
        with pytest.raises(KeyError, match="the loss"):
            function(model, raising, x, y, sigma=0.5, direction_dropout=dropout)
        assert_as_before(before, model)


def test_torch_a_changed_parameter_that_was_not_copied_is_an_error():
    class Large(nn.Module):
        def __init__(self):
            super().__init__()
            self.mean = nn.Parameter(torch.zeros(2**16, 5), requires_grad=False)

        def forward(self, x):
            self.mean += x.detach().mean()
            return x + self.mean[0]

    model, (x, y) = network(Large(), dtype=torch.float32), batch(dtype=torch.float32)
    with pytest.raises(RuntimeError, match=r"changes mean of shape \(65536, 5\) in place.*register it"):
        perturb(model, losses_of, x, y, sigma=0.5)
    with pytest.raises(KeyError, match="the loss"):
        perturb(model, raising, x, y, sigma=0.5)


@pytest.mark.parametrize("kind", OF_DOUBLES)
def test_torch_a_second_pass_begins_as_the_first_and_leaves_nothing(kind):
    torch.manual_seed(0)
    model, (x, y) = network(), batch()
    model.insert(2, CHANGING[kind]().double())
    eps, first, second = (
        perturb(model, losses_of, x, y, sigma=0.5),
        copy.deepcopy(model),
        copy.deepcopy(model),
    )
    loss = regularized_loss(model, losses_of, x, y, sigma=0.5, clean_weight=0.3)
    loss.backward()
    expected = 0.7 * losses_of(first(x + eps), y).mean() + 0.3 * losses_of(second(x), y).mean()
    expected.backward()
    assert_allclose(loss.item(), expected.item(), rtol=1e-12)
    for (name, each), one, other in zip(
        model.named_parameters(), first.parameters(), second.parameters(), strict=True
    ):
        assert (each.grad is None) == (one.grad is None), name
        if each.grad is not None:
            assert_allclose(each.grad, one.grad + other.grad, rtol=1e-9, atol=1e-12, err_msg=name)
    for (name, _, bits, _), (_, _, left, _) in zip(all_of(model), all_of(first), strict=True):
        assert torch.equal(bits, left), name


def test_torch_lazy_modules_need_a_pass_before():
    model, (x, y) = nn.Sequential(nn.LazyLinear(5), nn.LazyBatchNorm1d(), nn.Linear(5, 3)), batch()
    with pytest.raises(TypeError, match=r"LazyBatchNorm1d gets its parameters .*: call the model once"):
        perturb(model.double(), losses_of, x, y, sigma=0.5)
    model(x)
    before = all_of(model)
    perturb(model, losses_of, x, y, sigma=0.5)
    assert_as_before(before, model)


# Models that are not modules.

SHARED = []


class Wrapper:
    def __init__(self, model):
        self.model, self.name = model, "a wrapper"

    def predict(self, x):
        return self.model(x)

    __call__ = predict


class Student(nn.Module):
    """Keeps another model where torch does not see it, in a list."""

    def __init__(self, teacher):
        super().__init__()
        self.teacher = [teacher]

    def forward(self, x):
        return self.teacher[0](x)


def of_cells(model):
    def inner(x):
        return model(x)

    return lambda x: inner(x)


CALLABLES = {
    "cell": lambda model: lambda x: model(x),
    "global": lambda model: lambda x: SHARED[0](x),
    "default": lambda model: lambda x, model=model: model(x),
    "keyword default": lambda model: lambda x, *, model=model: model(x),
    "list": lambda model: lambda x, models=(model,): sum(each(x) for each in models),
    "a function of a function": of_cells,
    "partial": lambda model: functools.partial(lambda model, x: model(x), model),
    "decorated": lambda model: functools.wraps(model)(lambda *args: model(*args)),
    "method of a module": lambda model: model.forward,
    "method": lambda model: Wrapper(model).predict,
    "object": Wrapper,
    "a function of an object": lambda model: (lambda wrapper: lambda x: wrapper.predict(x))(Wrapper(model)),
    "a function of a method": lambda model: (lambda method: lambda x: method(x))(Wrapper(model).predict),
    "unregistered": Student,
    "functional call": lambda model: (
        lambda x: torch.func.functional_call(model, dict(model.named_parameters()), x)
    ),
}


@pytest.mark.parametrize("kind", CALLABLES)
def test_torch_modules_that_a_function_calls_are_restored_too(kind):
    model, (x, y) = network(nn.BatchNorm1d(5), nn.Dropout(0.5), Codebook().double()), batch()
    SHARED[:] = [model]
    before = snapshot(model)
    expected = perturb(model, losses_of, x, y, sigma=0.5)
    assert torch.equal(perturb(CALLABLES[kind](model), losses_of, x, y, sigma=0.5), expected)
    assert_same(before, snapshot(model))


# Random numbers.


class Shaken(nn.Module):
    """Scales its inputs by a number that it draws, in training and evaluation."""

    def __init__(self, draw):
        super().__init__()
        self.generators = {
            "own": torch.Generator().manual_seed(3),
            "Random": random.Random(3),
            "Generator": np.random.default_rng(3),
            "RandomState": np.random.RandomState(3),
        }
        vars(self).update(self.generators)
        self.draw = draw

    def forward(self, x):
        return (
            x
            * {
                "torch": lambda: torch.rand(()).item(),
                "python": random.random,
                "numpy": lambda: np.random.randn(1)[0],  # noqa: NPY002 (as models do); it keeps every other draw
                "own": lambda: torch.rand((), generator=self.own).item(),
                "Random": lambda: self.Random.gauss(0, 1),
                "Generator": lambda: self.Generator.random(),
                "RandomState": lambda: self.RandomState.randn(),
            }[self.draw]()
        )


DRAWS = ("torch", "python", "numpy", "own", "Random", "Generator", "RandomState")


def shaken_model(draw):
    torch.manual_seed(5)
    random.seed(5)
    np.random.seed(5)  # noqa: NPY002
    model = network()
    model.insert(2, Shaken(draw))
    return model


def drawn_next(model):
    return [model[2](1.0) for _ in range(3)]


@pytest.mark.parametrize("draw", DRAWS)
def test_torch_a_second_pass_repeats_all_draws(draw):
    x, y = batch()
    options = {"sigma": 0.1, "objective": "penalty"}
    model, twin = shaken_model(draw), None
    exact = regularized_loss(model, losses_of, x, y, **options).item()
    following = drawn_next(model)
    twin = shaken_model(draw)
    loss = regularized_loss(twin, losses_of, x, y, penalty_by="difference", difference_step=1e-6, **options)
    assert_allclose(loss.item(), exact, rtol=1e-6)
    assert drawn_next(twin) == following


@pytest.mark.parametrize("draw", DRAWS)
@pytest.mark.parametrize("function", [perturb, ascend])
@pytest.mark.parametrize("dropout", ["none", "same", "independent"])
def test_torch_a_perturbation_draws_nothing(draw, function, dropout):
    x, y = batch()
    following = drawn_next(shaken_model(draw))
    model = shaken_model(draw)
    function(model, losses_of, x, y, sigma=0.1, direction_dropout=dropout)
    assert drawn_next(model) == following
    model = shaken_model(draw)
    with pytest.raises(KeyError, match="the loss"):
        perturb(model, raising, x, y, sigma=0.1, direction_dropout=dropout)
    assert drawn_next(model) == following


@pytest.mark.parametrize("draw", DRAWS)
def test_torch_a_direction_draws_the_same_as_the_next_pass_or_anew(draw):
    x, y = batch()
    found = {
        dropout: perturb(shaken_model(draw), losses_of, x, y, sigma=0.1, steps=2, direction_dropout=dropout)
        for dropout in ("same", "independent")
    }
    model = shaken_model(draw)
    scale = drawn_next(model)[0]

    def gradient(at):
        at = at.clone().requires_grad_()
        outputs = model[3:](scale * model[:2](at))
        return torch.autograd.grad(losses_of(outputs, y).sum(), at)[0]

    expected = lpfamily.ascent.frank_wolfe(gradient, x, 2, 0.1, 2)
    assert_allclose(found["same"], expected, rtol=1e-9)
    assert not torch.allclose(found["independent"], expected, rtol=1e-3)


def test_torch_generators_that_a_function_uses_are_restored_too():
    model, (x, y), generator = network(), batch(), torch.Generator()

    def noisy(x):
        return model(x + torch.randn(x.shape, generator=generator, dtype=x.dtype))

    before = generator.get_state()
    perturb(noisy, losses_of, x, y, sigma=0.5)
    assert torch.equal(generator.get_state(), before)


# Hooks that take gradients per example.


class PerExample:
    """Takes gradients per example of linear layers in backward, as Opacus' GradSampleModule does."""

    def __init__(self, model):
        self.hooks_enabled = True
        for each in model.modules():
            if isinstance(each, nn.Linear):
                each.activations = []
                each.register_forward_hook(self.capture)
                each.register_full_backward_hook(self.take)

    def capture(self, module, inputs, output):
        if self.hooks_enabled and module.training and module.weight.requires_grad:
            module.activations.append(inputs[0].detach())

    def take(self, module, _, output):
        if self.hooks_enabled:
            if not module.activations:
                raise ValueError("No activations detected")
            rows = output[0][:, :, None] * module.activations.pop()[:, None]
            module.weight.per_example = getattr(module.weight, "per_example", 0) + rows


@pytest.mark.filterwarnings("ignore:Full backward hook is firing")  # x has no gradient in ordinary passes
@pytest.mark.parametrize(
    "options",
    [{}, {"direction_dropout": "same"}, {"objective": "penalty", "penalty_by": "difference"}],
    ids=str,
)
def test_torch_gradients_per_example_are_those_of_ordinary_passes(options):
    model, (x, y) = network(nn.Dropout(0.0)), batch()
    twin = copy.deepcopy(model)
    hooks = PerExample(model)
    for each in model, twin:
        regularized_loss(each, losses_of, x, y, sigma=0.1, **options).backward()
    for one, other in zip(model, twin, strict=True):
        if isinstance(one, nn.Linear):
            assert_allclose(one.weight.per_example.sum(dim=0), other.weight.grad, rtol=1e-6, atol=1e-9)
            assert not one.activations
    assert hooks.hooks_enabled


def test_torch_the_penalty_by_gradient_has_no_gradients_per_example():
    model, (x, y) = network(), batch()
    PerExample(model)
    with pytest.raises(ValueError, match=r"hooks that take gradients per example.*penalty_by='difference'"):
        regularized_loss(model, losses_of, x, y, sigma=0.1, objective="penalty")
    assert not any(each.activations for each in model if isinstance(each, nn.Linear))


QUIET = [
    {"direction_dropout": dropout, "batch_norm": batch_norm}
    for dropout in ("none", "same", "independent")
    for batch_norm in ("batch", "running")
]


@pytest.mark.parametrize("function", [perturb, ascend])
@pytest.mark.parametrize("options", QUIET, ids=["-".join(options.values()) for options in QUIET])
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_torch_a_perturbation_leaves_nothing_behind(function, options, training):
    model, (x, y) = untidy_model().train(training), batch(dtype=torch.float32)
    model[0].bias.requires_grad_(False)
    sum(p.sum() for p in model.parameters() if p.requires_grad).backward()  # some have gradients
    model[-1].weight.grad = None
    before = snapshot(model)
    function(model, losses_of, x, y, sigma=0.5, steps=2, **options)
    assert_same(before, snapshot(model))

    def raising(outputs, y):
        raise KeyError("the loss")

    with pytest.raises(KeyError, match="the loss"):
        function(model, raising, x, y, sigma=0.5, **options)
    assert_same(before, snapshot(model))


def test_torch_the_second_of_two_passes_begins_with_the_buffers_of_the_first():
    hooked = nn.utils.spectral_norm(nn.Linear(5, 5).double())
    model, (x, y) = network(hooked, nn.utils.parametrizations.spectral_norm(nn.Linear(5, 5))), batch()
    found = []
    for options in {}, {"penalty_by": "difference", "difference_step": 1e-6}:
        twin = copy.deepcopy(model)
        loss = regularized_loss(twin, losses_of, x, y, sigma=0.1, objective="penalty", **options)
        found.append((loss, gradients(twin, loss), buffers_of(twin)))
    (exact, slope, buffers), (loss, other, left) = found
    assert_allclose(loss.item(), exact.item(), rtol=1e-6)
    assert_allclose(other, slope, rtol=1e-4, atol=1e-6)
    for name, value in buffers.items():
        assert torch.equal(left[name], value), name


@pytest.mark.parametrize("options", [{}, {"clean_weight": 0.25}, {"objective": "penalty"}], ids=str)
def test_torch_the_loss_leaves_what_ordinary_passes_leave(options):
    model, (x, y) = untidy_model(), batch(dtype=torch.float32)
    twin = copy.deepcopy(model)
    state = torch.get_rng_state()
    regularized_loss(model, losses_of, x, y, sigma=0.5, **options).backward()
    left = snapshot(model)

    torch.set_rng_state(state)
    if options.get("objective") == "penalty":
        at = x.clone().requires_grad_()
        losses = losses_of(twin(at), y)
        (grad,) = torch.autograd.grad(losses.sum(), at, create_graph=True)
        loss = (losses + 0.5 * grad.norm(dim=1)).mean()
    else:
        weight = options.get("clean_weight", 0)
        eps, begun = perturb(twin, losses_of, x, y, sigma=0.5), buffers_of(twin)
        loss = (1 - weight) * losses_of(twin(x + eps), y).mean()
        if weight:  # the same draws and buffers again, and nothing left of them
            after, ended = torch.get_rng_state(), buffers_of(twin)
            torch.set_rng_state(state)
            set_buffers(twin, begun)
            loss = loss + weight * losses_of(twin(x), y).mean()
            torch.set_rng_state(after)
            set_buffers(twin, ended)
    loss.backward()
    expected = snapshot(twin)
    assert left["flags"] == expected["flags"]
    assert torch.equal(left["random"], expected["random"])
    for name, value in expected["state"].items():
        assert torch.equal(left["state"][name], value), name
    for name, (_, grad) in expected["grads"].items():
        assert_allclose(left["grads"][name][1], grad, rtol=1e-5, atol=1e-7, err_msg=name)
