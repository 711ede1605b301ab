"""Models, batches and losses in torch, and a snapshot of all that a model and torch remember."""

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy


def losses_of(outputs, y):
    return cross_entropy(outputs, y, reduction="none")


def network(*inner, inputs=6, seed=0, dtype=torch.float64):
    """Return a network of three products."""
    torch.manual_seed(seed)
    layers = nn.Linear(inputs, 5), nn.Tanh(), *inner, nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)
    return nn.Sequential(*layers).to(dtype)


def batch(n=7, shape=(6,), seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(n, *shape, generator=generator, dtype=dtype)
    return x, torch.randint(3, (n,), generator=generator)


def snapshot(model):
    """Return all there is to see in a model, and the random state."""
    return {
        "state": {name: value.clone() for name, value in model.state_dict().items()},
        "buffers": dict(model.named_buffers()),
        "grads": {
            name: (p.grad, p.grad is not None and p.grad.clone()) for name, p in model.named_parameters()
        },
        "flags": {
            name: (m.training, getattr(m, "track_running_stats", None)) for name, m in model.named_modules()
        },
        "trained": {name: p.requires_grad for name, p in model.named_parameters()},
        "random": torch.get_rng_state(),
    }


def assert_same(before, after):
    assert before["flags"] == after["flags"]
    assert before["trained"] == after["trained"]
    assert torch.equal(before["random"], after["random"])
    assert before["state"].keys() == after["state"].keys()
    for name, value in before["state"].items():
        assert torch.equal(value, after["state"][name]), name
    for name, value in before["buffers"].items():
        assert value is after["buffers"][name], name
    for name, (grad, value) in before["grads"].items():
        assert grad is after["grads"][name][0], name
        assert grad is None or torch.equal(value, after["grads"][name][1]), name


def flat(tensors):
    return np.concatenate([tensor.detach().double().numpy().ravel() for tensor in tensors])
