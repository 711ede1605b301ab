"""A loop of one's own in torch: the regularised loss is its definition, and the model stays as it is."""

import contextlib
import copy
import functools
import inspect
import math
from collections import namedtuple
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from helpers.libraries_under_test import NAMES
from helpers.torch_models import assert_same, batch, losses_of, network, snapshot

if "torch" not in NAMES:
    pytest.skip("torch is not under test", allow_module_level=True)

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

import lpfamily
from helpers.commandline import joined
from lpfamily.libraries import library_of
from lpfamily_reference.equations import eq3, eq4
from lpfamily_torch import ascend, perturb, regularized, regularized_loss, robustness, side_effects

pytestmark = pytest.mark.torch

P = (1, 1.1, 1.5, 2, 3, 10, math.inf)
DIRECTIONS = ("loss", "log-odds")
ROUNDING = {"float64": 1e-9, "float32": 1e-4, "float16": 0.01, "bfloat16": 0.06}
"""What a few layers, and the powers of eq. 3 near p = 1, may make of a dtype's rounding."""


Named = namedtuple("Named", ["a", "b"])


def gradients(model, loss):
    found = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    return torch.cat([torch.zeros(1) if g is None else g.flatten() for g in found])


def input_gradient(model, x, y):
    """Return the loss and the input gradient of one example."""
    at = x[None].clone().requires_grad_()
    loss = cross_entropy(model(at), y[None])
    return loss.item(), torch.autograd.grad(loss, at)[0][0].numpy()


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


# What it leaves behind.


class Untidy(nn.Module):
    """Changes a buffer in training and evaluation, one by a new one, makes two, and draws always."""

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("mean", torch.zeros(5))
        self.register_buffer("last", None)

    def forward(self, x):
        self.calls += 1
        self.last = x.detach()
        if not hasattr(self, "made"):
            self.register_buffer("made", torch.ones(()))
        self.mean = 0.9 * self.mean + 0.1 * x.detach().mean(dim=0)
        return x + 1e-3 * torch.randn_like(x) + nn.functional.dropout(x, 0.1, self.training)


def untidy_model():
    spectral = nn.utils.parametrizations.spectral_norm(nn.Linear(5, 5))
    return network(nn.BatchNorm1d(5), nn.Dropout(0.3), Untidy(), spectral, dtype=torch.float32)


def buffers_of(model):
    return {name: buffer.clone() for name, buffer in model.named_buffers()}


def set_buffers(model, values):
    """Change what buffers hold, unseen by the graphs that they are in."""
    for name, value in values.items():
        model.get_buffer(name).data.copy_(value)


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
def test_torch_what_is_computed_again_in_backward_is_the_same(options):
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


def test_torch_the_direction_can_drop_what_training_drops():
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
def test_torch_a_device_has_a_random_state_too(monkeypatch, dropout):
    accelerator = Accelerator()
    monkeypatch.setattr(torch, "get_device_module", lambda device: accelerator)
    device, before = torch.device("cuda:1"), accelerator.generator.get_state()
    drawn = torch.rand(3, generator=accelerator.generator)
    accelerator.generator.set_state(before)
    with side_effects.without_side_effects(network(), device, dropout, "batch"):
        inside = torch.rand(3, generator=accelerator.generator)
    assert torch.equal(inside, drawn) == (dropout != "independent")
    assert torch.equal(accelerator.generator.get_state(), before)


def test_torch_batch_norm_takes_the_statistics_that_one_asks_for():
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


def test_torch_a_leaf_is_named_where_there_are_several():
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


# Several arguments.


def two_arguments(seed=0):
    """Return a model of an image and a text, the like of their concatenation, the inputs and labels."""
    net, (x, y) = network(nn.BatchNorm1d(5), inputs=10, seed=seed), batch(shape=(10,), seed=seed)
    x = torch.where(torch.arange(10) < 6, x, x / 50)  # of another scale

    def model(image, text):
        return net(torch.cat([image.flatten(1), text], dim=1))

    return model, net, {"image": x[:, :6].reshape(-1, 2, 3), "text": x[:, 6:]}, x, y


def together(tree):
    leaves = tree.values() if isinstance(tree, dict) else tree
    return torch.cat([leaf.flatten(1) for leaf in leaves], dim=1)


def parted(x):
    return {"image": x[:, :6].reshape(-1, 2, 3), "text": x[:, 6:]}


JOINT = {
    "step": {},
    "steps": {"steps": 3, "bounds": (-0.1, 1.0)},
    "start": {"start": 3, "clean_weight": 0.25},
    "mask": {"mask": torch.arange(10) % 4 > 0, "bounds": (-0.1, 1.0), "steps": 2},
    "penalty": {"objective": "penalty", "mask": torch.arange(10) % 4 > 0},
    "difference": {"objective": "penalty", "penalty_by": "difference"},
}


def on_trees(options, convert):
    return {key: convert(value) if isinstance(value, Tensor) else value for key, value in options.items()}


def drawn_anew(options):
    return options | ({"start": torch.Generator().manual_seed(3)} if "start" in options else {})


@pytest.mark.parametrize("p", [1, 1.5, math.inf])
@pytest.mark.parametrize("kind", [dict, tuple])
@pytest.mark.parametrize("options", JOINT.values(), ids=JOINT)
def test_torch_several_arguments_are_one_point(options, kind, p):
    """As their concatenation is, of a model that splits it."""
    model, net, x, flat, y = two_arguments()
    given = {"p": p, "sigma": 0.3}
    leaf = (0, 1) if kind is tuple else ["image", "text"] if "start" in options else ["text", "image"]
    inputs = x if kind is dict else tuple(x.values())

    def convert(mask):
        of_rows = parted(mask.expand(len(flat), 10))
        return of_rows if kind is dict else tuple(of_rows.values())

    found = regularized_loss(
        model, losses_of, inputs, y, leaf=leaf, **given, **on_trees(drawn_anew(options), convert)
    )
    expected = regularized_loss(net, losses_of, flat, y, **given, **drawn_anew(options))
    assert_allclose(found.item(), expected.item(), rtol=1e-12)
    assert_allclose(gradients(net, found), gradients(net, expected), rtol=1e-9, atol=1e-12)
    if options.keys() & {"objective", "clean_weight"}:
        return
    options = options | given
    flatly = perturb(net, losses_of, flat, y, **options)
    for joint in True, False:
        eps = perturb(model, losses_of, inputs, y, leaf=leaf, joint=joint, **on_trees(options, convert))
        assert type(eps) is kind
        eps = together([eps["image"], eps["text"]] if kind is dict else eps)
        assert torch.allclose(eps, flatly, rtol=1e-9, atol=1e-12) == (joint or p == math.inf)  # a product


