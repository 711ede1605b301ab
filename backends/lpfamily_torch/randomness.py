"""The random states that a pass may draw from: those of torch, Python and NumPy, and the model's own."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import numpy as np
import torch

Generator = torch.Generator | random.Random | np.random.Generator | np.random.RandomState
RandomState = list[tuple[Callable[[Any], object], Any]]
"""Pairs of a function that sets a state, and the state."""


def random_state(device: torch.device, generators: Iterable[Generator]) -> RandomState:
    """Return the states that a pass on this device draws from."""
    states: RandomState = [
        (torch.set_rng_state, torch.get_rng_state()),
        (random.setstate, random.getstate()),
        (np.random.set_state, np.random.get_state(legacy=False)),  # noqa: NPY002 (as the model may)
    ]
    if device.type != "cpu":
        module = torch.get_device_module(device)
        states.append((lambda state: module.set_rng_state(state, device), module.get_rng_state(device)))
    for each in generators:
        if isinstance(each, random.Random):
            states.append((each.setstate, each.getstate()))
        elif isinstance(each, np.random.Generator):
            states.append((partial(setattr, each.bit_generator, "state"), each.bit_generator.state))
        else:
            states.append((each.set_state, each.get_state()))
    return states


def set_random_state(states: RandomState) -> None:
    """Let what follows draw from these states."""
    for restore, state in states:
        restore(state)


@contextmanager
def restoring_random_state(device: torch.device, generators: Iterable[Generator]) -> Iterator[None]:
    """Put the random states back at the end."""
    before = random_state(device, generators)
    try:
        yield
    finally:
        set_random_state(before)


def reseed(device: torch.device, generators: list[Generator]) -> None:
    """Draw seeds, so that what follows is independent of what follows without them."""
    first, second, *others = torch.randint(2**62, (2 + len(generators),)).tolist()
    torch.default_generator.manual_seed(first)
    random.seed(second)
    np.random.seed(second % 2**32)  # noqa: NPY002 (as the model may)
    if device.type != "cpu":
        module = torch.get_device_module(device)
        with getattr(module, "device", nullcontext)(device):  # some have one device alone
            module.manual_seed(first)
    for each, seed in zip(generators, others, strict=True):
        if isinstance(each, torch.Generator):
            each.manual_seed(seed)
        elif isinstance(each, np.random.Generator):
            each.bit_generator.state = type(each.bit_generator)(seed).state
        else:
            each.seed(seed % 2**32)
