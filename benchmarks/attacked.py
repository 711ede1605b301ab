"""The networks that `benchmarks.attacks` attacks: trained with fixed seeds on real images, and cached."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import OneCycleLR

from benchmarks.own_model import resnet
from lpfamily.training import data
from lpfamily.training.data import cifar10
from lpfamily_torch import ascend, perturb

BATCH = 100


@dataclass(frozen=True)
class Attacked:
    """A network, the ball in which it is trained, and the balls in which it is attacked, as (p, sigma)."""

    make: Callable[[], nn.Module]
    balls: tuple[tuple[float, float], ...]
    trained: tuple[float, float] | None = None
    """None means training on clean images."""
    steps: int = 5
    """The number of gradients with which training perturbs an image."""
    data: str = "mnist"
    epochs: int = 2
    lr: float = 2e-3


def cnn() -> nn.Module:
    """Return a plain network of two convolutions, for images of digits."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 5, 2, 2),
        nn.ReLU(),
        nn.Conv2d(16, 32, 5, 2, 2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * 7 * 7, 100),
        nn.ReLU(),
        nn.Linear(100, 10),
    )


def mlp() -> nn.Module:
    """Return a network of two hidden layers, for images of digits."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10)
    )


NETWORKS = {
    "CNN": Attacked(cnn, ((1, 5), (1, 10), (2, 1), (math.inf, 0.05))),
    "CNN, inf .1": Attacked(
        cnn, ((1, 5), (1, 10), (2, 1.5), (math.inf, 0.1), (math.inf, 0.15)), (math.inf, 0.1)
    ),
    "CNN, inf .2": Attacked(cnn, ((1, 10), (math.inf, 0.1), (math.inf, 0.2)), (math.inf, 0.2)),
    "CNN, 2 1.5": Attacked(cnn, ((1, 5), (1, 10), (2, 1.5), (math.inf, 0.2)), (2, 1.5)),
    "CNN, 1 5": Attacked(cnn, ((1, 5), (1, 10), (2, 1)), (1, 5)),
    "MLP": Attacked(mlp, ((1, 4), (2, 0.7), (math.inf, 0.03))),
    "ResNet, inf 4/255": Attacked(
        lambda: resnet(8),
        ((1, 10), (2, 0.5), (math.inf, 4 / 255)),
        (math.inf, 4 / 255),
        steps=1,
        data="cifar10",
        epochs=3,
        lr=5e-3,
    ),
}


def network(name: str, seed: int, folder: Path) -> nn.Module:
    """Return a network in evaluation mode, loaded from the folder, or trained and saved there."""
    attacked, path = NETWORKS[name], folder / f"{name.replace('/', ' of ')}, seed {seed}.safetensors"
    torch.manual_seed(seed)
    model = attacked.make()
    if path.exists():
        model.load_state_dict(load_file(path))
    else:
        for epoch, error in enumerate(_trained(model, attacked), 1):
            print(f"{name}: epoch {epoch} of {attacked.epochs}, training error {error:.2%}", flush=True)
        folder.mkdir(parents=True, exist_ok=True)
        save_file(model.state_dict(), path)
    return model.eval().requires_grad_(False)


def images(name: str, *, train: bool) -> tuple[Tensor, Tensor]:
    """Return images in [0, 1], of shape (n, channels, height, width), and their classes."""
    if name == "cifar10":
        arrays = cifar10.images(data.folder(name))
        pixels, labels = arrays[:2] if train else arrays[2:]
        return torch.from_numpy(pixels).reshape(-1, *cifar10.SHAPE) / 255, torch.from_numpy(labels)
    split = getattr(data.load(name), "train" if train else "test")
    return torch.from_numpy(split.x).reshape(-1, 1, 28, 28), torch.from_numpy(split.labels)


def _trained(model: nn.Module, attacked: Attacked) -> Iterator[float]:
    """Train a network, and yield the error of each epoch."""
    x, labels = images(attacked.data, train=True)
    steps = attacked.epochs * len(x) // BATCH
    optimizer = torch.optim.Adam(model.parameters(), attacked.lr)
    schedule = OneCycleLR(optimizer, attacked.lr, total_steps=steps)
    done = 0
    for _ in range(attacked.epochs):
        wrong = 0
        for batch in torch.randperm(len(x)).split(BATCH)[: len(x) // BATCH]:
            at, of = x[batch], labels[batch]
            if attacked.trained:
                p, sigma = attacked.trained
                # sigma rises over half of the training; large balls from the start leave a network at chance
                how = {
                    "p": p,
                    "sigma": sigma * min(1.0, 2 * done / steps),
                    "bounds": (0, 1),
                    "direction": "log-odds",
                }
                if attacked.steps > 1:
                    at = at + ascend(model, cross_entropy, at, of, steps=attacked.steps, **how)
                else:
                    at = at + perturb(model, cross_entropy, at, of, **how)
            logits = model(at)
            optimizer.zero_grad()
            cross_entropy(logits, of).backward()
            optimizer.step()
            schedule.step()
            done += 1
            wrong += int((logits.argmax(dim=1) != of).sum())
        yield wrong / len(x)
