"""Tumours classified by 30 measurements, some of which are wrong.

python examples/tabular_sklearn.py [--share 0.1] [--folds 5] [--epochs 100]

p says which measurements of a patient are wrong: at p = 1 one is wrong by much, at p = inf all are wrong by
little, at p = 2 each is wrong in proportion to its entry of the network's gradient. --share is sigma at
p = inf, in standard deviations; the same strength at other p is sigma = share * 30 ** (1 / p).
"""

import argparse
import math
from typing import Any

import numpy as np
from sklearn.datasets import load_breast_cancer
from sklearn.model_selection import StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from lpfamily.ecosystem.sklearn import LpRegularizedClassifier

EXPONENTS = (1.0, 2.0, math.inf)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "--share", type=float, default=0.1, help="sigma at p = inf, by which training moves all measurements"
    )
    parser.add_argument("--folds", type=int, default=5, help="folds of the cross-validation")
    parser.add_argument("--epochs", type=int, default=100, help="epochs of training")
    options = parser.parse_args(arguments)

    x, y = load_breast_cancer(return_X_y=True)
    radii = {p: options.share * x.shape[1] ** (1 / p) for p in EXPONENTS}
    trained: dict[str, dict[str, Any]] = {"plain": {"objective": "plain"}}
    trained |= {f"p = {p:g}": {"p": p, "sigma": sigma} for p, sigma in radii.items()}
    steps = [(p, factor * sigma) for p, sigma in radii.items() for factor in (0.5, 1, 2)]

    print("cross-validated accuracy in %: clean, and after the worst step in a ball of radius sigma")
    print(f"{'':9}{'p':>5}" + "".join(f"{p:7g}" for p, _ in steps))
    print(f"{'trained':9}sigma" + "".join(f"{sigma:7.3g}" for _, sigma in steps))
    folds = StratifiedKFold(options.folds, shuffle=True, random_state=0)
    for name, settings in trained.items():
        rows = []
        for train, test in folds.split(x, y):
            classifier = LpRegularizedClassifier(max_iter=options.epochs, random_state=0, **settings)
            pipeline = make_pipeline(StandardScaler(), classifier).fit(x[train], y[train])
            at, labels = pipeline[:-1].transform(x[test]), y[test]
            moved = [at] + [at + classifier.perturb(at, labels, p=p, sigma=sigma) for p, sigma in steps]
            rows.append([classifier.score(inputs, labels) for inputs in moved])
        clean, *worst = 100 * np.mean(rows, axis=0)
        print(f"{name:9}{clean:5.1f}" + "".join(f"{accuracy:7.1f}" for accuracy in worst))


if __name__ == "__main__":
    main()
