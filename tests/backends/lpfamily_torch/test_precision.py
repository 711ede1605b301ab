"""A loop in torch with autocast, a gradient scaler, a compiled model or several processes."""

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
from helpers.commandline import joined
from helpers.torch_models import batch, gradients, losses_of, network
from lpfamily_torch import perturb, regularized, regularized_loss

pytestmark = pytest.mark.torch


def test_torch_perturb_works_under_no_grad():
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


def test_torch_unsupported_models_are_errors():
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
    function = lambda x: compiled(x)  # noqa: E731 - finds what it calls
    for each in compiled, in_place, function, torch.compile(lambda x: x, backend="eager"):
        with pytest.raises(ValueError, match="differentiated once: pass penalty_by='difference'"):
            regularized_loss(each, losses_of, x, y, sigma=0.5, objective="penalty")


def test_torch_processes_share_the_gradient_of_one(tmp_path):
    joined(2, "-m", "helpers.torch_processes", "share_the_gradient_of_one", cwd=tmp_path)
