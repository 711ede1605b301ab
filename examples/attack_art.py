"""Compare an attack of ART with that of lpfamily: the share of digits that withstand each, by p."""

import argparse
import math

import numpy as np
import torch
from art.attacks.evasion import FastGradientMethod
from art.estimators.classification import PyTorchClassifier
from sklearn.datasets import load_digits

from lpfamily.ecosystem.art import LpGradientMethod


def main(arguments: list[str] | None = None) -> None:
    """Train a network on scikit-learn's digits, attack it, and print its accuracy by p."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--examples", type=int, default=500, help="number of test examples")
    parser.add_argument("--epochs", type=int, default=60, help="epochs of training")
    parser.add_argument("--steps", type=int, default=10, help="steps of the ascent")
    options = parser.parse_args(arguments)

    digits = load_digits()
    x, labels = (digits.data / 16).astype("float32"), digits.target
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002 (ART shuffles with it)
    net = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))
    classifier = PyTorchClassifier(
        net,
        torch.nn.CrossEntropyLoss(),
        input_shape=(64,),
        nb_classes=10,
        optimizer=torch.optim.Adam(net.parameters(), 1e-2),
        clip_values=(0, 1),
    )
    classifier.fit(x[:1200], labels[:1200], batch_size=100, nb_epochs=options.epochs)

    x, labels = x[1200:][: options.examples], labels[1200:][: options.examples]

    def accuracy(x: np.ndarray) -> float:
        return float(np.mean(classifier.predict(x).argmax(axis=1) == labels))

    print(f"accuracy {accuracy(x):.3f}; of {len(x)} examples withstand")
    print(f"{'p':>5} {'eps':>6} {'ART':>6} {'one step':>9} {options.steps:>5} steps")
    for p in (1, 1.01, 1.1, 1.5, 2, 3, 100, math.inf):
        eps = 0.06 * 64 ** (1 / p)  # the norm of 0.06 in every pixel
        builtin = FastGradientMethod(classifier, norm=p, eps=eps, eps_step=eps)
        one, many = (LpGradientMethod(classifier, p, eps, steps) for steps in (1, options.steps))
        shares = [accuracy(attack.generate(x, labels)) for attack in (builtin, one, many)]
        print(f"{p:>5} {eps:>6.3f} {shares[0]:>6.3f} {shares[1]:>9.3f} {shares[2]:>11.3f}")


if __name__ == "__main__":
    main()
