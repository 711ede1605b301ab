"""The regularised loss in a custom torch loop is its definition, and leaves the model unchanged."""

import contextlib
import copy
import functools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from helpers.libraries_under_test import NAMES

if "torch" not in NAMES:
    pytest.skip("torch is not under test", allow_module_level=True)

import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

import lpfamily
from helpers.torch_models import (
    Named,
    P,
    assert_same,
    batch,
    gradients,
    input_gradient,
    losses_of,
    network,
    snapshot,
    untidy_model,
)
from lpfamily_reference.equations import eq3, eq4
from lpfamily_torch import ascend, perturb, regularized_loss, side_effects

pytestmark = pytest.mark.torch

DIRECTIONS = ("loss", "log-odds")
ROUNDING = {"float64": 1e-9, "float32": 1e-4, "float16": 0.01, "bfloat16": 0.06}
"""What a few layers, and the powers of eq. 3 near p = 1, may make of a dtype's rounding."""


def defined(model, x, y, objective, p, sigma, clean_weight):
    """Return the objective as the paper defines it, one example after another, and its gradient."""
    alone = copy.deepcopy(model).double()
    total, slope = 0.0, 0.0
    for x_, y_ in zip(x.double(), y, strict=True):
        loss, grad = input_gradient(alone, x_, y_)
        if objective == "penalty":
            total += eq4(loss, grad, p, sigma)
            at = x_[None].clone().requires_grad_()
            clean = cross_entropy(alone(at), y_[None])
            (graph,) = torch.autograd.grad(clean, at, create_graph=True)
            norm = torch.linalg.vector_norm(
                graph, math.inf if p == 1 else 1 if p == math.inf else p / (p - 1)
            )
            slope = slope + gradients(alone, clean + sigma * norm)
        else:
            ahead = cross_entropy(alone((x_ + torch.from_numpy(eq3(grad, p, sigma)))[None]), y_[None])
            clean = cross_entropy(alone(x_[None]), y_[None])
            mixed = clean_weight * clean + (1 - clean_weight) * ahead
            total += mixed.item()
            slope = slope + gradients(alone, mixed)
    return total / len(x), slope / len(x)


@given(data=st.data())
def test_torch_the_loss_is_the_definition(data):
    objective = data.draw(st.sampled_from(("perturb", "penalty")))
    p, direction = data.draw(st.sampled_from(P)), data.draw(st.sampled_from(DIRECTIONS))
    sigma, seed = data.draw(st.sampled_from((0.0, 0.03, 1.0))), data.draw(st.integers(0, 2**20))
    name, rtol = data.draw(st.sampled_from(tuple(ROUNDING.items())))
    weight = data.draw(st.sampled_from((0.0, 0.3, 1.0))) if objective == "perturb" else 0.0
    model, (x, y) = (
        network(seed=seed, dtype=getattr(torch, name)),
        batch(seed=seed, dtype=getattr(torch, name)),
    )
    loss = regularized_loss(
        model,
        losses_of,
        x,
        y,
        p=p,
        sigma=sigma,
        objective=objective,
        clean_weight=weight,
        direction=direction,
    )
    expected, slope = defined(model, x, y, objective, p, sigma, weight)
    assert_allclose(loss.item(), expected, rtol=rtol)
    if (
        name in ("float64", "float32") and p > 1
    ):  # at p = 1 rounding decides between coordinates that are nearly equal
        found = gradients(model, loss)
        assert_allclose(found, slope, rtol=20 * rtol, atol=20 * rtol * slope.abs().max().item())


@pytest.mark.parametrize("p", P)
def test_torch_a_difference_is_the_penalty_to_first_order(p):
    model, (x, y) = network(), batch()
    options = {"p": p, "sigma": 0.1, "objective": "penalty"}
    exact = regularized_loss(model, losses_of, x, y, **options)
    slope = gradients(model, exact)
    for h, rtol in (2.0**-10, 1e-4), (1e-6, 1e-7):
        loss = regularized_loss(model, losses_of, x, y, penalty_by="difference", difference_step=h, **options)
        assert_allclose(loss.item(), exact.item(), rtol=rtol)
        assert_allclose(gradients(model, loss), slope, atol=10 * rtol * slope.abs().max().item())