@pytest.mark.parametrize("p", [1, 2, math.inf])
def test_torch_an_ascent_moves_several_arguments(p):
    model, net, x, flat, y = two_arguments()
    options = {"p": p, "sigma": 0.5, "steps": 5, "bounds": (-0.1, 1.0)}
    eps = ascend(model, losses_of, x, y, leaf=("image", "text"), **options)
    assert_allclose(together(eps), ascend(net, losses_of, flat, y, **options), rtol=1e-9, atol=1e-12)
    enough = losses_of(net(flat), y).median().item()  # a batch norm would see those that are left
    model, net, _, _, _ = two_arguments()
    net.eval()
    eps = ascend(model, losses_of, x, y, leaf=("image", "text"), stop_above=enough, **options)
    assert_allclose(
        together(eps), ascend(net, losses_of, flat, y, stop_above=enough, **options), rtol=1e-9, atol=1e-12
    )


SCALED = {
    "perturb": {},
    "in a box": {"bounds": (0.0, 1.0)},
    "mixed": {"clean_weight": 0.3},
    "steps": {"steps": 3, "bounds": (0.0, 1.0)},
    "penalty": {"objective": "penalty"},
    "difference": {"objective": "penalty", "penalty_by": "difference"},
    "outputs": {"direction": "outputs", "beta": 2.0, "start": 0.01},
    "masked": {"mask": torch.arange(6) != 1},
}


@pytest.mark.parametrize("p", [1, 1.5, 2, math.inf])
@pytest.mark.parametrize("options", SCALED.values(), ids=SCALED)
def test_torch_a_scale_is_that_of_inputs_before_they_were_normalised(options, p):
    model, (x, y), std = (
        network(),
        batch(),
        torch.tensor([0.5, 0.2, 3.0, 1.0, 0.7, 0.01], dtype=torch.float64),
    )
    options, scaled = dict(options), dict(options)
    if "start" in options:
        options["start"] = torch.full_like(x, options["start"])
        scaled["start"] = options["start"] / std
    if "bounds" in options:
        scaled["bounds"] = tuple(bound / std for bound in options["bounds"])
    ball = {"p": p, "sigma": 0.3}
    expected = regularized_loss(lambda x: model(x / std), losses_of, x, y, **ball, **options)
    found = regularized_loss(model, losses_of, x / std, y, scale=1 / std, **ball, **scaled)
    assert_allclose(found.item(), expected.item(), rtol=1e-9)
    assert_allclose(gradients(model, found), gradients(model, expected), rtol=1e-6, atol=1e-12)
    kept = ("bounds", "steps", "direction", "start", "mask")
    inside = {key: value for key, value in options.items() if key in kept}
    scaled = {key: value for key, value in scaled.items() if key in kept}
    for function in perturb, ascend:
        eps = function(lambda x: model(x / std), losses_of, x, y, **ball, **inside)
        of_scaled = function(model, losses_of, x / std, y, scale=1 / std, **ball, **scaled)
        assert_allclose(of_scaled * std, eps, rtol=1e-6, atol=1e-9)


def test_torch_several_arguments_have_a_scale_each():
    model, (x, y) = network(), batch()
    x = {"a": x[:, :2], "b": x[:, 2:]}

    def joined(a, b):
        return model(torch.cat([a, b], dim=1))

    scale = {"a": 2.0, "b": torch.tensor([1.0, 0.5, 0.0, 3.0])}
    ball = {"p": 1.5, "sigma": 0.3, "leaf": ("a", "b")}
    together = perturb(joined, losses_of, x, y, scale=scale, **ball)
    whole = perturb(
        model,
        losses_of,
        torch.cat(list(x.values()), 1),
        y,
        p=1.5,
        sigma=0.3,
        scale=torch.tensor([2, 2, 1, 0.5, 0, 3]),
    )
    assert_allclose(torch.cat([together["a"], together["b"]], dim=1), whole, rtol=1e-9)
    apart = perturb(joined, losses_of, x, y, scale=scale, joint=False, **ball)
    for name, eps in apart.items():
        assert_allclose(lpfamily.norm(eps, 1.5, scale=scale[name]), 0.3, rtol=1e-9)


@pytest.mark.parametrize("objective", ["perturb", "penalty"])
@pytest.mark.parametrize("p", [1, 1.5, math.inf])
def test_torch_not_joint_each_argument_has_a_ball(p, objective):
    model, net, x, flat, y = two_arguments()
    radii = {"image": 0.5, "text": torch.linspace(0.01, 0.02, 7)}
    mask = {"image": torch.arange(3) > 0, "text": True}
    options = {"p": p, "sigma": radii, "mask": mask, "leaf": ("image", "text"), "joint": False}
    at = flat.clone().requires_grad_()
    clean = losses_of(net(at), y)
    grad = parted(torch.autograd.grad(clean.sum(), at)[0])
    expected = {
        name: lpfamily.epsilon(grad[name], p, radii[name], mask=torch.as_tensor(mask[name])) for name in x
    }
    loss = regularized_loss(model, losses_of, x, y, objective=objective, **options)
    if objective == "penalty":
        gain = (together(grad) * together(expected)).sum(dim=1)
        assert_allclose(loss.item(), (clean + gain).mean().item(), rtol=1e-12)
        return
    eps = perturb(model, losses_of, x, y, **options)
    for name in x:
        assert_allclose(eps[name], expected[name], rtol=1e-9, atol=1e-12)
    assert_allclose(loss.item(), losses_of(net(flat + together(expected)), y).mean().item(), rtol=1e-12)
    start = perturb(model, losses_of, x, y, start=torch.Generator().manual_seed(0), steps=2, **options)
    for name in x:
        norms = torch.linalg.vector_norm(start[name].flatten(1), p, dim=1)
        assert (norms <= torch.as_tensor(radii[name]) * (1 + 1e-9)).all()
    again = perturb(model, losses_of, x, y, start=expected, steps=2, **options)
    assert torch.isfinite(together(again)).all()


