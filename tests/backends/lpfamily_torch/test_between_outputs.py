"""The step between outputs in torch is one of power iteration, as in the training of VAT and TRADES."""

import copy
import math

import pytest
from numpy.testing import assert_allclose

from helpers.libraries_under_test import NAMES

if "torch" not in NAMES:
    pytest.skip("torch is not under test", allow_module_level=True)

import torch
from torch import nn

import lpfamily
from helpers.torch_models import (
    OUTPUTS,
    P,
    assert_same,
    batch,
    buffers_of,
    divergence,
    gradients,
    losses_of,
    network,
    set_buffers,
    snapshot,
    together,
    two_arguments,
    untidy_model,
)
from lpfamily_torch import ascend, perturb, regularized_loss

pytestmark = pytest.mark.torch


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