class Products(TorchDispatchMode):
    """Counts products of matrices."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("options", "products"),
    [
        ({}, 5 * 3 - 1),
        ({"clean_weight": 0.5}, 8 * 3 - 2),
        ({"direction": "outputs", "beta": 1.0}, 9 * 3 - 2),
        ({"direction": "outputs", "beta": 1.0, "loss": None}, 7 * 3 - 1),
    ],
    ids=str,
)
def test_torch_only_the_input_gradient_is_computed(options, products):
    model, (x, y) = network(), batch()  # an ordinary step has 3 L - 1
    with Products() as counted:
        regularized_loss(model, **{"loss": losses_of, "x": x, "y": y, "sigma": 0.5} | options).backward()
    assert counted.count == products


def test_torch_recurrent_networks_drop_nothing_and_stay_in_training():
    # where cuDNN has gradients
    class Recurrent(nn.LSTM):
        seen = None

        def forward(self, x):
            self.seen = self.training
            return super().forward(x)[0][:, -1, :3]

    torch.manual_seed(0)
    model = Recurrent(4, 5, num_layers=2, dropout=0.5, batch_first=True).double()
    x, y = batch(shape=(6, 4))
    eps = perturb(model, losses_of, x, y, sigma=0.5)
    assert model.seen
    assert model.dropout == 0.5
    assert torch.equal(eps, perturb(model.eval(), losses_of, x, y, sigma=0.5))


@pytest.mark.parametrize("objective", ["perturb", "penalty"])
def test_torch_cached_parametrizations_are_trained(objective):
    model, (x, y) = network(nn.utils.parametrizations.weight_norm(nn.Linear(5, 5))), batch()
    with nn.utils.parametrize.cached():
        regularized_loss(model, losses_of, x, y, sigma=0.5, objective=objective).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize(
    "options",
    [{"clean_weight": 0.5}, {"objective": "penalty"}, {"objective": "penalty", "penalty_by": "difference"}],
    ids=str,
)
def test_torch_a_checkpointed_forward_pass_is_repeated_exactly(options):
    class Checkpointed(nn.Sequential):
        def forward(self, x):
            return checkpoint(super().forward, x, use_reentrant=False)

    found = []
    for kind in nn.Sequential, Checkpointed:
        model, (x, y) = network(kind(nn.BatchNorm1d(5), nn.Dropout(0.5))), batch()
        torch.manual_seed(3)
        found.append(gradients(model, regularized_loss(model, losses_of, x, y, sigma=0.5, **options)))
    assert_allclose(found[1], found[0], rtol=1e-9, atol=1e-12)


def test_torch_a_partial_is_the_model_that_it_calls():
    model, (x, y) = untidy_model(), batch(dtype=torch.float32)
    before = snapshot(model)
    perturb(functools.partial(model), losses_of, x, y, sigma=0.5)
    assert_same(before, snapshot(model))


def test_torch_the_direction_may_have_the_dropout_masks_of_training():
    model, (x, y) = network(nn.Dropout(0.5), seed=1), batch()
    options = {"sigma": 0.5, "direction": "log-odds"}
    state = torch.get_rng_state()
    same = perturb(model, losses_of, x, y, direction_dropout="same", **options)
    at = x.clone().requires_grad_()
    odds = lpfamily.error_log_odds(model(at), y)  # the ordinary pass that follows
    expected = lpfamily.epsilon(torch.autograd.grad(odds.sum(), at)[0], 2, 0.5)
    assert_allclose(same, expected, rtol=1e-12)
    torch.set_rng_state(state)
    for dropout in "none", "independent":
        assert not torch.allclose(
            same, perturb(model, losses_of, x, y, direction_dropout=dropout, **options), rtol=0.05
        )
    model.eval()
    assert torch.equal(
        perturb(model, losses_of, x, y, direction_dropout="same", **options),
        perturb(model, losses_of, x, y, direction_dropout="none", **options),
    )


class Accelerator:
    """A device's module, with a generator of its own."""

    def __init__(self):
        self.generator = torch.Generator()
        self.device = lambda device: contextlib.nullcontext()
        self.manual_seed = self.generator.manual_seed

    def get_rng_state(self, device):
        return self.generator.get_state()

    def set_rng_state(self, state, device):
        self.generator.set_state(state)


