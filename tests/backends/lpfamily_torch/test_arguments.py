"""A torch model of several arguments: they are one point, or each has its own ball."""

import math

import pytest
from numpy.testing import assert_allclose

from helpers.libraries_under_test import NAMES

if "torch" not in NAMES:
    pytest.skip("torch is not under test", allow_module_level=True)

import torch
from torch import Tensor, nn

import lpfamily
from helpers.torch_models import batch, gradients, losses_of, network, together, two_arguments
from lpfamily_torch import ascend, perturb, regularized_loss

pytestmark = pytest.mark.torch


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
    """They give the result of a model that takes their concatenation and splits it."""
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