def test_torch_an_argument_may_be_a_tree():
    model, net, x, flat, y = two_arguments()
    options = {"p": 1.5, "sigma": 0.3, "steps": 2}
    eps = perturb(lambda parts, scale: model(**parts) * scale, losses_of, (x, 2.0), y, leaf=0, **options)
    expected = perturb(lambda x: net(x) * 2.0, losses_of, flat, y, **options)
    assert_allclose(together(eps), expected, rtol=1e-9, atol=1e-12)


def test_torch_the_outputs_are_those_of_the_ordinary_pass():
    model, net, x, _, y = two_arguments()
    net.append(nn.Dropout(0.5))
    for options in {}, {"clean_weight": 0.5}, {"objective": "penalty"}, JOINT["difference"]:
        outputs = []
        hook = net.register_forward_hook(lambda *given, seen=outputs: seen.append(given[2]))
        loss, made = regularized_loss(
            model, losses_of, x, y, sigma=0.1, leaf=("image", "text"), return_outputs=True, **options
        )
        hook.remove()
        ordinary = outputs[-1 - (options.get("clean_weight", 0) > 0 or "penalty_by" in options)]
        assert made is ordinary
        assert made.requires_grad
        assert loss.shape == ()


# Transforms of torch.func.

OF_TRANSFORMS = {
    "perturb": {"clean_weight": 0.25},
    "steps": {"steps": 2, "bounds": (0, 1), "direction": "log-odds"},
    "penalty": {"objective": "penalty", "direction": "log-odds"},
    "difference": {"objective": "penalty", "penalty_by": "difference", "difference_step": 1e-3},
    "outputs": {"direction": "outputs", "beta": 2.0},
}


@pytest.mark.parametrize("options", OF_TRANSFORMS.values(), ids=OF_TRANSFORMS)
def test_torch_it_is_transformed_as_it_is_differentiated(options):
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


# Between outputs.


def divergence(clean, outputs):
    """Return KL(f || g), as its definition has it."""
    f, g = torch.log_softmax(clean, dim=1), torch.log_softmax(outputs, dim=1)
    return (f.exp() * (f - g)).sum(dim=1)


OUTPUTS = {"direction": "outputs"}


def hessians(model, x):
    """Return the dense Hessian of each example's divergence at x, in the input."""

    def apart(at, x):
        return divergence(model(x[None]).detach(), model(at[None]))[0]

    return torch.stack([torch.autograd.functional.hessian(lambda at, x=x: apart(at, x), x) for x in x])


def leads(step):
    """Raise unless steps, each from the one before, end at the leading eigenvector of the Hessian."""
    model, (x, y) = network(), batch()
    eps = 1e-4 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0), dtype=x.dtype)
    for _ in range(60):
        eps = step(model, x, y, eps)
    expected = torch.linalg.eigh(hessians(model, x))[1][..., -1]
    assert_allclose((eps * expected).sum(dim=1).abs(), 1e-4, rtol=1e-6)
    assert_allclose(eps.norm(dim=1), 1e-4, rtol=1e-9)


def of_outputs(model, x, y, start):
    return perturb(model, None, x, None, sigma=1e-4, start=start, **OUTPUTS)


def along_rounding_errors(model, x, y, start):
    """Follows the divergence at x itself."""
    at = x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(divergence(model(x).detach(), model(at)).sum(), at)
    return lpfamily.epsilon(grad, 2, 1e-4)


def of_labels(model, x, y, start):
    return perturb(model, losses_of, x, y, sigma=1e-4, start=start)


def test_torch_steps_between_outputs_end_at_the_leading_eigenvector():
    leads(of_outputs)
    for mutant in along_rounding_errors, of_labels:
        with pytest.raises(AssertionError):
            leads(mutant)


@pytest.mark.parametrize("p", P)
def test_torch_a_step_between_outputs_is_one_of_power_iteration(p):
    model, (x, _) = network(), batch()
    start = lpfamily.project(torch.randn(x.shape, dtype=x.dtype), p, 1e-5)
    eps = perturb(model, None, x, None, p=p, sigma=1e-5, start=start, **OUTPUTS)
    turned = (hessians(model, x) @ start[..., None])[..., 0]
    assert_allclose(eps, lpfamily.epsilon(turned, p, 1e-5), atol=1e-8)


def test_torch_a_step_between_outputs_begins_at_a_random_point():
    model, (x, y) = untidy_model(), batch(dtype=torch.float32)
    before, ball = snapshot(model), {"p": 1.5, "sigma": 0.5, "bounds": (0, 1)}
    found = [each(model, None, x, None, **ball, **OUTPUTS) for each in (perturb, perturb, ascend)]
    after = snapshot(model)
    assert not torch.equal(after.pop("random"), before["random"])
    assert_same(before, after | {"random": before["random"]})
    for eps in found[:2]:
        assert_allclose(torch.linalg.vector_norm(eps, 1.5, dim=1), 0.5, rtol=1e-4)
    assert not torch.equal(found[0], found[1])
    for seed in 0, 1:
        torch.manual_seed(seed)
        again = [perturb(model, None, x, None, sigma=0.5, steps=2, **OUTPUTS)]
        torch.manual_seed(seed)
        again.append(perturb(model, losses_of, x, y, sigma=0.5, steps=2, **OUTPUTS))
        assert torch.equal(*again)