@pytest.mark.parametrize("dropout", ["none", "same", "independent"])
def test_torch_the_random_state_of_a_device_is_restored(monkeypatch, dropout):
    accelerator = Accelerator()
    monkeypatch.setattr(torch, "get_device_module", lambda device: accelerator)
    device, before = torch.device("cuda:1"), accelerator.generator.get_state()
    drawn = torch.rand(3, generator=accelerator.generator)
    accelerator.generator.set_state(before)
    with side_effects.without_side_effects(network(), device, dropout, "batch"):
        inside = torch.rand(3, generator=accelerator.generator)
    assert torch.equal(inside, drawn) == (dropout != "independent")
    assert torch.equal(accelerator.generator.get_state(), before)


def test_torch_batch_norm_uses_the_requested_statistics():
    model, (x, y) = network(nn.BatchNorm1d(5)), batch()
    for _ in range(3):
        model(torch.rand(9, 6, dtype=torch.float64))
    for choice, twin in ("batch", copy.deepcopy(model)), ("running", copy.deepcopy(model).eval()):
        at = x.clone().requires_grad_()
        (grad,) = torch.autograd.grad(losses_of(twin(at), y).sum(), at)
        eps = perturb(model, losses_of, x, y, sigma=0.5, batch_norm=choice)
        assert_allclose(eps, lpfamily.epsilon(grad, 2, 0.5), rtol=1e-12)


def test_torch_a_difference_sees_one_dropout_and_updates_statistics_once():
    model, (x, y) = network(nn.BatchNorm1d(5), nn.Dropout(0.5)), batch()
    twin = copy.deepcopy(model)
    state = torch.get_rng_state()
    exact = regularized_loss(model, losses_of, x, y, sigma=0.1, objective="penalty")
    torch.set_rng_state(state)
    loss = regularized_loss(
        twin, losses_of, x, y, sigma=0.1, objective="penalty", penalty_by="difference", difference_step=1e-6
    )
    assert_allclose(loss.item(), exact.item(), rtol=1e-6)
    for mine, other in zip(model.buffers(), twin.buffers(), strict=True):
        assert torch.equal(mine, other)


# Inputs, outputs and directions of all kinds.


