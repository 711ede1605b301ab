"""The backends follow one trajectory, and `perturb`'s first pass is as cheap as it can be."""

import collections
import math

import numpy as np
import pytest

from helpers.backends_under_test import NAMES, NETWORK
from helpers.jaxprs import dot_generals
from helpers.trajectories import OF_CONVOLUTIONS, OF_MAXOUT, OF_RECTIFIERS, assert_same, trained
from lpfamily.training import backends
from lpfamily.training.backends import Objective, Rates, Task
from lpfamily.training.draws import Draws
from lpfamily.training.networks import initial_state
from lpfamily.training.testing import WITH_DROPOUT


def assert_one_trajectory(names, network, objective):
    assert_same(*(trained(name, network, objective) for name in names))


# each kind of objective once, and among them each p: what else there is, a step of it obeys the laws of
# `lpfamily.training.testing`
KINDS = [
    Objective("plain"),
    Objective("noise"),
    Objective("perturb", 1.0),
    Objective("perturb", 1.5, steps=3, random_start=True),
    Objective("perturb", math.inf, clean_weight=0.3),
    Objective("penalty", 2.0),
    Objective("penalty", 1.5, penalty_by="difference"),
]


@pytest.mark.parametrize("objective", KINDS, ids=str)
@pytest.mark.parametrize("name", [name for name in NAMES if name != "numpy"])
def test_backends_follow_numpys_trajectory(name, objective):
    assert_one_trajectory(["numpy", name], NETWORK, objective)


@pytest.mark.parametrize("objective", WITH_DROPOUT, ids=str)
@pytest.mark.parametrize("name", [name for name in NAMES if name != "numpy"])
@pytest.mark.parametrize("network", [OF_MAXOUT, OF_RECTIFIERS], ids=["maxout", "rectifiers"])
def test_backends_follow_numpys_trajectory_with_dropout(name, network, objective):
    assert_one_trajectory(["numpy", name], network, objective)


if {"torch", "jax"} <= set(NAMES):

    @pytest.mark.torch
    @pytest.mark.jax
    @pytest.mark.parametrize("objective", WITH_DROPOUT, ids=str)
    def test_torch_and_jax_follow_one_trajectory_with_convolutions(objective):
        assert_one_trajectory(["torch", "jax"], OF_CONVOLUTIONS, objective)


# What a step costs, in products of an activation or delta matrix with a weight matrix or each other:
# a forward pass takes one a layer, so does the way back to the input, and so do weight gradients.
LAYERS = len(NETWORK.layers)
COST = {"plain": 3 * LAYERS - 1, "perturb": 5 * LAYERS - 1}


@pytest.mark.parametrize(("objective", "products"), COST.items())
@pytest.mark.parametrize("name", NAMES)
def test_the_first_pass_computes_no_weight_gradient(name, objective, products):
    rng = np.random.default_rng(0)
    x, labels = rng.uniform(0, 1, (20, 64)).astype(np.float32), rng.integers(0, 10, 20)
    task = Task(NETWORK, Objective(objective), x, labels, batch_size=20)
    trainer = backends.find(name).trainer(task, initial_state(NETWORK, 0, "float32"))
    rates = Rates(np.array([0.1]), np.array([0.5]), np.array([0.3]))

    def step():
        trainer.epoch(np.arange(20), rates, Draws(0, 0))

    assert {"numpy": numpy_products, "torch": torch_products, "jax": jax_products}[name](
        trainer, step
    ) == products


def numpy_products(trainer, step):
    count = collections.Counter()

    class Counting(np.ndarray):
        def __array_ufunc__(self, ufunc, method, *inputs, **kwargs):
            count[ufunc.__name__] += 1
            plain = [i.view(np.ndarray) if isinstance(i, Counting) else i for i in inputs]
            if out := kwargs.get("out"):
                kwargs["out"] = tuple(o.view(np.ndarray) if isinstance(o, Counting) else o for o in out)
            result = getattr(ufunc, method)(*plain, **kwargs)
            return result.view(Counting) if isinstance(result, np.ndarray) else result

    trainer._state = {name: array.view(Counting) for name, array in trainer._state.items()}
    trainer.task.x.flags.writeable = False
    object.__setattr__(trainer.task, "x", trainer.task.x.view(Counting))
    step()
    return count["matmul"]


def torch_products(trainer, step):
    from torch.utils._python_dispatch import TorchDispatchMode

    count = collections.Counter()

    class Counting(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            count[func.overloadpacket.__name__] += 1
            return func(*args, **(kwargs or {}))

    with Counting():
        step()
    return count["mm"] + count["addmm"] + count["addmm_"]


def jax_products(trainer, step):
    from lpfamily_jax import trainer as module

    traced = []

    class Tracing:
        def __call__(self, *args):
            traced.append(original.trace(*args).jaxpr)
            return original(*args)

    original, module._epoch = module._epoch, Tracing()
    try:
        step()
    finally:
        module._epoch = original
    return sum(dot_generals(jaxpr.jaxpr) for jaxpr in traced)