@pytest.mark.parametrize("dropout", ["none", "same", "independent"])
@pytest.mark.parametrize("length", [1e-30, 1e-7, 1e-4, 1e-2])
@pytest.mark.filterwarnings("ignore:direction='outputs'")
def test_torch_no_step_follows_rounding_errors(length, dropout):
    """It has the direction of a float64 step, or none; also in a model that draws in each pass."""
    model, (x, _) = network(nn.Dropout(0.5), seed=1), batch(40)
    start = torch.nn.functional.normalize(torch.randn(x.shape, dtype=x.dtype)) * length
    options = {"sigma": 0.5, "direction_dropout": dropout} | OUTPUTS
    model.eval()
    exact = perturb(model, None, x.float().double(), None, start=1e-3 * start / length, **options)
    model = model.float().train(dropout != "none")
    eps = perturb(model, None, x.float(), None, start=start.float(), **options)
    if dropout != "none":  # what it drops makes another network
        assert length > 1e-7 or not eps.any()
        return
    cosines = (eps * exact).sum(dim=1) / 0.25
    moved = eps.norm(dim=1) > 0
    with pytest.raises(ValueError, match="no gradient at x: start must not be 0; None draws one"):
        perturb(model, None, x.float(), None, start=0 * start, **options)
    assert (cosines[moved] > 0.9).all()
    assert moved.all() if length == 1e-2 else length > 1e-7 or not moved.any()


def test_torch_autocast_rounds_no_difference_of_outputs():
    model, (x, _) = network(dtype=torch.float32), batch(dtype=torch.float32)
    options = {"sigma": 1e-3, "start": 1e-4 * torch.ones_like(x)} | OUTPUTS
    exact = perturb(model, None, x, None, **options)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(perturb(model, None, x, None, **options), exact)
    with pytest.warns(UserWarning, match="outputs': 7 of 7 examples stay where they are.*wider dtype"):
        half = perturb(model.half(), None, x.half(), None, **options)
    assert not half.any()
    with pytest.warns(UserWarning, match="7 of 7 examples"):  # x + start is x
        perturb(model.float(), None, 1e6 + x, None, **options)


@pytest.mark.parametrize("labels", [True, False])
@pytest.mark.parametrize("shape", [(), (4,)], ids=str)
def test_torch_between_outputs_the_loss_is_that_of_trades_or_without_labels_of_vat(labels, shape):
    torch.manual_seed(0)
    tail = [nn.Unflatten(1, (3, *shape))] if shape else []
    model = network(nn.BatchNorm1d(5), nn.Dropout(0.5))
    model = nn.Sequential(*model[:-1], nn.Linear(4, 3 * math.prod(shape)), *tail).double()
    (x, _), twin = batch(), copy.deepcopy(model)
    y = torch.randint(3, (7, *shape))
    loss = (lambda z, y: losses_of(z, y).reshape(len(y), -1).sum(dim=1)) if labels else None
    options = {"sigma": 0.5, "p": 1.5, "steps": 2, "start": 0.1 * torch.randn(x.shape, dtype=x.dtype)}
    state = torch.get_rng_state()
    found, outputs = regularized_loss(
        model, loss, x, y if labels else None, beta=3.0, return_outputs=True, **options, **OUTPUTS
    )
    eps = perturb(twin, None, x, None, **options, **OUTPUTS)
    left = gradients(model, found)
    torch.set_rng_state(state)
    begun, clean, ended = buffers_of(twin), twin(x), buffers_of(twin)
    torch.set_rng_state(state)
    set_buffers(twin, begun)
    moved = twin(x + eps)
    apart = divergence(clean if labels else clean.detach(), moved).reshape(7, -1).sum(dim=1)
    expected = (3 * apart + (loss(clean, y) if labels else 0)).mean()
    assert_allclose(found.item(), expected.item(), rtol=1e-9)
    assert_allclose(left, gradients(twin, expected), rtol=1e-7, atol=1e-10)
    assert torch.equal(outputs, clean)
    assert outputs.requires_grad == labels
    for name, value in ended.items():
        assert torch.equal(model.get_buffer(name), value)


def test_torch_between_outputs_several_arguments_are_one_point_too():
    model, net, x, flat, _ = two_arguments()
    options = {"p": 1.5, "sigma": 0.3, "steps": 2, "bounds": (-0.1, 1.0)} | OUTPUTS
    torch.manual_seed(0)
    eps = perturb(model, None, x, None, leaf=("image", "text"), **options)
    torch.manual_seed(0)
    assert_allclose(together(eps), perturb(net, None, flat, None, **options), rtol=1e-9, atol=1e-12)
    eps = perturb(model, None, x, None, leaf=("image", "text"), joint=False, **options)
    for leaf in eps.values():
        assert (torch.linalg.vector_norm(leaf.flatten(1), 1.5, dim=1) <= 0.3 + 1e-9).all()


def test_torch_an_ascent_between_outputs_finds_no_less_than_a_step():
    model, (x, _) = network(seed=3), batch()
    start = torch.Generator().manual_seed(0)
    step = perturb(model, None, x, None, sigma=1.0, start=start, **OUTPUTS)
    clean = model(x)
    for stop_above in None, 0.05:
        eps = ascend(model, None, x, None, sigma=1.0, steps=20, stop_above=stop_above, **OUTPUTS)
        gain = divergence(clean, model(x + eps)) - divergence(clean, model(x + step))
        assert (gain > -1e-6).all() or stop_above
        assert (divergence(clean, model(x + eps)) > 1e-3).all()


@pytest.mark.parametrize("p", P)
def test_torch_the_box_is_the_cores(p):
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


def test_torch_what_is_traced_is_not_looked_at():
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


