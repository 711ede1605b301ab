"""A small custom vision transformer on scikit-learn's digits, trained on x and on x + eps.

python examples/torch_vit.py [--p 2] [--sigma 0.4] [--epochs 20]
"""

import argparse

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy

from lpfamily_torch import ascend, perturb, regularized_loss

PIXELS = (0.0, 1.0)


class ViT(nn.Module):
    """A transformer: patches of 2 x 2 pixels as tokens, two attention layers, a linear layer on the mean."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, kernel_size=2, stride=2)
        self.positions = nn.Parameter(0.02 * torch.randn(16, width))
        layer = nn.TransformerEncoderLayer(
            width, 4, 2 * width, 0.1, "gelu", batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 10))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        tokens = self.patches(images).flatten(2).mT + self.positions
        return self.head(self.encoder(tokens).mean(dim=1))


def losses_of(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return one loss per example."""
    return cross_entropy(logits, labels, reduction="none")


def train(x: torch.Tensor, y: torch.Tensor, epochs: int, ball: dict[str, float] | None) -> ViT:
    torch.manual_seed(0)
    model = ViT()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    for _ in range(epochs):
        for rows in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            if ball is None:
                loss = losses_of(model(x[rows]), y[rows]).mean()
            else:  # the one line that differs
                loss = regularized_loss(
                    model, losses_of, x[rows], y[rows], bounds=PIXELS, direction="log-odds", **ball
                )
            loss.backward()
            optimizer.step()
        schedule.step()
    return model.eval()


def main(arguments: list[str] | None = None) -> None:
    """Train a transformer on x and on x + eps, and print both errors."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--p", type=float, default=2.0)
    parser.add_argument("--sigma", type=float, default=0.4, help="the radius; pixels lie in [0, 1]")
    parser.add_argument("--epochs", type=int, default=20)
    options = parser.parse_args(arguments)
    ball = {"p": options.p, "sigma": options.sigma}

    data = load_digits()
    x = torch.tensor(data.images / 16, dtype=torch.float32)[:, None]
    y = torch.tensor(data.target)
    (x, test_x), (y, test_y) = x.split(1297), y.split(1297)

    attack = {"bounds": PIXELS, "direction": "log-odds", **ball}
    for name, trained_in in ("plain", None), (f"p = {options.p:g}, sigma = {options.sigma:g}", ball):
        model = train(x, y, options.epochs, trained_in)
        perturbations = {
            "clean": torch.zeros_like(test_x),
            "one step": perturb(model, losses_of, test_x, test_y, **attack),
            "20 steps": ascend(model, losses_of, test_x, test_y, steps=20, **attack),
        }
        errors = {
            kind: (model(test_x + eps).argmax(dim=1) != test_y).float().mean().item()
            for kind, eps in perturbations.items()
        }
        print(f"{name:>20}: " + ", ".join(f"{kind} {error:.1%}" for kind, error in errors.items()))


if __name__ == "__main__":
    main()
