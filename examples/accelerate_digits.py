"""A training loop with Accelerate, on x and on x + eps.

accelerate launch --cpu --num_processes 2 examples/accelerate_digits.py [--p inf] [--sigma 0.1] [--epochs 10]
torchrun --nproc-per-node 2 examples/accelerate_digits.py
"""

import argparse
import math
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from lpfamily_torch import regularized_loss, robustness


def losses(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return one loss per example."""
    return cross_entropy(logits, labels, reduction="none")


def train(accelerator: Accelerator, data: TensorDataset, epochs: int, options: dict[str, Any]) -> nn.Module:
    """Train a network; each process takes its share of the examples."""
    set_seed(0)
    network = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
    optimizer = torch.optim.AdamW(network.parameters(), lr=5e-3)
    size = 64 // accelerator.num_processes // accelerator.gradient_accumulation_steps
    batches = DataLoader(data, batch_size=size, shuffle=True, drop_last=True)
    model, optimizer, batches = accelerator.prepare(network, optimizer, batches)
    for _ in range(epochs):
        for x, y in batches:
            with accelerator.accumulate(model):
                loss = regularized_loss(model, losses, x, y, scaler=accelerator.scaler, **options)
                accelerator.backward(loss)
                optimizer.step()
                optimizer.zero_grad()
    return accelerator.unwrap_model(model)


def main(arguments: list[str] | None = None) -> None:
    """Train a network without and with perturbations, and print both errors."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--p", type=float, default=math.inf)
    parser.add_argument("--sigma", type=float, default=0.1, help="the radius; pixels lie in [0, 1]")
    parser.add_argument("--epochs", type=int, default=10)
    options = parser.parse_args(arguments)

    accelerator = Accelerator(cpu=True, mixed_precision="bf16", gradient_accumulation_steps=2)
    digits = load_digits()
    x, y = torch.tensor(digits.data / 16, dtype=torch.float32), torch.tensor(digits.target)
    ball = {"p": options.p, "sigma": options.sigma, "bounds": (0, 1)}
    for name, sigma in ("plain", 0.0), ("perturbed", options.sigma):
        trained_in = ball | {"sigma": sigma, "direction": "log-odds"}
        model = train(accelerator, TensorDataset(x[:1297], y[:1297]), options.epochs, trained_in)
        # every process attacks a share of the batches and gets the whole result
        result = robustness(model, x[1297:], y[1297:], **ball, effort="quick", batch_size=250, progress=False)
        errors = result.error().value, result.error(options.p, options.sigma).value
        accelerator.print(f"{name:>9}: error {errors[0]:.1%}, in the ball {errors[1]:.1%}")
    accelerator.end_training()


if __name__ == "__main__":
    main()