def test_torch_several_steps_are_frank_wolfes_and_start_where_one_says():
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


def test_torch_what_an_ascent_has_settled_takes_no_more_passes():
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


# Labels that are none.

OF_LABELS = [
    {},
    {"clean_weight": 0.25, "steps": 2},
    {"objective": "penalty"},
    {"objective": "penalty", "penalty_by": "difference"},
]


def segmentation(void, dtype):
    """Return a model, a loss, images and labels of their pixels: of the first image some are void, of the
    second all."""
    torch.manual_seed(0)
    model, x = nn.Conv2d(2, 3, 3, padding=1).double(), torch.rand(3, 2, 4, 5, dtype=torch.float64)
    y = torch.randint(3, (3, 4, 5))
    y[0, 1:3], y[1] = void, void

    def loss(z, y):
        return cross_entropy(z, y.long(), reduction="none", ignore_index=void).sum(dim=(1, 2))

    return model, loss, x, y.to(dtype)


@pytest.mark.parametrize(("void", "dtype"), [(255, torch.uint8), (-1, torch.int64), (0, torch.int32)])
def test_torch_void_labels_are_left_out(void, dtype):
    model, loss, x, y = segmentation(void, dtype)
    ball, odds = {"p": 1.5, "sigma": 0.3}, {"direction": "log-odds", "ignore_index": void}
    for function in perturb, functools.partial(perturb, steps=2), functools.partial(ascend, steps=2):
        eps = function(model, loss, x, y, **ball, **odds)
        assert not eps[1].any()
        assert_allclose(eps.flatten(1).norm(p=1.5, dim=1)[[0, 2]], 0.3, rtol=1e-3)
    # of one label the direction of the odds is that of the loss
    one = segmentation(void, dtype)[3]
    one[:] = void
    one[[0, 2], 1, 2] = 1 if void != 1 else 2
    for options in OF_LABELS:
        found = [regularized_loss(model, loss, x, one, **ball, **options, **each) for each in ({}, odds)]
        assert_allclose(found[1].item(), found[0].item(), rtol=1e-9)
        assert_allclose(gradients(model, found[1]), gradients(model, found[0]), rtol=1e-6, atol=1e-9)


def binary(missing, dtype=torch.float64):
    """Return a network of three outputs, a loss, inputs and labels, some of which are missing."""
    model, (x, _) = network(dtype=dtype), batch(dtype=dtype)
    y = torch.randint(2, (7, 3), generator=torch.Generator().manual_seed(1)).to(dtype)
    y[0, 1], y[1] = missing, missing

    def loss(z, y):
        known = (y == 0) | (y == 1)
        each = binary_cross_entropy_with_logits(z, torch.where(known, y, 0), reduction="none")
        return torch.where(known, each, 0).sum(dim=1)

    return model, loss, x, y


@pytest.mark.parametrize("missing", [-100, -1, math.nan])
@pytest.mark.parametrize("options", OF_LABELS, ids=str)
def test_torch_missing_binary_labels_are_left_out(missing, options):
    model, loss, x, y = binary(missing)
    odds = {"direction": "binary-log-odds"} | ({} if missing == -100 else {"ignore_index": missing})
    assert not perturb(model, loss, x, y, sigma=0.5, **odds)[1].any()
    found = [regularized_loss(model, loss, x, y, sigma=0.5, **options, **each) for each in ({}, odds)]
    assert_allclose(found[1].item(), found[0].item(), rtol=1e-9)
    assert_allclose(gradients(model, found[1]), gradients(model, found[0]), rtol=1e-6, atol=1e-9)


WRONG_LABELS = [("log-odds", 255), ("log-odds", -1), *(("binary-log-odds", y) for y in (0.05, -1, math.nan))]


def with_a_wrong_label(direction, label, dtype=torch.float64):
    if direction == "binary-log-odds":
        model, _, x, y = binary(1, dtype)
        y[2, 0] = label
    else:
        model, (x, y) = network(dtype=dtype), batch(dtype=dtype)
        y[2] = label
    return model, lambda z, y: z.square().sum(dim=1), x, y


@pytest.mark.parametrize(("direction", "label"), WRONG_LABELS)
@pytest.mark.parametrize("function", [regularized_loss, perturb, ascend])
def test_torch_labels_that_are_none_are_errors(function, direction, label):
    model, loss, x, y = with_a_wrong_label(direction, label)
    with pytest.raises(ValueError, match=f"labels must .* got .*{label}.*ignore_index.*direction='loss'"):
        function(model, loss, x, y, sigma=0.5, direction=direction)


@pytest.mark.parametrize("scaled", [False, True], ids=["plain", "scaled"])
@pytest.mark.parametrize(("direction", "label"), WRONG_LABELS)
def test_torch_labels_that_only_a_device_sees_spoil_their_example(direction, label, scaled, monkeypatch):
    monkeypatch.setattr(type(library_of(torch.zeros(1))), "visible", lambda *_: False)
    model, loss, x, y = with_a_wrong_label(direction, label, torch.float32)
    options = {"sigma": 0.5, "direction": direction}
    if scaled:
        options["scaler"] = torch.amp.GradScaler("cpu")
    for function in perturb, ascend:
        eps = function(model, loss, x, y, **options)
        assert_array_equal(eps.isnan().all(dim=1), np.arange(7) == 2)
    for objective in "perturb", "penalty":
        assert regularized_loss(model, loss, x, y, objective=objective, **options).isnan()


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
def test_torch_there_may_be_no_example(options, direction):
    model, (x, y) = network(), batch(0)
    if direction == "binary-log-odds":
        y = torch.zeros(0, 3, dtype=torch.float64)
    loss = regularized_loss(
        model, lambda outputs, y: outputs.sum(dim=1), x, y, sigma=0.5, direction=direction, **options
    )
    assert loss.isnan()  # as the mean of no losses is
    assert not gradients(model, loss).any()


