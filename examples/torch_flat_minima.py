"""A network trained on labels of which many are wrong: plainly, and at the worst weights in a ball.

python examples/torch_flat_minima.py [--wrong 0.4] [--epochs 30]
"""

import argparse
import math

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy

from lpfamily_torch import perturbed_weights


def train(x: torch.Tensor, y: torch.Tensor, epochs: int, ball: dict[str, float] | None) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 256), nn.BatchNorm1d(256), nn.ReLU(), nn.Linear(256, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    for _ in range(epochs):
        for rows in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            cross_entropy(model(x[rows]), y[rows]).backward()
            if ball is not None:  # the lines that differ
                with perturbed_weights(model, **ball):
                    optimizer.zero_grad()
                    cross_entropy(model(x[rows]), y[rows]).backward()
            optimizer.step()
        schedule.step()
    return model.eval()


def main(arguments: list[str] | None = None) -> None:
    """Train three networks, and print their errors on new images and on the training labels."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "--wrong", type=float, default=0.4, help="the share of training labels that are replaced at random"
    )
    parser.add_argument("--epochs", type=int, default=30)
    options = parser.parse_args(arguments)

    digits = load_digits()
    x, y = torch.tensor(digits.data / 16, dtype=torch.float32), torch.tensor(digits.target)
    (x, test_x), (y, test_y) = x.split(1297), y.split(1297)
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(10, y.shape, generator=generator)
    given = torch.where(torch.rand(y.shape, generator=generator) < options.wrong, drawn, y)

    balls = None, {"p": 2, "sigma": 1.0}, {"p": math.inf, "sigma": 0.01}
    for ball in balls:
        model = train(x, given, options.epochs, ball)
        name = "plain" if ball is None else ", ".join(f"{key} = {value:g}" for key, value in ball.items())
        errors = [(model(a).argmax(dim=1) != b).float().mean() for a, b in ((test_x, test_y), (x, given))]
        print(f"{name:>21}: error {errors[0]:.1%} on new images, {errors[1]:.1%} on the labels given")


if __name__ == "__main__":
    main()
