"""A custom training loop in several processes, on x and on x + eps.

torchrun --nproc-per-node 2 examples/ddp_digits.py [--p inf] [--sigma 0.1] [--epochs 10]
"""

import argparse
import math
from contextlib import nullcontext
from typing import Any

import torch
import torch.distributed as dist
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from lpfamily_torch import regularized_loss, robustness

MICROBATCHES = 2  # per batch; their gradients are accumulated before the processes exchange them


def losses(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return one loss per example."""
    return cross_entropy(logits, labels, reduction="none")


def train(data: TensorDataset, epochs: int, options: dict[str, Any]) -> nn.Module:
    """Train a network; each process takes its share of the examples."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
    team = DistributedDataParallel(model)
    optimizer = torch.optim.AdamW(team.parameters(), lr=5e-3)
    sampler = DistributedSampler(data, drop_last=True)
    batches = DataLoader(data, batch_size=64 // dist.get_world_size() // MICROBATCHES, sampler=sampler)
    for epoch in range(epochs):
        sampler.set_epoch(epoch)
        for number, (x, y) in enumerate(batches, 1):
            is_last = number % MICROBATCHES == 0
            with nullcontext() if is_last else team.no_sync():
                with torch.autocast("cpu", torch.bfloat16):
                    loss = regularized_loss(team, losses, x, y, **options)
                (loss / MICROBATCHES).backward()
            if is_last:
                optimizer.step()
                optimizer.zero_grad()
    return model


def main(arguments: list[str] | None = None) -> None:
    """Train a network without and with perturbations, and print both errors."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--p", type=float, default=math.inf)
    parser.add_argument("--sigma", type=float, default=0.1, help="the radius; pixels lie in [0, 1]")
    parser.add_argument("--epochs", type=int, default=10)
    options = parser.parse_args(arguments)

    dist.init_process_group("gloo")  # "nccl" if each process has a GPU
    digits = load_digits()
    x, y = torch.tensor(digits.data / 16, dtype=torch.float32), torch.tensor(digits.target)
    ball = {"p": options.p, "sigma": options.sigma, "bounds": (0, 1)}
    for name, sigma in ("plain", 0.0), ("perturbed", options.sigma):
        trained_in = ball | {"sigma": sigma, "direction": "log-odds"}
        model = train(TensorDataset(x[:1297], y[:1297]), options.epochs, trained_in)
        # every process attacks a share of the batches and gets the whole result
        result = robustness(model, x[1297:], y[1297:], **ball, effort="quick", batch_size=250, progress=False)
        if dist.get_rank() == 0:
            errors = result.error().value, result.error(options.p, options.sigma).value
            print(f"{name:>9}: error {errors[0]:.1%}, in the ball {errors[1]:.1%}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
