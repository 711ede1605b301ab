"""The random states that a pass may draw from: those of torch, Python, NumPy and the model's generators."""

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
        (np.random.set_state, np.random.get_state(legacy=False)),  # noqa: NPY002 (the model may use it)
    ]
    if device.type != "cpu":
        module = torch.get_device_module(device)
        states.append((lambda state: module.set_rng_state(state, device), module.get_rng_state(device)))
    for generator in generators:
        if isinstance(generator, random.Random):
            states.append((generator.setstate, generator.getstate()))
        elif isinstance(generator, np.random.Generator):
            bits = generator.bit_generator
            states.append((partial(setattr, bits, "state"), bits.state))
        else:
            states.append((generator.set_state, generator.get_state()))
    return states


def set_random_state(states: RandomState) -> None:
    """Set these states for later draws."""
    for restore, state in states:
        restore(state)


@contextmanager
def restoring_random_state(device: torch.device, generators: Iterable[Generator]) -> Iterator[None]:
    """Restore the random states at the end."""
    before = random_state(device, generators)
    try:
        yield
    finally:
        set_random_state(before)


def reseed(device: torch.device, generators: list[Generator]) -> None:
    """Seed all generators with new draws; later draws are then independent of those without this call."""
    first, second, *others = torch.randint(2**62, (2 + len(generators),)).tolist()
    torch.default_generator.manual_seed(first)
    random.seed(second)
    np.random.seed(second % 2**32)  # noqa: NPY002 (the model may use it)
    if device.type != "cpu":
        module = torch.get_device_module(device)
        with getattr(module, "device", nullcontext)(device):  # some backends have a single device
            module.manual_seed(first)
    for generator, seed in zip(generators, others, strict=True):
        if isinstance(generator, torch.Generator):
            generator.manual_seed(seed)
        elif isinstance(generator, np.random.Generator):
            generator.bit_generator.state = type(generator.bit_generator)(seed).state
        else:
            generator.seed(seed % 2**32)