def test_torch_the_radius_is_held_constant_too():
    model, (x, y) = network(), batch()
    sigma = (0.1 * x.norm(dim=1)).requires_grad_()
    for function in perturb, ascend:
        assert not function(model, losses_of, x, y, sigma=sigma).requires_grad
    for options in {}, {"objective": "penalty"}, {"objective": "penalty", "penalty_by": "difference"}:
        loss = regularized_loss(model, losses_of, x, y, sigma=sigma, **options)
        assert torch.autograd.grad(loss, sigma, allow_unused=True) == (None,)


# Where loops run.


def test_torch_perturbs_where_gradients_are_off():
    model, (x, y) = network(), batch()
    eps = perturb(model, losses_of, x, y, sigma=0.5)
    with torch.no_grad():
        assert torch.equal(perturb(model, losses_of, x, y, sigma=0.5), eps)
        for objective in "perturb", "penalty":
            loss = regularized_loss(model, losses_of, x, y, sigma=0.5, objective=objective)
            assert not loss.requires_grad
    assert not eps.requires_grad


@pytest.mark.parametrize("objective", ["perturb", "penalty"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_torch_autocast_loses_precision_and_no_more(objective, dtype):
    model, (x, y) = network(dtype=torch.float32), batch(dtype=torch.float32)
    options = {"sigma": 0.5, "objective": objective, "direction": "log-odds"}
    exact = regularized_loss(model, losses_of, x, y, **options)
    with torch.autocast("cpu", dtype):
        loss = regularized_loss(model, losses_of, x, y, **options)
        if objective == "penalty":
            with pytest.raises(ValueError, match=r"half precision.*pass difference_step"):
                regularized_loss(model, losses_of, x, y, penalty_by="difference", **options)
    assert_allclose(loss.item(), exact.item(), rtol=0.05)
    assert_allclose(gradients(model, loss), gradients(model, exact), atol=0.05)


def test_torch_the_penalty_of_confident_examples_is_a_number_in_half_precision():
    model, (x, _) = nn.Linear(6, 3).half(), batch(dtype=torch.float16)
    with torch.no_grad():
        model.weight *= 300
        y = model(x).argmax(dim=1)
    found = [
        regularized_loss(model, losses_of, x, y, sigma=0.5, objective="penalty", direction=direction)
        for direction in ("log-odds", lambda outputs, y: lpfamily.error_log_odds(outputs, y))
    ]
    assert_allclose(found[1].item(), found[0].item(), rtol=0.01)
    assert gradients(model, found[1]).isfinite().all()


@pytest.mark.parametrize("objective", ["perturb", "penalty"])
def test_torch_a_scaler_keeps_small_gradients_of_half_precision(objective):
    model, (x, y) = network(dtype=torch.float32), batch(dtype=torch.float32)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)

    def small(outputs, y):
        return 2.0**-26 * losses_of(outputs, y)

    exact = regularized_loss(model, small, x, y, sigma=0.5, objective=objective)
    with torch.autocast("cpu", torch.float16):
        assert not perturb(model, small, x, y, sigma=0.5).any()  # underflow
        eps = perturb(model, small, x, y, sigma=0.5, scaler=scaler)
        loss = regularized_loss(model, small, x, y, sigma=0.5, objective=objective, scaler=scaler)
    assert_allclose(eps.norm(dim=1), 0.5, rtol=1e-3)
    assert_allclose(loss.item(), exact.item(), rtol=0.02)


@pytest.mark.parametrize("objective", ["perturb", "penalty"])
@pytest.mark.parametrize("scale", [2.0**16, 2.0**24])
def test_torch_a_scaler_that_is_too_large_spoils_no_statistics(objective, scale):
    model = network(nn.BatchNorm1d(5), dtype=torch.float32)
    x, y = batch(64, dtype=torch.float32)
    scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for _ in range(12):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.float16):
            loss = regularized_loss(model, losses_of, x, y, sigma=0.5, objective=objective, scaler=scaler)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
    assert all(torch.isfinite(value).all() for value in model.state_dict().values())
    skipped = math.log2(scale / scaler.get_scale())
    assert skipped < 12  # it finds a scale
    assert skipped == 0 or scale > 2.0**16 or objective == "penalty"  # the usual one is right for perturb


def test_torch_a_difference_that_may_round_to_tf32_is_an_error(monkeypatch):
    monkeypatch.setattr(regularized, "_may_round_to_tf32", lambda at: True)
    model, (x, y) = network(), batch()
    options = {"sigma": 0.1, "objective": "penalty", "penalty_by": "difference"}
    with pytest.raises(ValueError, match=r"in TF32, a difference.*pass difference_step.*allow_tf32"):
        regularized_loss(model, losses_of, x, y, **options)
    regularized_loss(model, losses_of, x, y, difference_step=0.25, **options)


def test_torch_what_cannot_be_done_is_an_error():
    model, (x, y) = network(), batch()
    with torch.inference_mode(), pytest.raises(RuntimeError, match=r"inference mode .* use torch.no_grad"):
        perturb(model, losses_of, x, y, sigma=0.1)
    with pytest.raises(TypeError, match=r"torch.jit .* cannot be restored"):
        perturb(torch.jit.script(model), losses_of, x, y, sigma=0.1)


def test_torch_a_compiled_model_has_all_but_the_penalty_by_gradient():
    model, (x, y) = network(nn.BatchNorm1d(5), nn.Dropout(0.0)), batch()
    compiled = torch.compile(copy.deepcopy(model), backend="aot_eager")
    for options in {"clean_weight": 0.25}, {"objective": "penalty", "penalty_by": "difference"}:
        for each in model, compiled:
            regularized_loss(each, losses_of, x, y, sigma=0.5, **options).backward()
    for mine, other in zip(model.parameters(), compiled.parameters(), strict=True):
        assert_allclose(mine.grad, other.grad, rtol=1e-9, atol=1e-12)
    for mine, other in zip(model.buffers(), compiled.buffers(), strict=True):
        assert_allclose(mine, other, rtol=1e-12)
    in_place = network()
    in_place.compile(backend="aot_eager")
    for each in compiled, in_place, torch.compile(lambda x: x, backend="eager"):
        with pytest.raises(ValueError, match="differentiated once: pass penalty_by='difference'"):
            regularized_loss(each, losses_of, x, y, sigma=0.5, objective="penalty")


