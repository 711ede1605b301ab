"""Laws of several torch processes: each runs `python -m helpers.torch_processes FUNCTION ARGUMENTS`."""

import copy
import datetime as dt
import sys

import numpy as np
import torch
from numpy.testing import assert_allclose
from torch import nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

import lpfamily_torch
from helpers.torch_models import batch, flat, losses_of, network
from lpfamily_torch import perturb, perturbed_weights, regularized_loss

OPTIONS = [
    {"clean_weight": 0.25},
    {"objective": "penalty"},
    {"objective": "penalty", "penalty_by": "difference"},
    {"direction": "outputs", "beta": 2.0},
]


def share_the_gradient_of_one():
    """Together the processes have the gradient of one, if the model is the DDP module or a function of it."""
    rank = torch.distributed.get_rank()
    if rank == 1:  # alone, as it exchanges nothing
        shared = DistributedDataParallel(network(nn.BatchNorm1d(5)), init_sync=False)
        for model in shared, lambda x: shared(x):
            perturb(model, losses_of, *batch(8), sigma=0.5)
    for options in OPTIONS:
        for of in lambda model: model, lambda model: lambda x: model(x):
            _shares_the_gradient(rank, options, of)


def _shares_the_gradient(rank, options, of):
    x, y = batch(8)

    def backward(model, rows):
        begun = {"start": 0.1 * x[rows]} if "beta" in options else {}
        regularized_loss(model, losses_of, x[rows], y[rows], sigma=0.5, **options, **begun).backward()

    alone, shared = network(), DistributedDataParallel(network())
    for part in range(2):  # gradients accumulate
        rows = slice(4 * part, 4 * part + 4)
        backward(alone, rows)
        mine = slice(rows.start + 2 * rank, rows.start + 2 * rank + 2)
        with shared.no_sync() if part == 0 else torch.enable_grad():
            backward(of(shared), mine)
    for one, other in zip(alone.parameters(), shared.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-9, atol=1e-12)


def move_weights_as_one():
    """Two processes move and train the weights as one does; under no_sync each moves them differently."""
    rank, (x, y) = torch.distributed.get_rank(), batch(8)
    alone = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    torch.distributed.broadcast_object_list(objects := [alone.state_dict()])
    alone.load_state_dict(objects[0])
    shared = DistributedDataParallel(copy.deepcopy(alone))
    mine = slice(4 * rank, 4 * rank + 4)
    for model, rows in (alone, slice(None)), (shared, mine):
        cross_entropy(model(x[rows]), y[rows]).backward()
        with perturbed_weights(model, p=1.5, sigma=0.3):
            model.zero_grad()
            cross_entropy(model(x[rows]), y[rows]).backward()
    assert_allclose(flat(w.grad for w in shared.parameters()), flat(w.grad for w in alone.parameters()))
    shared.zero_grad()
    with shared.no_sync():
        cross_entropy(shared(x[mine]), y[mine]).backward()
    with perturbed_weights(shared, p=1.5, sigma=0.3):
        inside = torch.tensor(flat(shared.parameters()))
        others = [torch.empty_like(inside) for _ in range(2)]
        torch.distributed.all_gather(others, inside)
        assert not torch.equal(*others)
        shared.zero_grad()
        cross_entropy(shared(x[mine]), y[mine]).backward()
    assert_allclose(flat(shared.parameters()), flat(alone.parameters()), rtol=0)
    grads = torch.tensor(flat(w.grad for w in shared.parameters()))
    others = [torch.empty_like(grads) for _ in range(2)]
    torch.distributed.all_gather(others, grads)
    assert torch.equal(*others)


def save_robustness(folder):
    """Save the robustness of a linear model."""
    rng = np.random.default_rng(0)
    net, x = torch.nn.Linear(6, 3).double(), torch.tensor(rng.random((50, 6)))
    with torch.no_grad():
        net.weight.copy_(torch.tensor(rng.standard_normal((3, 6))))
        net.bias.zero_()
    y = net(x).argmax(dim=1)
    options = {"p": 2, "sigma": 0.2, "effort": "quick", "batch_size": 12, "progress": False}
    lpfamily_torch.robustness(net, x, y, **options).save(folder)


def save_robustness_by_rank(folder):
    save_robustness(f"{folder}/{torch.distributed.get_rank()}")


if __name__ == "__main__":
    torch.distributed.init_process_group("gloo", timeout=dt.timedelta(seconds=30))
    name, *arguments = sys.argv[1:]
    globals()[name](*arguments)
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