class Tokens(nn.Module):
    """Classifies the mean of embedded tokens that are not padding."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(11, 4).double()
        self.head = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()

    def forward(self, embedded, kept):
        return self.head((embedded * kept[..., None]).sum(dim=1) / kept.sum(dim=1, keepdim=True))


@pytest.mark.parametrize("objective", ["perturb", "penalty"])
@pytest.mark.parametrize("kind", ["dict", "tuple"])
def test_torch_tokens_have_balls_of_their_own_and_padding_none(objective, kind):
    model, y = Tokens(), torch.tensor([0, 2, 1])
    tokens, kept = torch.randint(11, (3, 6)), torch.arange(6) < torch.tensor([6, 2, 4])[:, None]
    inputs = model.embedding(tokens)
    x = {"embedded": inputs, "kept": kept} if kind == "dict" else (inputs, kept)
    options = {"sigma": 0.1, "batch_ndim": 2, "mask": kept[..., None]}
    eps = perturb(model, losses_of, x, y, **options)
    assert_allclose(eps.norm(dim=2), 0.1 * kept.double(), rtol=1e-12)
    loss = regularized_loss(model, losses_of, x, y, objective=objective, **options)
    if objective == "perturb":
        assert_allclose(loss.item(), losses_of(model(inputs + eps, kept), y).mean().item(), rtol=1e-12)
    else:
        at = inputs.detach().requires_grad_()
        clean = losses_of(model(at, kept), y)
        (grad,) = torch.autograd.grad(clean.sum(), at)
        expected = (clean + 0.1 * (grad.norm(dim=2) * kept).sum(dim=1)).mean()
        assert_allclose(loss.item(), expected.item(), rtol=1e-12)
    loss.backward()
    assert model.embedding.weight.grad.abs().sum() > 0  # what made the input is trained


def test_torch_several_arguments_need_the_name_of_a_leaf():
    def model(a, b):
        return torch.stack([(a * b).sum(dim=1), a.sum(dim=1)], dim=1)

    x, y = (torch.rand(3, 4), torch.rand(3, 4)), torch.tensor([0, 1, 0])
    with pytest.raises(ValueError, match=r"leaf must say which argument to perturb.*\[0, 1\]"):
        perturb(model, losses_of, x, y, sigma=1.0)
    eps = perturb(model, losses_of, x, y, sigma=1.0, leaf=1)
    at = x[1].clone().requires_grad_()
    (grad,) = torch.autograd.grad(losses_of(model(x[0], at), y).sum(), at)
    assert_allclose(eps, lpfamily.epsilon(grad, 2, 1.0), rtol=1e-6)
    for leaf in "b", 1:  # a named tuple's have names and indices
        assert torch.equal(perturb(model, losses_of, Named(*x), y, sigma=1.0, leaf=leaf), eps)


# Transforms of torch.func.

OF_TRANSFORMS = {
    "perturb": {"clean_weight": 0.25},
    "steps": {"steps": 2, "bounds": (0, 1), "direction": "log-odds"},
    "penalty": {"objective": "penalty", "direction": "log-odds"},
    "difference": {"objective": "penalty", "penalty_by": "difference", "difference_step": 1e-3},
    "outputs": {"direction": "outputs", "beta": 2.0},
}


@pytest.mark.parametrize("options", OF_TRANSFORMS.values(), ids=OF_TRANSFORMS)
def test_torch_func_transforms_give_the_gradient_of_autograd(options):
    """The gradient of a functional call, of the batch and of each example alone."""
    model, (x, y) = network(nn.LayerNorm(5)), batch()
    weights = {name: each.detach() for name, each in model.named_parameters()}
    options = {"p": 1.5, "sigma": 0.5} | options

    def total(weights, x, y):
        def called(x):
            return torch.func.functional_call(model, weights, (x,))

        return regularized_loss(called, losses_of, x, y, **options, **begun(x))

    def begun(x):
        return {"start": 0.1 * x.flip(1)} if "beta" in options else {}

    found = torch.func.grad(total)(weights, x, y)
    loss = regularized_loss(model, losses_of, x, y, **options, **begun(x))
    assert_allclose(
        torch.cat([g.flatten() for g in found.values()]), gradients(model, loss), rtol=1e-9, atol=1e-12
    )
    each = torch.func.vmap(
        torch.func.grad(lambda weights, x, y: total(weights, x[None], y[None])), in_dims=(None, 0, 0)
    )(weights, x, y)
    for name, slope in each.items():
        assert_allclose(slope.mean(dim=0), found[name], rtol=1e-9, atol=1e-12)
    moved = torch.func.vmap(lambda x, y: perturb(model, losses_of, x[None], y[None], sigma=0.5)[0])(x, y)
    assert_allclose(moved, perturb(model, losses_of, x, y, sigma=0.5), rtol=1e-9)


@pytest.mark.parametrize("p", P)
def test_torch_the_step_in_a_box_is_that_of_epsilon(p):
    model, (x, y) = network(), batch()
    eps = perturb(model, losses_of, x, y, p=p, sigma=2.0, bounds=(0, 1))
    grad = torch.from_numpy(np.stack([input_gradient(model, *pair)[1] for pair in zip(x, y, strict=True)]))
    assert_allclose(eps, lpfamily.epsilon(grad, p, 2.0, x=x, bounds=(0, 1)), rtol=1e-9, atol=1e-12)
    loss = regularized_loss(model, losses_of, x, y, p=p, sigma=2.0, bounds=(0, 1), objective="penalty")
    expected = losses_of(model(x), y).mean() + (grad * eps).sum(dim=1).mean()
    assert_allclose(loss.item(), expected.item(), rtol=1e-9)


@pytest.mark.parametrize("objective", ["perturb", "penalty"])
@pytest.mark.parametrize(
    ("dtype", "mean", "deviation"),
    [(torch.float32, 0.1307, 0.3081), (torch.float16, 0.485, 0.229), (torch.bfloat16, 0.456, 0.224)],
)
def test_torch_pixels_scaled_by_mean_and_deviation_train_as_clipped_ones(objective, dtype, mean, deviation):
    bounds = (0 - mean) / deviation, (1 - mean) / deviation
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (12, 1, 6, 6), generator=generator).clamp(100, 155).sub(100).div(55).to(dtype)
    x, y = (pixels - mean) / deviation, torch.randint(3, (12,), generator=generator)
    low, high = torch.tensor(bounds, dtype=torch.float64).to(dtype)
    assert (x < low).any() or (x > high).any()
    slopes = []
    for at in x, x.clamp(low, high):
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)
        )
        regularized_loss(
            lambda at, model=model: model(at.float()),
            losses_of, at, y, sigma=0.5, objective=objective, bounds=bounds,
        ).backward()  # fmt: skip
        slopes.append(torch.cat([p.grad.flatten() for p in model.parameters()] + [model[1].running_mean]))
    assert slopes[0].abs().max() > 0.01
    assert_allclose(slopes[0], slopes[1], atol=0.05 if dtype == torch.bfloat16 else 0.01)


def test_torch_pixels_further_outside_are_an_error_on_the_cpu():
    model, (x, y) = network(), batch()
    x[2, 3] = 1.5
    for call in regularized_loss, perturb, ascend:
        with pytest.raises(ValueError, match=r"low = 0, x = 1.5, high = 1 at \(2, 3\): clip x first"):
            call(model, losses_of, x, y, sigma=0.5, bounds=(0, 1))


def test_torch_values_of_traced_tensors_are_not_read():
    x = torch.tensor([[0.5, 0.5], [0.5, 1.5], [1 + 2**-23, 0.5]])
    grad = torch.ones(3, 2)

    def step(grad, x, **options):
        return lpfamily.epsilon(grad, 2, 0.25, x=x, bounds=(0, 1), **options)

    mapped = torch.func.vmap(lambda grad, x: step(grad, x, batch_ndim=0))
    compiled = torch.compile(step, backend="aot_eager", fullgraph=True, dynamic=False)
    for eps in mapped(grad, x), compiled(grad, x):
        assert_allclose(eps, [[0.25 / math.sqrt(2)] * 2, [math.nan] * 2, [0, 0.25]], rtol=1e-6)


def test_torch_images_keep_their_memory_format():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 3))
    x, y = batch(shape=(3, 8, 8), dtype=torch.float32)
    seen = []
    model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    regularized_loss(
        model.to(memory_format=torch.channels_last),
        losses_of,
        x.to(memory_format=torch.channels_last),
        y,
        p=math.inf,
        sigma=0.1,
    )
    assert len(seen) == 2
    assert all(each.is_contiguous(memory_format=torch.channels_last) for each in seen)
    assert_allclose((seen[1] - x).abs().amax(dim=(1, 2, 3)).detach(), 0.1, rtol=1e-5)


def test_torch_several_steps_are_frank_wolfe_from_a_given_start():
    model, (x, y) = network(), batch()
    start = 0.2 * torch.randn(x.shape, dtype=torch.float64) / 6

    def gradient(at):
        rows = zip(at, y, strict=True)
        return torch.from_numpy(np.stack([input_gradient(model, x_, y_)[1] for x_, y_ in rows]))

    found = perturb(model, losses_of, x, y, p=1.5, sigma=0.4, steps=3, start=start)
    expected = lpfamily.ascent.frank_wolfe(gradient, x, 1.5, 0.4, 3, lpfamily.project(start, 1.5, 0.4))
    assert_allclose(found, expected, rtol=1e-9)
    drawn = [
        perturb(model, losses_of, x, y, sigma=0.4, start=torch.Generator().manual_seed(seed), bounds=(0, 1))
        for seed in (0, 0, 1)
    ]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_torch_an_ascent_finds_no_less_than_a_step():
    model, (x, y) = network(seed=3), batch()
    step = perturb(model, losses_of, x, y, sigma=3.0, direction="log-odds")
    many = ascend(model, losses_of, x, y, sigma=3.0, direction="log-odds", steps=20)
    boxed = x + ascend(model, losses_of, x, y, sigma=3.0, bounds=(0, 1), steps=20)
    assert 0 <= boxed.min() < boxed.max() <= 1
    assert many.norm(dim=1).max() <= 3.0 + 1e-9
    gain = losses_of(model(x + many), y) - losses_of(model(x + step), y)
    assert gain.min() > -1e-3
    assert gain.max() > 1e-3


class Gated(nn.Module):
    """A network with a second argument, and a parameter as long as there are examples."""

    def __init__(self, net):
        super().__init__()
        self.net, self.offset, self.seen = net, nn.Parameter(torch.arange(6.0, dtype=torch.float64)), []

    def forward(self, x, gate):
        self.seen.append(len(x))
        return self.net(x) * gate["scale"][:, None] + self.offset[:3]


def test_torch_examples_that_an_ascent_has_settled_take_no_more_passes():
    model, (x, y) = Gated(network(seed=3)), batch()
    gate = {"scale": torch.linspace(0.2, 2, len(x), dtype=torch.float64)}
    weighted = lambda outputs, y: y["weight"] * losses_of(outputs, y["label"])  # noqa: E731
    y = {"label": y, "weight": torch.linspace(0.5, 1, len(x), dtype=torch.float64)}
    ball = {"sigma": torch.linspace(0.2, 1, len(x)), "leaf": 0, "steps": 12, "bounds": (x - 0.5, 2.0)}
    whole = ascend(model, weighted, (x, gate), y, **ball)
    passes, model.seen = model.seen, []
    most = weighted(model(x + whole, gate), y)
    enough = most.median().item()
    model.seen = []
    some = ascend(model, weighted, (x, gate), y, stop_above=enough, **ball)
    assert passes == [len(x)] * 13
    assert model.seen[0] == len(x)
    assert model.seen == sorted(model.seen, reverse=True)
    assert sum(model.seen) < 0.8 * sum(passes)
    reached = weighted(model(x + some, gate), y)
    assert torch.equal(reached > enough, most > enough)
    assert torch.equal(some[most <= enough], whole[most <= enough])
    assert (reached < most)[most > enough].any()


def test_torch_confident_networks_keep_their_direction():
    model, (x, y) = network(), batch()
    with torch.no_grad():
        model[-1].weight *= 400
        y = model(x).argmax(dim=1)  # right, and p_y rounds to 1 in float32
    exact = perturb(model, losses_of, x, y, sigma=1.0, direction="log-odds")
    single = copy.deepcopy(model).float()
    odds = perturb(single, losses_of, x.float(), y, sigma=1.0, direction="log-odds")
    assert_allclose(odds, exact, atol=1e-3)
    assert not torch.allclose(perturb(single, losses_of, x.float(), y, sigma=1.0).double(), exact, atol=0.1)


@pytest.mark.parametrize("shape", [(7,), (7, 1), (7, 3)], ids=str)
@pytest.mark.parametrize("objective", ["perturb", "penalty"])
def test_torch_sigmoid_outputs_have_odds_too(shape, objective):
    outputs = nn.Linear(4, math.prod(shape[1:])).double()
    model = nn.Sequential(network()[:4], outputs, nn.Unflatten(1, shape[1:] or (1,)))
    if len(shape) == 1:
        model.append(nn.Flatten(0))
    x, _ = batch()
    y = torch.randint(2, shape).double()

    def loss(z, y):
        return binary_cross_entropy_with_logits(z, y, reduction="none").reshape(len(z), -1).sum(dim=1)

    found = [
        regularized_loss(model, loss, x, y, sigma=0.5, objective=objective, direction=direction)
        for direction in ("loss", "binary-log-odds")
    ]
    assert_allclose(found[0].item(), found[1].item(), rtol=1e-9)
    assert_allclose(gradients(model, found[0]), gradients(model, found[1]), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("objective", ["perturb", "penalty"])
def test_torch_labels_of_positions_and_functions_of_outputs_give_odds(objective):
    torch.manual_seed(0)
    model, x = nn.Conv1d(2, 3, 3, padding=1).double(), torch.rand(4, 2, 5, dtype=torch.float64)
    y = torch.randint(3, (4, 5))

    def loss(z, y):
        return losses_of(z, y).sum(dim=1)

    def odds(z, y):  # log(exp(L) - 1)
        return torch.log(torch.expm1(loss(z, y)))

    found = [
        regularized_loss(model, loss, x, y, sigma=0.5, objective=objective, direction=direction)
        for direction in ("loss", "log-odds", odds)
    ]
    expected, slope = found[0].item(), gradients(model, found[0])
    for other in found[1:]:
        assert_allclose(other.item(), expected, rtol=1e-9)
        assert_allclose(gradients(model, other), slope, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("penalty_by", ["gradient", "difference"])
def test_torch_the_penalty_by_odds_is_that_of_any_multiple_of_the_loss(penalty_by):
    torch.manual_seed(0)
    model, x = nn.Conv1d(2, 3, 3, padding=1).double(), torch.rand(4, 2, 5, dtype=torch.float64)
    y = torch.randint(3, (4, 5))
    y[0, 1:], y[1] = -100, -100  # some are left out, and of one example all
    options = {"sigma": 0.5, "objective": "penalty", "penalty_by": penalty_by}

    def loss(z, y):
        return 7 * losses_of(z, y).mean(dim=1)

    with torch.no_grad():
        model.weight[0] *= 1000  # of one class far from the others
    found = [regularized_loss(model, loss, x, y, direction=each, **options) for each in DIRECTIONS]
    assert_allclose(found[1].item(), found[0].item(), rtol=1e-9)
    assert_allclose(gradients(model, found[1]), gradients(model, found[0]), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("options", [{}, {"objective": "penalty"}], ids=str)
def test_torch_an_example_may_be_one_number(options):
    model, x = nn.Sequential(nn.Unflatten(0, (-1, 1)), network(inputs=1)), batch()[0][:, 0]
    _, y = batch()
    column = regularized_loss(model[1], losses_of, x[:, None], y, sigma=0.5, **options)
    assert_allclose(
        regularized_loss(model, losses_of, x, y, sigma=0.5, **options).item(), column.item(), rtol=1e-12
    )
    assert_allclose(
        ascend(model, losses_of, x, y, sigma=0.5), ascend(model[1], losses_of, x[:, None], y, sigma=0.5)[:, 0]
    )


@pytest.mark.parametrize("direction", ["loss", "log-odds", "binary-log-odds"])
@pytest.mark.parametrize(
    "options", [{}, {"objective": "penalty"}, {"objective": "penalty", "penalty_by": "difference"}], ids=str
)
def test_torch_a_batch_may_be_empty(options, direction):
    model, (x, y) = network(), batch(0)
    if direction == "binary-log-odds":
        y = torch.zeros(0, 3, dtype=torch.float64)
    loss = regularized_loss(
        model, lambda outputs, y: outputs.sum(dim=1), x, y, sigma=0.5, direction=direction, **options
    )
    assert loss.isnan()  # as the mean of no losses is
    assert not gradients(model, loss).any()


def test_torch_the_radius_is_treated_as_a_constant():
    model, (x, y) = network(), batch()
    sigma = (0.1 * x.norm(dim=1)).requires_grad_()
    for function in perturb, ascend:
        assert not function(model, losses_of, x, y, sigma=sigma).requires_grad
    for options in {}, {"objective": "penalty"}, {"objective": "penalty", "penalty_by": "difference"}:
        loss = regularized_loss(model, losses_of, x, y, sigma=sigma, **options)
        assert torch.autograd.grad(loss, sigma, allow_unused=True) == (None,)
