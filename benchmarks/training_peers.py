"""The same training by other code: a plain torch.nn model, one step of p = inf, SGD with momentum.

`eager loop` is the textbook loop, whose first backward pass computes the gradients of the weights, too. The
others are ART's loop, AdversarialTrainer with FastGradientMethod, and attacks of other packages in the eager
loop: torchattacks.FGSM, foolbox's LinfFastGradientAttack, cleverhans' fast_gradient_method. Attacks also clip
to [0, 1].
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from benchmarks.workers import Row
from lpfamily.training.networks import ConvMaxout, Dense, Layer, Maxout, Network, Rectifier, State
from lpfamily.training.tasks import Task

Attack = Callable[[Tensor, Tensor], Tensor]


def loops(
    names: list[str], task: Task, state: State, sigma: float, lr: float, momentum: float
) -> dict[Row, Callable[[], object]]:
    """Return, for each peer, a call that trains an epoch of `task`, from `state`."""
    calls: dict[Row, Callable[[], object]] = {}
    for name in ("eager loop", *names):
        for objective in ("plain", "perturb") if name == "eager loop" else ("perturb",):
            model = plain_model(task.network, state)
            optimizer = torch.optim.SGD(model.parameters(), lr, momentum)
            if name == "ART":
                fit = art_trainer(
                    model, optimizer, task.x.shape[1:], task.network.classes, task.batch_size, sigma
                )
                calls[name, objective] = functools.partial(fit, task.x, task.labels)
                continue
            attack = ATTACKS[name](model, sigma) if objective == "perturb" else None
            calls[name, objective] = _loop(model, optimizer, task, attack)
    return calls


class _Maxout(nn.Module):
    """The largest of each unit's linear pieces; max with its gradient takes less time than amax."""

    def __init__(self, pieces: int) -> None:
        super().__init__()
        self.pieces = pieces

    def forward(self, z: Tensor) -> Tensor:
        return z.unflatten(1, (-1, self.pieces)).max(dim=2).values


class _Bias(nn.Module):
    """A bias with one number per filter, or per filter and position."""

    def __init__(self, bias: Tensor) -> None:
        super().__init__()
        self.bias = nn.Parameter(bias)

    def forward(self, z: Tensor) -> Tensor:
        return z + self.bias


def plain_model(network: Network, state: State) -> nn.Sequential:
    """Return the network as a user writes it in torch.nn, for inputs (n, inputs)."""
    modules: list[nn.Module] = [nn.Unflatten(1, network.image)] if network.image else []
    for index, layer in enumerate(network.layers):
        weight, bias = (torch.tensor(state[f"layers.{index}.{name}"]) for name in ("weight", "bias"))
        modules += _MODULES[type(layer)](layer, weight, bias)
    return nn.Sequential(*modules)


def _dense(layer: Dense, weight: Tensor, bias: Tensor) -> list[nn.Module]:
    return [*_linear(weight, bias), *([nn.Sigmoid()] if layer.activation == "sigmoid" else [])]


def _maxout(layer: Maxout, weight: Tensor, bias: Tensor) -> list[nn.Module]:
    return [*_linear(weight, bias), _Maxout(layer.pieces)]


def _linear(weight: Tensor, bias: Tensor) -> list[nn.Module]:
    linear = nn.Linear(*weight.shape)
    linear.load_state_dict({"weight": weight.T, "bias": bias})
    return [nn.Flatten(), linear]


def _conv_maxout(layer: ConvMaxout, weight: Tensor, bias: Tensor) -> list[nn.Module]:
    product = nn.Conv2d(*weight.shape[1::-1], layer.kernel, padding=layer.padding, bias=False)
    product.weight = nn.Parameter(weight)
    pool = nn.MaxPool2d(layer.pool, layer.stride, ceil_mode=True)
    bias = bias.reshape(-1, 1, 1) if layer.tied_bias else bias
    return [product, _Bias(bias), _Maxout(layer.pieces), pool]


_MODULES: dict[type[Layer], Callable[[Any, Tensor, Tensor], list[nn.Module]]] = {
    Dense: _dense,
    Rectifier: lambda layer, weight, bias: [*_linear(weight, bias), nn.ReLU()],
    Maxout: _maxout,
    ConvMaxout: _conv_maxout,
}


def _loop(model: nn.Module, optimizer: Any, task: Task, attack: Attack | None) -> Callable[[], object]:
    inputs, classes = torch.from_numpy(task.x), torch.from_numpy(task.labels)

    def epoch() -> None:
        for batch in torch.randperm(len(inputs)).split(task.batch_size):
            x, labels = inputs[batch], classes[batch]
            if attack:
                x = attack(x, labels)
            optimizer.zero_grad()
            cross_entropy(model(x), labels).backward()
            optimizer.step()

    return epoch


def _by_hand(model: nn.Module, sigma: float) -> Attack:
    def attack(x: Tensor, labels: Tensor) -> Tensor:
        at = x.clone().requires_grad_()
        cross_entropy(model(at), labels).backward()
        return x + sigma * at.grad.sign()

    return attack


def _torchattacks(model: nn.Module, sigma: float) -> Attack:
    import torchattacks

    return torchattacks.FGSM(model, eps=sigma)


def _foolbox(model: nn.Module, sigma: float) -> Attack:
    import foolbox

    # `run`, because a call of the attack also evaluates the model on the result
    attack, bounded = foolbox.attacks.LinfFastGradientAttack(), foolbox.PyTorchModel(model.eval(), (0, 1))
    return lambda x, labels: attack.run(bounded, x, labels, epsilon=sigma)


def _cleverhans(model: nn.Module, sigma: float) -> Attack:
    from cleverhans.torch.attacks.fast_gradient_method import fast_gradient_method

    limits = {"clip_min": 0, "clip_max": 1}
    return lambda x, y: fast_gradient_method(model, x, sigma, math.inf, y=y, **limits).detach()


ATTACKS: dict[str, Callable[[nn.Module, float], Attack]] = {
    "eager loop": _by_hand,
    "torchattacks": _torchattacks,
    "foolbox": _foolbox,
    "cleverhans": _cleverhans,
}
"""The attack that perturbs a batch, by package."""


def art_trainer(
    model: nn.Module, optimizer: Any, shape: tuple[int, ...], classes: int, batch_size: int, sigma: float
) -> Callable[[Any, Any], object]:
    """Return ART's epoch over NumPy arrays of inputs, each of `shape`, and labels."""
    from art.attacks.evasion import FastGradientMethod
    from art.defences.trainer import AdversarialTrainer
    from art.estimators.classification import PyTorchClassifier

    kind = next(model.parameters()).device.type
    classifier = PyTorchClassifier(
        model,
        nn.CrossEntropyLoss(),
        shape,
        classes,
        optimizer,
        clip_values=(0, 1),
        device_type="gpu" if kind == "cuda" else kind,
    )
    attack = FastGradientMethod(classifier, norm=math.inf, eps=sigma, batch_size=batch_size)
    trainer = AdversarialTrainer(classifier, attack, ratio=1.0)
    return lambda x, labels: trainer.fit(x, labels, batch_size=batch_size, nb_epochs=1)
