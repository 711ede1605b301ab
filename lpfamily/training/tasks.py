"""What a trainer is made from: an objective, an optimiser, arrays, a machine, and the rates of each step."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Literal

import numpy as np

from lpfamily.training.choices import (
    COUNT,
    DECAY,
    EXPONENT,
    FRACTION,
    NOT_NEGATIVE,
    POSITIVE,
    TEXT,
    check,
    option,
)
from lpfamily.training.networks import Array, Floats, Network
from lpfamily.training.teams import ALONE, Team

ObjectiveName = Literal["plain", "noise", "perturb", "penalty", "trades"]

DIFFERENCE_STEP = 2.0**-10
"""The step of the finite-difference penalty, in units of eps."""

PERTURB = {"objective": "perturb"}
INNER_MAXIMUM = {"objective": ("perturb", "trades")}

of_objective, of_optimiser, of_machine = (
    functools.partial(option, group=group) for group in ("objective", "optimiser", "machine")
)
of_perturb, of_inner_maximum = (
    functools.partial(of_objective, needs=needs) for needs in (PERTURB, INNER_MAXIMUM)
)


@dataclass(frozen=True)
class Objective:
    """What a step minimises, as a mean over the minibatch; L is the loss of one example, `Network.loss`.

    - `plain`: L(x).
    - `noise`: L(x + eta), eta Gaussian with standard deviation sigma in each coordinate (Remark 1).
    - `perturb`: clean_weight * L(x) + (1 - clean_weight) * L(x + eps), eps held constant; eps is
      eq. 3 in the direction of the loss's inner function (`losses`), or `steps` steps of a `method` from x,
      or from a random point of the ball: `lpfamily.ascent.frank_wolfe` or `projected`, PGD.
      `direction_dropout` is the dropout, and the noise of layers, of the passes that find eps: none, the
      same as where the weights are trained, or independent ones in each. `direction_dtype` is what these
      passes compute in: eps keeps its norm, as eq. 3 is scale-free, and its direction is rounded.
    - `penalty`: L(x) + sigma * ||grad L(x)||_{p*} (eq. 4), with the weight gradient of the second
      term taken through the gradient, or of (L(x + h eps) - L(x)) / h with h = `DIFFERENCE_STEP`.

    - `trades`: L(x) + beta KL(f(x) || f(x + eps)), f the probabilities of the classes and KL the
      Kullback-Leibler divergence (Zhang, Yu, Jiao, Xing, El Ghaoui, Jordan 2019); eps, held constant, is
      that of `perturb` in the direction of KL, from a random point of the ball, as its gradient at x is 0.

    A step has one dropout, `draws.masks`, and one noise of layers, `draws.layer_noise`, for all L here and
    for penalty's gradients.

    `label_smoothing` A adds A (z_y - mean z) to L(x), or where the loss is of x + eta or x + eps to that
    one, z the logits: the cross-entropy with a target of 1 - A at the label, and A / classes at each class
    (Szegedy, Vanhoucke, Ioffe, Shlens, Wojna 2016). eps and the penalty are of the label itself.
    """

    objective: ObjectiveName = option(
        "plain",
        None,
        "plain: L(x); noise: L(x + Gaussian); perturb: L(x + eps), eq. 3; "
        "penalty: L(x) + sigma ||grad L||_p*, eq. 4; trades: L(x) + beta KL(f(x) || f(x + eps))",
        group="objective",
    )
    p: float = of_objective(2.0, EXPONENT, "the exponent of the ball, from 1 to inf")
    steps: int = of_inner_maximum(1, COUNT, "gradients per perturbation")
    method: Literal["frank-wolfe", "projected"] = of_inner_maximum(
        "frank-wolfe",
        None,
        "what several steps are; projected with perturb and --random-start is PGD training",
    )
    beta: float = of_objective(
        6.0, POSITIVE, "trades: the weight of the divergence", needs={"objective": "trades"}
    )
    clean_weight: float = of_perturb(0.0, FRACTION, "perturb: C in C L(x) + (1 - C) L(x + eps)")
    random_start: bool = of_perturb(
        False, None, "perturb: take the first gradient at a random point of the ball"
    )
    direction_dropout: Literal["none", "same", "independent"] = of_inner_maximum(
        "none",
        None,
        "the dropout, and the noise of layers, of the passes that find eps",
        needs=INNER_MAXIMUM | {"dropout|layer_noise": ()},
    )
    direction_dtype: Literal["same", "bfloat16"] = of_perturb(
        "same", None, "perturb: what these passes compute in"
    )
    penalty_by: Literal["gradient", "difference"] = of_objective(
        "gradient",
        None,
        "penalty: differentiate through the gradient, or take a finite difference along eps",
        needs={"objective": "penalty"},
    )

    label_smoothing: float = of_objective(
        0.0, DECAY, "A in a target of 1 - A at the label, and A / classes at each class"
    )

    @property
    def name(self) -> ObjectiveName:
        """The objective's name."""
        return self.objective

    @property
    def passes(self) -> int:
        """About how many passes through the network a step takes of an example, a gradient being three."""
        perturbed = 1 + self.steps + bool(self.clean_weight or self.objective == "trades")
        return 3 * {"plain": 1, "noise": 1, "penalty": 2}.get(self.objective, perturbed)