def test_torch_processes_share_the_gradient_of_one(tmp_path):
    joined(2, "-m", "helpers.torch_processes", "share_the_gradient_of_one", cwd=tmp_path)


# Errors.

PACKED = nn.utils.rnn.pack_sequence([torch.ones(3, 6), torch.ones(2, 6)])
ERRORS = [
    (
        {"loss": cross_entropy},
        ValueError,
        r"loss must return one value per example, of shape \(7,\); got \(\).*reduction='none'",
    ),
    ({"loss": lambda z, _: z}, ValueError, r"loss must return one value per example.*got \(7, 3\)"),
    ({"loss": lambda *_: 1.0}, ValueError, "loss must return one value per example.*got float"),
    ({"direction": lambda z, _: z}, ValueError, r"direction must return one value per example.*got \(7, 3\)"),
    ({"loss": lambda z, _: z.detach()[:, 0]}, ValueError, "does not depend on what is to be perturbed"),
    ({"x": torch.ones(7, 6, dtype=torch.int64)}, TypeError, "x must be a floating tensor.*int64.*embedding"),
    ({"x": torch.ones(7, 6, dtype=torch.bool)}, TypeError, "x must be a floating tensor.*bool.*embedding"),
    ({"x": torch.ones(7, 6, dtype=torch.uint8)}, TypeError, r"x must be .*uint8.*x.float\(\) / 255"),
    ({"x": torch.ones(7, 6, dtype=torch.complex64)}, TypeError, "x must be .*complex64.*view_as_real"),
    ({"x": torch.tensor(1.0)}, TypeError, r"x must be .*float32 of shape \(\).*x\[None\]"),
    ({"x": PACKED}, TypeError, "x must be .*PackedSequence: pass the padded tensor .* pack inside the model"),
    ({"x": {"a": PACKED}}, TypeError, r"x\['a'\] must be .*PackedSequence: .* pack inside the model"),
    ({"x": (torch.ones(7, 6, dtype=torch.uint8), 3)}, TypeError, r"x\[0\] must be .*uint8.*x.float"),
    ({"x": [1.0]}, TypeError, "x must be a tensor, a tuple .* or a dict .*; got list"),
    ({"x": (torch.ones(7, 6), 3), "leaf": 2}, ValueError, r"leaf must be one of \[0, 1\]; got 2"),
    ({"x": (torch.ones(7, 6), 3), "leaf": 1}, TypeError, r"x\[1\] must be a floating tensor.*int"),
    ({"x": {"a": torch.ones(7, 6)}, "leaf": 0}, ValueError, r"leaf must be one of \['a'\]; got 0"),
    ({"leaf": 0}, ValueError, "x is one tensor, got leaf=0"),
    ({"x": Named(torch.ones(7, 6), 3), "leaf": "c"}, ValueError, r"one of \['a', 'b'\]; got 'c'"),
    ({"x": Named(torch.ones(7, 6), 3), "leaf": 2}, ValueError, r"one of \['a', 'b'\]; got 2"),
    ({"x": Named(torch.ones(7, 6), torch.ones(7))}, ValueError, r"which argument .*\['a', 'b'\]"),
    ({"x": {"a": torch.ones(7, 6), "b": 3}, "leaf": ("a", "b")}, TypeError, r"x\['b'\] must be .*int"),
    (
        {"x": {"a": torch.ones(7, 6)}, "leaf": ("a", "c")},
        ValueError,
        r"leaf must be one of \['a'\]; got \('a', 'c'\): several",
    ),
    ({"x": {"a": torch.ones(7, 6)}, "leaf": ()}, ValueError, r"leaf must be one of \['a'\]; got \(\)"),
    ({"x": {"a": {}}, "leaf": "a"}, ValueError, r"x\['a'\] must hold at least one tensor; got {}"),
    (
        {"x": (torch.ones(7, 6), torch.ones(6, 6)), "leaf": (0, 1), "model": lambda a, b: a[:, :3]},
        ValueError,
        r"of the same examples; .*\(6,\)",
    ),
    ({"sigma": -1.0}, ValueError, "sigma"),
    ({"p": 0.5}, ValueError, r"p must lie in \[1, inf\]"),
    (
        {"direction": "odds"},
        ValueError,
        "direction must be 'loss', 'log-odds', 'binary-log-odds', 'outputs' or a function",
    ),
    ({"direction_dropout": "no"}, ValueError, "direction_dropout must be one of none, same, independent"),
    ({"direction_dtype": "float16"}, ValueError, "direction_dtype must be one of same, bfloat16"),
    ({"batch_norm": "train"}, ValueError, "batch_norm must be one of batch, running; got 'train'"),
    ({"loss": None}, TypeError, "loss must be a function of .outputs, y.; None is for direction='outputs'"),
    (OUTPUTS | {"direction_dtype": "bfloat16"}, ValueError, "a difference of outputs, which rounds away in"),
    ({"steps": 0}, ValueError, "steps must be .*at least 1; got 0"),
    ({"batch_ndim": 0}, ValueError, "batch_ndim must be at least 1.*got 0"),
]
OF_THE_LOSS = [
    ({"beta": 1.0}, ValueError, "beta weighs a divergence between outputs; this objective has none"),
    (
        OUTPUTS,
        ValueError,
        "beta, the weight .* must be a number of at least 0; got None: TRADES has 6",
    ),
    (OUTPUTS | {"beta": -1.0}, ValueError, "must be a number of at least 0; got -1.0"),
    (
        OUTPUTS | {"beta": 1.0, "objective": "penalty"},
        ValueError,
        "no penalty, as the divergence has no gradient",
    ),
    (OUTPUTS | {"beta": 1.0, "clean_weight": 0.5}, ValueError, "L.x. . beta KL.*no clean_weight"),
    ({"objective": "plain"}, ValueError, "objective must be 'perturb' or 'penalty'; got 'plain'"),
    ({"clean_weight": 2}, ValueError, r"clean_weight must lie in \[0, 1\]; got 2"),
    ({"objective": "penalty", "steps": 2}, ValueError, "steps and start belong to objective='perturb'"),
    ({"objective": "penalty", "direction_dropout": "same"}, ValueError, "direction_dropout, .* belong to"),
    ({"penalty_by": "hand"}, ValueError, "penalty_by must be .*; got 'hand'"),
    ({"penalty_by": "difference"}, ValueError, "penalty_by='difference' belongs to objective='penalty'"),
    ({"difference_step": 0.1}, ValueError, "difference_step belongs to penalty_by='difference'"),
    ({"difference_step": 0}, ValueError, "difference_step must be a finite number above 0; got 0"),
]


