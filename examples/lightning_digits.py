"""An unchanged Lightning module, trained on x + eps by a callback.

python examples/lightning_digits.py [--p inf] [--sigma 0.1] [--epochs 20]
"""

import argparse
import math

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from lpfamily_torch import ascend
from lpfamily_torch.lightning import PerturbInputs


def losses_of(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return one loss per example."""
    return cross_entropy(logits, labels, reduction="none")


class Classifier(LightningModule):
    """A network of digits; it has no code for perturbations."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(64, 128), nn.BatchNorm1d(128), nn.ReLU(), nn.Dropout(0.2), nn.Linear(128, 10)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)

    def training_step(self, batch: list[torch.Tensor], index: int) -> torch.Tensor:
        x, y = batch
        return losses_of(self(x), y).mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=2e-3)


def main(arguments: list[str] | None = None) -> None:
    """Train the module without and with the callback, and print both errors."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--p", type=float, default=math.inf)
    parser.add_argument("--sigma", type=float, default=0.1, help="the radius; pixels lie in [0, 1]")
    parser.add_argument("--epochs", type=int, default=20)
    options = parser.parse_args(arguments)

    digits = load_digits()
    x, y = torch.tensor(digits.data / 16, dtype=torch.float32), torch.tensor(digits.target)
    ball = {"p": options.p, "sigma": options.sigma, "bounds": (0, 1), "direction": "log-odds"}
    for name, callbacks in ("plain", []), ("perturbed", [PerturbInputs(losses_of, **ball)]):
        seed_everything(0, verbose=False)
        model = Classifier()
        trainer = Trainer(
            accelerator="cpu",
            max_epochs=options.epochs,
            callbacks=callbacks,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(model, DataLoader(TensorDataset(x[:1297], y[:1297]), batch_size=64, shuffle=True))
        model.eval()
        eps = ascend(model, losses_of, x[1297:], y[1297:], **ball)
        errors = [
            (model(x[1297:] + shift).argmax(dim=1) != y[1297:]).float().mean().item() for shift in (0, eps)
        ]
        print(f"{name:>9}: error {errors[0]:.1%}, after 10 steps of ascent {errors[1]:.1%}")


if __name__ == "__main__":
    main()
