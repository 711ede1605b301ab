"""A trainer's inputs: objective, optimiser, arrays and machine (`Task`), and the rates of each step."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Literal

import numpy as np

from lpfamily.training.choices import (
    BELOW_ONE,
    COUNT,
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
    """The function whose mean over the minibatch a step minimises; L is the per-example loss, `Network.loss`.

    - `plain`: L(x).
    - `noise`: L(x + eta), where eta is Gaussian with standard deviation sigma in each coordinate (Remark 1).
    - `perturb`: clean_weight * L(x) + (1 - clean_weight) * L(x + eps), with eps constant. eps is eq. 3 at the
      gradient of the loss's inner function (`losses`), or the result of `steps` steps of a `method` that
      starts at x or at a random point of the ball: `lpfamily.ascent.frank_wolfe`, or `projected` (PGD).
      `direction_dropout` is the dropout and the layer noise in the computation of eps: none, the same as in
      the loss that trains the weights, or drawn independently for each gradient. `direction_dtype` is the
      dtype of that computation. It rounds the direction of eps but not its norm, as eq. 3 is scale-free.
    - `penalty`: L(x) + sigma * ||grad L(x)||_{p*} (eq. 4). The weight gradient of the second term is taken
      through the input gradient, or is that of (L(x + h eps) - L(x)) / h with h = `DIFFERENCE_STEP`.
    - `trades`: L(x) + beta KL(f(x) || f(x + eps)), where f are the class probabilities and KL is the
      Kullback-Leibler divergence (Zhang, Yu, Jiao, Xing, El Ghaoui, Jordan 2019). eps is constant and found
      as in `perturb`, at the gradient of KL. It starts at a random point of the ball, as the gradient of KL
      is 0 at x.

    All L of a step, and the gradients of `penalty`, share one dropout, `draws.masks`, and one layer noise,
    `draws.layer_noise`.

    `label_smoothing` A adds A (z_y - mean z), z the logits, to L at x, x + eta or x + eps: the cross-entropy
    then has a target of 1 - A at the label plus A / classes at each class (Szegedy, Vanhoucke, Ioffe, Shlens,
    Wojna 2016). eps and the penalty term use the loss without smoothing.
    """

    objective: ObjectiveName = option(
        "plain",
        None,
        "plain: L(x); noise: L(x + Gaussian); perturb: L(x + eps), eq. 3; "
        "penalty: L(x) + sigma ||grad L||_p*, eq. 4; trades: L(x) + beta KL(f(x) || f(x + eps))",
        group="objective",
    )
    p: float = of_objective(2.0, EXPONENT, "exponent p of the Lp ball, from 1 to inf")
    steps: int = of_inner_maximum(1, COUNT, "perturb, trades: gradients per perturbation eps")
    method: Literal["frank-wolfe", "projected"] = of_inner_maximum(
        "frank-wolfe",
        None,
        "perturb, trades: algorithm for several --steps; projected with perturb and --random-start is PGD "
        "training",
    )
    beta: float = of_objective(
        6.0, POSITIVE, "trades: weight of the divergence KL, above 0", needs={"objective": "trades"}
    )
    clean_weight: float = of_perturb(0.0, FRACTION, "perturb: C in C L(x) + (1 - C) L(x + eps), from 0 to 1")
    random_start: bool = of_perturb(
        False, None, "perturb: take the first gradient at a random point of the ball instead of x"
    )
    direction_dropout: Literal["none", "same", "independent"] = of_inner_maximum(
        "none",
        None,
        "perturb, trades: dropout and layer noise in the computation of eps: the same as in training, or "
        "drawn independently for each gradient",
        needs=INNER_MAXIMUM | {"dropout|layer_noise": ()},
    )
    direction_dtype: Literal["same", "bfloat16"] = of_perturb(
        "same", None, "perturb: dtype of the computation of eps; same as --dtype, or less precise"
    )
    penalty_by: Literal["gradient", "difference"] = of_objective(
        "gradient",
        None,
        "penalty: differentiate through the input gradient, or use a finite difference along eps",
        needs={"objective": "penalty"},
    )

    label_smoothing: float = of_objective(
        0.0, BELOW_ONE, "A, from 0 and below 1: targets are 1 - A at the label plus A / classes at each class"
    )

    @property
    def name(self) -> ObjectiveName:
        """The objective's name."""
        return self.objective

    @property
    def passes(self) -> int:
        """About how many forward passes a step costs per example; a gradient counts as three."""
        perturbed = 1 + self.steps + bool(self.clean_weight or self.objective == "trades")
        return 3 * {"plain": 1, "noise": 1, "penalty": 2}.get(self.objective, perturbed)


