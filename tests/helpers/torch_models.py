"""Models, batches and losses in torch, and snapshots of a model and of torch's random state."""

import math
from collections import namedtuple

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy


def losses_of(outputs, y):
    return cross_entropy(outputs, y, reduction="none")


def network(*inner, inputs=6, seed=0, dtype=torch.float64):
    """Return a network of three matrix products."""
    torch.manual_seed(seed)
    layers = nn.Linear(inputs, 5), nn.Tanh(), *inner, nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)
    return nn.Sequential(*layers).to(dtype)


def batch(n=7, shape=(6,), seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(n, *shape, generator=generator, dtype=dtype)
    return x, torch.randint(3, (n,), generator=generator)


def snapshot(model):
    """Return the state, buffers, gradients and flags of a model, and torch's random state."""
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


P = (1, 1.1, 1.5, 2, 3, 10, math.inf)


Named = namedtuple("Named", ["a", "b"])


def gradients(model, loss):
    found = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    return torch.cat([torch.zeros(1) if g is None else g.flatten() for g in found])


def input_gradient(model, x, y):
    """Return the loss and the input gradient of one example."""
    at = x[None].clone().requires_grad_()
    loss = cross_entropy(model(at), y[None])
    return loss.item(), torch.autograd.grad(loss, at)[0][0].numpy()


class Untidy(nn.Module):
    """A module that updates, replaces and creates buffers, and draws random numbers, in every pass."""

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
    """Overwrite buffers without autograd noticing."""
    for name, value in values.items():
        model.get_buffer(name).data.copy_(value)


def two_arguments(seed=0):
    """Return a model of image and text, the same model of one array, the inputs of each, and the labels."""
    net, (x, y) = network(nn.BatchNorm1d(5), inputs=10, seed=seed), batch(shape=(10,), seed=seed)
    x = torch.where(torch.arange(10) < 6, x, x / 50)  # of another scale

    def model(image, text):
        return net(torch.cat([image.flatten(1), text], dim=1))

    return model, net, {"image": x[:, :6].reshape(-1, 2, 3), "text": x[:, 6:]}, x, y


def together(tree):
    leaves = tree.values() if isinstance(tree, dict) else tree
    return torch.cat([leaf.flatten(1) for leaf in leaves], dim=1)


def divergence(clean, outputs):
    """Return KL(f || g), from its definition."""
    f, g = torch.log_softmax(clean, dim=1), torch.log_softmax(outputs, dim=1)
    return (f.exp() * (f - g)).sum(dim=1)


OUTPUTS = {"direction": "outputs"}
