"""The same step by other packages, the peers: the code of each, given a gradient.

They come with `pip install --group benchmarks`. Each call ends when the perturbation is computed, before it
is added to the input and clipped. A peer has calls only for steps that it implements; packages that are not
installed are left out.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np

ART_FORMULA = "ART's formula"
TORCH_PEERS = ("foolbox", "cleverhans", "torchattacks' formula")

Calls = dict[str, Callable[[], object]]


def peers(grad: Any, p: float) -> Calls:
    """Return the calls of the peers that have a step of this p."""
    calls = _art(grad, p)
    if importlib.util.find_spec("torch"):
        import torch

        tensor = torch.from_numpy(grad)
        calls |= _foolbox(tensor, p) | _cleverhans(tensor, p) | _torchattacks(tensor, p)
    return calls


def _art(grad: Any, p: float) -> Calls:
    calls: Calls = {}
    if 1 < p < math.inf:
        calls[ART_FORMULA] = lambda: _art_formula(grad, p / (p - 1))
    if importlib.util.find_spec("art"):
        from art.attacks.evasion import FastGradientMethod

        class GivenGradient(FastGradientMethod):
            _estimator_requirements = ()

        attack = GivenGradient(SimpleNamespace(loss_gradient=lambda x, y: grad), norm=p)
        calls["ART"] = lambda: attack._compute_perturbation(grad, None, None)
    return calls


def _art_formula(grad: Any, q: float) -> Any:
    # art/attacks/evasion/fast_gradient.py, _apply_norm, without its checks of the arguments
    return (np.abs(grad) / np.linalg.norm(grad, ord=q, axis=1, keepdims=True)) ** (q - 1) * np.sign(grad)


def _foolbox(grad: Any, p: float) -> Calls:
    # its step for p = 1 is grad / ||grad||_1, which has the norm but is not the maximiser
    kinds = {1: "L1FastGradientAttack", 2: "L2FastGradientAttack", math.inf: "LinfFastGradientAttack"}
    if p not in kinds or not importlib.util.find_spec("foolbox"):
        return {}
    import eagerpy
    from foolbox import attacks

    attack = getattr(attacks, kinds[p])()
    tensor = eagerpy.astensor(grad)
    step = attack.get_optimizer(tensor, 1.0)
    return {"foolbox": lambda: step(attack.normalize(tensor, x=tensor, bounds=(0, 1))).raw}


def _cleverhans(grad: Any, p: float) -> Calls:
    if p not in (1, 2, math.inf) or not importlib.util.find_spec("cleverhans"):
        return {}
    from cleverhans.torch.utils import optimize_linear

    return {"cleverhans": lambda: optimize_linear(grad, 1.0, norm=p)}


def _torchattacks(grad: Any, p: float) -> Calls:
    # Its step cannot be called, as it is in the middle of an attack's `forward`, between the model and the
    # clipping; so its lines are copied here, from attacks/fgsm.py and attacks/pgdl2.py.
    name = "torchattacks' formula"
    if p == 2:
        return {name: lambda: 1.0 * (grad / (grad.norm(p=2, dim=1) + 1e-10).view(-1, 1))}
    if p == math.inf:
        return {name: lambda: 1.0 * grad.sign()}
    return {}
