"""The published, the quick and the best recipe of each model: their differences from the defaults."""

from __future__ import annotations

import math
from typing import Any, Literal

RecipeName = Literal["paper", "quick", "best"]

_LIMIT = math.sqrt(15) / 2  # half, as dropout with keep probability 1/2 doubles the inputs

# Sources. IV: the paper's section IV. pylearn2: the scripts of Goodfellow et al., Maxout Networks, 2013
# (mnist_pi.yaml, mnist.yaml, cifar10_old_small.yaml), which the paper builds on.
PUBLISHED: dict[str, dict[str, Any]] = {
    "softmax": {
        # Section V. Neither optimiser nor penalty is stated: lr 0.1 is a choice, for plain descent.
        "units": (),
        "max_norm": (0.0,),
        "lr": 0.1,
        "epochs": 100,
        "patience": 0,
        "second_stage": "none",
    },
    "sigmoid-mlp": {
        # IV-A: 600-600, incoming norms of at most sqrt(15). The rest is not stated. Batch 100, lr 1 and the
        # range of the initial weights are the defaults for sigmoid units in DeepLearnToolbox, which the paper
        # acknowledges; decay, momentum and patience are those of the maxout networks.
    },
    "relu-mlp": {
        # Poole, Sohl-Dickstein, Ganguli, Analyzing noise in autoencoders and deep networks, 2014
        # (arXiv:1406.1831), which Table I quotes: rectified layers, with dropout and additive Gaussian noise.
        # That paper adds noise to inputs, before the nonlinearity or to its outputs; here dropout acts on the
        # outputs, and noise before the nonlinearity. All values are choices of this project: about as many
        # parameters as the maxout network, and its dropout, limit, rate and schedule. The deviation 0.3 had a
        # lower validation error than 0.5 in the quick recipe, trained plain with seed 0.
        "units": (800, 800),
        "activation": "relu",
        "dropout": (0.8, 0.5, 0.5),
        "layer_noise": (0.3, 0.3, 0.0),
        "max_norm": (_LIMIT,),
        "lr": 0.1,
    },
    "maxout": {
        # pylearn2, mnist_pi.yaml: 240 units of 5 pieces, twice; keep probability 0.8 for inputs, 0.5 for
        # hidden units.
        "units": (240, 240),
        "pieces": (5,),
        "dropout": (0.8, 0.5, 0.5),
        "max_norm": (_LIMIT,),
        "init": 0.005,
        "lr": 0.1,
    },
    "conv-maxout": {
        # pylearn2, mnist.yaml; the learning rate of its second stage is constant.
        "units": (48, 48, 24),
        "pieces": (2, 2, 4),
        "kernel": (8, 8, 5),
        "padding": (0, 3, 3),
        "pool": (4, 4, 2),
        "stride": (2,),
        "bias": "untied",
        "dropout": (0.8, 0.5, 0.5, 0.5),
        "max_norm": (0.9, _LIMIT, _LIMIT, _LIMIT),
        "init": 0.005,
        "batch_size": 128,
        "lr": 0.05,
        "lr_factor": 1.00004,
        "second_lr": "constant",
    },
    "cifar-maxout-small": {
        # pylearn2, cifar10_old_small.yaml. The second stage starts from scratch, on the same schedule, as the
        # learning rate is too small by then to continue.
        "units": (48, 128, 128, 240),
        "pieces": (2, 2, 2, 5),
        "kernel": (8, 8, 5),
        "padding": (4, 3, 3),
        "pool": (4, 4, 2),
        "stride": (2,),
        "dropout": (0.8, 0.5, 0.5, 0.5, 0.5),
        "max_norm": (0.9, _LIMIT, _LIMIT, 1.9, _LIMIT),
        "lr_scale": (0.05, 0.05, 0.05, 1.0, 1.0),
        "init": 0.005,
        "batch_size": 128,
        "lr": 0.1,
        "lr_decay": "linear",
        "momentum_final": 0.6,
        "second_stage": "scratch",
        "second_epochs": 1000,
    },
}
"""By model, the values that differ from the defaults of `Recipe`."""

_ONE_STAGE: dict[str, Any] = {
    "patience": 0,
    "second_stage": "none",
    "lr_decay": "linear",  # to a hundredth in the last epoch
    # a network at chance learns nothing from examples that are perturbed by the full sigma
    "sigma_ramp": 4,
    "momentum": 0.9,
    "momentum_final": 0.9,
}
QUICK: dict[str, dict[str, Any]] = {
    "softmax": {"epochs": 12},
    "sigmoid-mlp": {**_ONE_STAGE, "epochs": 15, "batch_size": 50, "lr": 0.1},
    "relu-mlp": {**_ONE_STAGE, "epochs": 15, "lr": 0.1},
    "maxout": {**_ONE_STAGE, "epochs": 10, "lr": 0.1, "momentum": 0.7, "momentum_final": 0.7},
    "conv-maxout": {**_ONE_STAGE, "epochs": 4, "lr": 0.05, "momentum": 0.7, "momentum_final": 0.7},
    "cifar-maxout-small": {**_ONE_STAGE, "epochs": 10, "lr": 0.1, "momentum": 0.7, "momentum_final": 0.7},
}
"""By model, the values of the quick recipe that differ from `PUBLISHED`, so that it trains in minutes."""

QUICK_EXAMPLES, MOST_QUICK_EPOCHS = 50_000, 100
"""The epochs of `QUICK` are for a set of `QUICK_EXAMPLES` examples or more.

A smaller set has proportionally more epochs, at most `MOST_QUICK_EPOCHS`.
"""

_BEST: dict[str, Any] = {
    **_ONE_STAGE,
    "validation": 0,
    "ema": 0.999,
}
BEST: dict[str, dict[str, Any]] = {
    # with a momentum of .9 from the start, a network may stay at chance
    "sigmoid-mlp": {
        **_BEST,
        "epochs": 150,
        "batch_size": 50,
        "lr": 0.4,
        "momentum": 0.5,
        "momentum_epochs": 20,
    },
    "relu-mlp": {**_BEST, "epochs": 30, "units": (1200, 1200), "dropout": (), "layer_noise": (), "lr": 0.1},
    "maxout": {**_BEST, "epochs": 150, "init": 0.05, "lr": 0.1, "momentum": 0.7, "momentum_final": 0.7},
}
"""By model, the values of the best recipe that differ from `PUBLISHED`.

They were chosen by the error on the last 10,000 training images of MNIST (docs/measured/recipes.csv). The
recipe trains on all 60,000.
"""

BEST_RADII = {"sigmoid-mlp": 1.5, "relu-mlp": 1.5, "maxout": 1.0}
"""The radii of the best recipes, as multiples of the published one."""
