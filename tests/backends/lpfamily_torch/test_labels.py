"""Missing and invalid labels in torch: they are left out of loss and step, or are errors."""

import functools
import math

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from helpers.libraries_under_test import NAMES

if "torch" not in NAMES:
    pytest.skip("torch is not under test", allow_module_level=True)

import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from helpers.torch_models import batch, gradients, network
from lpfamily.libraries import library_of
from lpfamily_torch import ascend, perturb, regularized_loss

pytestmark = pytest.mark.torch


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
def test_torch_invalid_labels_are_errors(function, direction, label):
    model, loss, x, y = with_a_wrong_label(direction, label)
    with pytest.raises(ValueError, match=f"labels must .* got .*{label}.*ignore_index.*direction='loss'"):
        function(model, loss, x, y, sigma=0.5, direction=direction)


@pytest.mark.parametrize("scaled", [False, True], ids=["plain", "scaled"])
@pytest.mark.parametrize(("direction", "label"), WRONG_LABELS)
def test_torch_invalid_labels_on_a_device_make_their_example_nan(direction, label, scaled, monkeypatch):
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