@dataclass(frozen=True)
class Optimiser:
    """Gradient descent with momentum: v <- momentum v - lr g, w <- w + v, at the step's `Rates`.

    With `ema` above 0 every step also updates an average a of all parameters, after the norm constraints:
    a <- a + mixing (w - a). Gradients are taken at w; tests use a.
    """

    weight_decay: float = of_optimiser(
        0.0, NOT_NEGATIVE, "C in the term C/2 |W|^2 of the weights; biases have none"
    )
    ema: float = of_optimiser(
        0.0,
        BELOW_ONE,
        "test and save the exponential moving average of the parameters, which keeps X of itself at each "
        "step, less at first; from 0 (no average) and below 1",
    )


@dataclass(frozen=True)
class Machine:
    """The device and how it computes. It changes a run only by rounding.

    Every field is an option of `lpfamily train` under the same name; `lpfamily train --help` describes them.
    """

    device: str = of_machine(
        "cpu", TEXT, "device that computes; torch: cpu, cuda, cuda:1; JAX: cpu, gpu (all GPUs), gpu:1"
    )
    tf32: bool = of_machine(
        False, None, "let a GPU round the factors of float32 products to 11 bits (TensorFloat-32)"
    )
    bf16: bool = of_machine(
        False,
        None,
        "torch: round the factors and results of float32 products to 8 bits (bfloat16) in training",
    )
    compile: bool = of_machine(
        False,
        None,
        "torch: compile the training step, in about 20 s; needs a C++ compiler, or Triton on a GPU",
    )

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class Rates:
    """The scheduled values of an epoch: arrays with one float64 per step.

    Attributes
    ----------
    lr, momentum
        The learning rate and the momentum of v <- momentum v - lr g.
    sigma
        The radius (`perturb`, `trades`), factor (`penalty`) or standard deviation (`noise`), in input units.
    mixing
        The weight of the new parameters in the moving average, if there is one: a <- a + mixing (w - a).
    """

    lr: Floats
    momentum: Floats
    sigma: Floats
    mixing: Floats | float = 1.0

    def table(self) -> Floats:
        """Return lr, momentum, sigma and mixing of each step, (steps, 4)."""
        return np.stack(np.broadcast_arrays(self.lr, self.momentum, self.sigma, self.mixing), axis=1)


@dataclass(frozen=True)
class Task:
    """Everything that a backend needs to make a trainer.

    Attributes
    ----------
    network, objective, optimiser
        The network, the function to minimise, and the rule of a step, as data.
    x
        The training inputs, (n, inputs), of `dtype`; images flattened, channels first.
    labels
        int64, (n,), in 0..classes - 1; for squared errors the targets, (n, outputs), of `dtype`.
    batch_size
        The number of examples in a minibatch.
    dtype
        The dtype of parameters and arithmetic.
    machine
        The device and how it computes.
    team
        The processes that train together: each has a trainer of the same task and its share of every batch.
    """

    network: Network
    objective: Objective
    x: Floats
    labels: Array
    batch_size: int
    dtype: Literal["float32", "float64"] = "float32"
    optimiser: Optimiser = Optimiser()
    machine: Machine = Machine()
    team: Team = ALONE

    @property
    def weight_decay(self) -> float:
        """C in the term C/2 |W|^2 of each weight matrix."""
        return self.optimiser.weight_decay

    @property
    def device(self) -> str:
        """The device, by the backend's name for it."""
        return self.machine.device

    @property
    def tf32(self) -> bool:
        """Whether a CUDA device may round the factors of float32 products to TensorFloat-32."""
        return self.machine.tf32

    @property
    def bf16(self) -> bool:
        """Whether training rounds the factors and results of float32 products to bfloat16."""
        return self.machine.bf16 and self.dtype == "float32"

    @property
    def compiled(self) -> bool:
        """Whether to compile the step, if the library can and `compile_problem` reports no problem."""
        return self.machine.compile
