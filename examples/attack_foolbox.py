"""Compare attacks of foolbox with those of lpfamily: the share of digits that withstand each, by p."""

import argparse
import math

import foolbox
import torch
from sklearn.datasets import load_digits

from lpfamily.ecosystem.foolbox import LpAscentAttack, LpFastGradientAttack

BUILTIN = {
    1: foolbox.attacks.L1FastGradientAttack(),
    2: foolbox.attacks.L2FastGradientAttack(),
    math.inf: foolbox.attacks.LinfFastGradientAttack(),
}


def main(arguments: list[str] | None = None) -> None:
    """Train a network on scikit-learn's digits, attack it, and print its accuracy by p."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--examples", type=int, default=500, help="number of test examples")
    parser.add_argument("--updates", type=int, default=1000, help="updates by Adam, on all training examples")
    parser.add_argument("--steps", type=int, default=10, help="steps of the ascent")
    options = parser.parse_args(arguments)

    digits = load_digits()
    x, labels = torch.tensor(digits.data / 16, dtype=torch.float32), torch.tensor(digits.target)
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(options.updates):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(net(x[:1200]), labels[:1200]).backward()
        optimizer.step()

    model = foolbox.PyTorchModel(net.eval(), bounds=(0, 1))
    x, labels = (
        x[1200:][: options.examples].to(model.device),
        labels[1200:][: options.examples].to(model.device),
    )
    print(f"accuracy {foolbox.accuracy(model, x, labels):.3f}; of {len(x)} examples withstand")
    print(f"{'p':>5} {'epsilon':>8} {'foolbox':>8} {'one step':>9} {options.steps:>5} steps")
    for p in (1, 1.1, 1.5, 2, 3, 100, math.inf):
        epsilon = 0.06 * 64 ** (1 / p)  # the norm of 0.06 in every pixel
        attacks = BUILTIN.get(p), LpFastGradientAttack(p), LpAscentAttack(p, steps=options.steps)
        builtin, one, many = (
            ""
            if attack is None
            else f"{1 - attack(model, x, labels, epsilons=epsilon)[2].float().mean():.3f}"
            for attack in attacks
        )
        print(f"{p:>5} {epsilon:>8.3f} {builtin:>8} {one:>9} {many:>11}")


if __name__ == "__main__":
    main()