@dataclass(frozen=True)
class Optimiser:
    """How a step goes down: v <- momentum v - lr g, w <- w + v, at the step's `Rates`.

    With `ema` above 0 an average a of all parameters follows every step, after the norm constraints:
    a <- a + mixing (w - a). Gradients are taken at w; what is tested is a.
    """

    weight_decay: float = of_optimiser(0.0, NOT_NEGATIVE, "C in C/2 |W|^2, on weights, not biases")
    ema: float = of_optimiser(
        0.0,
        DECAY,
        "test and keep the exponential moving average of the parameters, which after a step has X of what it "
        "was, at first less; 0 is none",
    )


@dataclass(frozen=True)
class Machine:
    """What computes, and how: it changes a run by rounding alone."""

    device: str = of_machine("cpu", TEXT, "torch: cpu, cuda, cuda:1; JAX: cpu, gpu (all GPUs), gpu:1")
    tf32: bool = of_machine(False, None, "let a GPU round the factors of float32 products to 10 bits")
    compile: bool = of_machine(
        False,
        None,
        "torch: make one program of a step, in some 20 s; needs a C++ compiler, or Triton on a GPU",
    )

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class Rates:
    """What schedules set for each step of an epoch: arrays of one float64 per step."""

    lr: Floats
    momentum: Floats
    sigma: Floats
    """The radius (`perturb`), factor (`penalty`) or standard deviation (`noise`), in input units."""
    mixing: Floats | float = 1.0
    """What the average takes of the new parameters, where there is one: a <- a + mixing (w - a)."""

    def table(self) -> Floats:
        """Return lr, momentum, sigma and mixing of each step, (steps, 4)."""
        return np.stack(np.broadcast_arrays(self.lr, self.momentum, self.sigma, self.mixing), axis=1)


@dataclass(frozen=True)
class Task:
    """All that a trainer is made from."""

    network: Network
    objective: Objective
    x: Floats
    """The training inputs, (n, inputs), of `dtype`; images flattened, channels first."""
    labels: Array
    """int64, (n,), in 0..classes - 1; for squared errors the targets, (n, outputs), of `dtype`."""
    batch_size: int
    dtype: Literal["float32", "float64"] = "float32"
    optimiser: Optimiser = Optimiser()
    machine: Machine = Machine()
    team: Team = ALONE
    """Who else trains: each has trainers of the same task, and of every batch the examples of `teams.own`."""

    @property
    def weight_decay(self) -> float:
        """C in the term c/2 |W|^2 of each weight matrix."""
        return self.optimiser.weight_decay

    @property
    def device(self) -> str:
        """What computes, as the backend names it."""
        return self.machine.device

    @property
    def tf32(self) -> bool:
        """Whether a CUDA device may round the factors of float32 products to TensorFloat-32."""
        return self.machine.tf32

    @property
    def compiled(self) -> bool:
        """Whether to compile a step, where the library can and `compile_problem` names no problem."""
        return self.machine.compile
