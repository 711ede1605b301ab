"""Attacks of other packages, and of lpfamily, in an Lp ball inside [0, 1], as functions of a torch model.

The packages come with `pip install --group benchmarks`, and with `pip install --no-deps torchattacks==3.5.1
adv-lib==0.2.8`; these attacks do not need the dependencies of the last two. Packages that are not installed
are left out.
"""

from __future__ import annotations

import importlib.util
import math
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lpfamily_torch import ascend

Attack = Callable[[nn.Module, Tensor, Tensor], Tensor]
"""attack(model, x, y) returns perturbed inputs, of which some may be misclassified."""

NAMES = {1: "L1", 2: "L2", math.inf: "Linf"}
MODULES = {"torchattacks": "torchattacks", "adv-lib": "adv_lib", "foolbox": "foolbox", "ART": "art"}


class Counted(nn.Module):
    """A model that counts in `gradients` the images whose gradient was computed."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.gradients = 0

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        logits: Tensor = self.model(x)
        if logits.requires_grad:
            logits.register_hook(self._count)
        return logits

    def _count(self, grad: Tensor) -> None:
        self.gradients += len(grad)


def is_installed(peer: str) -> bool:
    """Return whether a package is installed."""
    return importlib.util.find_spec(MODULES[peer]) is not None


def within(p: float, sigma: float, peers: list[str]) -> dict[str, Attack]:
    """Return attacks that look for an error in a ball, with the settings that their packages publish.

    Step sizes are scaled from the radius of the package to this one; numbers of steps of APGD are those of
    AutoAttack.
    """
    attacks: dict[str, Attack] = {}
    for peer in peers:
        attacks |= {f"{peer} {name}": attack for name, attack in _WITHIN[peer](p, sigma).items()}
    return attacks


def adaptive(p: float, sigma: float, steps: int) -> Attack:
    """Return `lpfamily_torch.ascend` of the log-odds."""
    how = {"p": p, "sigma": sigma, "steps": steps, "bounds": (0, 1), "direction": "log-odds"}
    return lambda model, x, y: x + ascend(model, cross_entropy, x, y, **how)


def pgd(p: float, sigma: float, steps: int = 10) -> Attack:
    """Return torchattacks' PGD at p = 2 or inf."""
    import torchattacks

    def attack(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        if p == 2:
            return torchattacks.PGDL2(model, sigma, sigma / 5, steps)(x, y)
        return torchattacks.PGD(model, sigma, sigma / 4, steps)(x, y)

    return attack


def _torchattacks(p: float, sigma: float) -> dict[str, Attack]:
    if p == 1:
        return {}
    import torchattacks

    def apgd(loss: str) -> Attack:
        return lambda model, x, y: torchattacks.APGD(model, NAMES[p], sigma, 100, loss=loss)(x, y)

    return {
        "PGD 10": pgd(p, sigma),
        "APGD-CE": apgd("ce"),
        "APGDT": lambda model, x, y: torchattacks.APGDT(model, NAMES[p], sigma, 100)(x, y),
        "FAB": lambda model, x, y: torchattacks.FAB(model, NAMES[p], sigma)(x, y),
    }


def _adv_lib(p: float, sigma: float) -> dict[str, Attack]:
    if p != 1:
        return {}
    with _without_torchvision():
        from adv_lib.attacks.auto_pgd import apgd

    def attack(**how: Any) -> Attack:
        return lambda model, x, y: apgd(model, x, y, sigma, 1, **how)

    long = {"n_iter": 100, "n_restarts": 10, "use_large_reps": True}
    return {"APGD-L1": attack(), "APGD-L1, 10 restarts": attack(loss_function="ce", **long)}


def _foolbox(p: float, sigma: float) -> dict[str, Attack]:
    import foolbox

    def attack(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        kind = getattr(foolbox.attacks, f"{NAMES[p]}PGD" if p < math.inf else "LinfPGD")
        return kind()(_for_foolbox(model), x, y, epsilons=sigma)[1]

    return {"PGD": attack}


def _art(p: float, sigma: float) -> dict[str, Attack]:
    from art.attacks.evasion import AutoProjectedGradientDescent
    from art.estimators.classification import PyTorchClassifier

    def attack(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        shape = tuple(x.shape[1:])
        classifier = PyTorchClassifier(
            model, nn.CrossEntropyLoss(), shape, 10, clip_values=(0, 1), device_type="cpu"
        )
        apgd = AutoProjectedGradientDescent(
            classifier, p, sigma, sigma / 3, loss_type="cross_entropy", batch_size=len(x), verbose=False
        )
        return torch.from_numpy(apgd.generate(x.numpy(), y.numpy()))

    return {"APGD": attack}


_WITHIN: dict[str, Callable[[float, float], dict[str, Attack]]] = {
    "torchattacks": _torchattacks,
    "adv-lib": _adv_lib,
    "foolbox": _foolbox,
    "ART": _art,
}


def smallest(p: float, steps: int, peers: list[str]) -> dict[str, Attack]:
    """Return attacks that look for the smallest perturbation, with this number of gradients."""
    attacks: dict[str, Attack] = {}
    if "foolbox" in peers:
        import foolbox

        kinds = {f"{NAMES[p]}FMN": f"{NAMES[p].replace('Linf', 'LInf')}FMNAttack"}
        if p == 2:
            kinds["DDN"] = "DDNAttack"
        for name, kind in kinds.items():
            attack = getattr(foolbox.attacks, kind)(steps=steps)
            attacks[f"foolbox {name}"] = lambda model, x, y, attack=attack: attack(
                _for_foolbox(model), x, y, epsilons=None
            )[0]
    if "adv-lib" in peers:
        with _without_torchvision():
            from adv_lib.attacks.fast_minimum_norm import fmn
        attacks["adv-lib FMN"] = lambda model, x, y: fmn(model, x, y, p, steps=steps)
    return attacks


def _for_foolbox(model: nn.Module) -> Any:
    import foolbox

    return foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")


class _Anything(types.ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self


@contextmanager
def _without_torchvision() -> Iterator[None]:
    """Let adv-lib import packages that only its other attacks need, even if they are not installed."""
    lacking = [name for name in ("torchvision", "visdom") if importlib.util.find_spec(name) is None]
    sys.modules |= {name: _Anything(name) for name in lacking}
    try:
        yield
    finally:
        for name in lacking:
            del sys.modules[name]