@pytest.mark.parametrize(
    ("function", "options", "error", "message"),
    [(regularized_loss, *case) for case in ERRORS + OF_THE_LOSS] + [(perturb, *case) for case in ERRORS],
)
def test_torch_an_error_says_what_was_given(function, options, error, message):
    x, y = batch()
    options = {"model": network(), "loss": losses_of, "x": x, "y": y, "sigma": 0.5} | options
    with pytest.raises(error, match=message):
        function(**options)


def test_torch_outputs_that_are_no_logits_need_a_function():
    def model(x):
        return {"logits": x[:, :3]}

    def loss(outputs, y):
        return losses_of(outputs["logits"], y)

    x, y = batch()
    with pytest.raises(TypeError, match=r"outputs must be a tensor of logits, or .* got dict: pass a model"):
        perturb(model, loss, x, y, sigma=0.5, direction="log-odds")
    odds = perturb(
        model, loss, x, y, sigma=0.5, direction=lambda z, y: lpfamily.error_log_odds(z["logits"], y)
    )
    assert_allclose(odds, perturb(model, loss, x, y, sigma=0.5), rtol=1e-9)


@pytest.mark.parametrize("direction", ["log-odds", "binary-log-odds", "outputs"])
def test_torch_logits_may_be_an_attribute_of_the_outputs(direction):
    """As they are of Hugging Face's models."""
    model, (x, y) = network(), batch()
    y = y if direction != "binary-log-odds" else torch.nn.functional.one_hot(y, model(x).shape[1]).double()

    def loss(outputs, y):
        logits = getattr(outputs, "logits", outputs)
        return cross_entropy(logits, y, reduction="none")

    def named(x):
        return SimpleNamespace(loss=None, logits=model(x))

    for scaler in None, torch.amp.GradScaler("cpu"):
        options = {"sigma": 0.5, "direction": direction, "scaler": scaler, "start": torch.full_like(x, 0.1)}
        found, expected = (perturb(each, loss, x, y, **options) for each in (named, model))
        assert torch.equal(found, expected)
        assert found.norm(dim=1).min() > 0.49
    if direction == "log-odds":
        found, expected = (robustness(each, x, y, p=2, sigma=0.5, progress=False) for each in (named, model))
        assert_array_equal(found.smallest(2), expected.smallest(2))


SIGNATURES = {
    regularized_loss: "(model, loss, x, y, *, p=2.0, sigma, objective='perturb', clean_weight=0.0, "
    "bounds=None, mask=None, scale=None, batch_ndim=1, leaf=None, joint=True, direction='loss', "
    "ignore_index=-100, steps=1, start=None, direction_dropout='none', direction_dtype='same', "
    "batch_norm='batch', penalty_by='gradient', difference_step=None, scaler=None, beta=None, "
    "return_outputs=False)",
    perturb: "(model, loss, x, y, *, p=2.0, sigma, bounds=None, mask=None, scale=None, batch_ndim=1, "
    "leaf=None, joint=True, direction='loss', ignore_index=-100, steps=1, start=None, "
    "direction_dropout='none', direction_dtype='same', batch_norm='batch', scaler=None)",
    ascend: "(model, loss, x, y, *, p=2.0, sigma, steps=10, step_size=None, start=None, bounds=None, "
    "mask=None, scale=None, method=None, restarts=0, stop_above=None, leaf=None, direction='loss', "
    "ignore_index=-100, direction_dropout='none', direction_dtype='same', batch_norm='batch', scaler=None)",
}


@pytest.mark.parametrize("function", SIGNATURES, ids=lambda function: function.__name__)
def test_torch_each_function_names_its_arguments(function):
    signature = inspect.signature(function)
    bare = [each.replace(annotation=inspect.Parameter.empty) for each in signature.parameters.values()]
    assert str(inspect.Signature(bare)) == SIGNATURES[function]


def said_of_arguments(function):
    """Return what a docstring says of each argument, in the order in which it names them."""
    _, _, after = inspect.getdoc(function).partition("Parameters\n----------\n")
    said, names = {}, []
    for line in after.partition("\n\n")[0].splitlines():
        if line.startswith(" "):
            said |= {name: f"{said[name]}{line}\n" for name in names}
        else:
            names = line.split(", ")
            assert not said.keys() & names
            said |= dict.fromkeys(names, "")
    return said


@pytest.mark.parametrize("function", SIGNATURES, ids=lambda function: function.__name__)
def test_torch_each_function_says_what_its_arguments_are(function):
    said, whole = said_of_arguments(function), said_of_arguments(regularized_loss)
    assert said.keys() == inspect.signature(function).parameters.keys()
    of_ascent = {"steps", "step_size", "start", "method", "restarts", "stop_above"}
    of_ascent = of_ascent if function is ascend else set()
    for name in said.keys() - of_ascent:
        assert said[name] == whole[name]
    assert "As in `regularized_loss`" not in inspect.getdoc(function)
