"""The schedules of a recipe: learning rate, momentum, sigma and averaging of each step."""

from __future__ import annotations

import math

import numpy as np

from lpfamily.training.networks import Floats, Ints
from lpfamily.training.recipes.recipe import Recipe
from lpfamily.training.tasks import Rates


def rates(recipe: Recipe, epoch: int, steps: int) -> Rates:
    """Return the rates of each of the `steps` steps of `epoch`, which is counted from 0.

    Let t be the number of earlier steps, over all epochs. Exponential decay goes step by step,
    lr_t = max(lr / factor^t, floor); linear decay, momentum and the ramp of sigma go epoch by epoch. At step
    t the moving average keeps min(ema, (1 + t) / (10 + t)) of itself, so that it forgets the initial weights.
    """
    count = epoch * steps + np.arange(steps)
    momentum, sigma = np.full(steps, _momentum(recipe, epoch)), _sigma(recipe, epoch, steps)
    return Rates(_lr(recipe, epoch, count), momentum, sigma, _mixing(recipe, count))


def continued_rates(recipe: Recipe, best: int, steps_before: int, epoch: int, steps: int) -> Rates:
    """Return the rates of `epoch`, counted from 0, in a second stage that continues the first.

    The first stage had `steps_before` steps per epoch, and its best epoch was number `best`, counted from 1.
    Momentum keeps its value in that epoch. The learning rate keeps its value at the end of that epoch, or
    decays on. The average begins anew.
    """
    is_constant, here = recipe.second_lr == "constant", epoch * steps + np.arange(steps)
    count = best * steps_before + (np.zeros(steps) if is_constant else here)
    lr = _lr(recipe, best - 1 if is_constant else best + epoch, count)
    momentum, sigma = np.full(steps, _momentum(recipe, best - 1)), _sigma(recipe, best + epoch, steps)
    return Rates(lr, momentum, sigma, _mixing(recipe, here))


def _lr(recipe: Recipe, epoch: int, count: Floats | Ints) -> Floats:
    if recipe.lr_decay == "exponential":
        decay = np.exp(-count * math.log(recipe.lr_factor))
        return np.asarray(np.maximum(recipe.lr * decay, recipe.lr_floor))
    done = min((epoch + 1) / recipe.lr_epochs, 1) if recipe.lr_decay == "linear" else 0
    return np.full(len(count), recipe.lr * (1 - (1 - recipe.lr_final) * done))


def _momentum(recipe: Recipe, epoch: int) -> float:
    ramp = min(epoch / max(recipe.momentum_epochs - 1, 1), 1)
    return recipe.momentum + (recipe.momentum_final - recipe.momentum) * ramp


def _mixing(recipe: Recipe, count: Ints) -> Floats:
    return np.maximum(1 - recipe.ema, 9 / (10 + count))


def _sigma(recipe: Recipe, epoch: int, steps: int) -> Floats:
    done = min((epoch + 1) / recipe.sigma_ramp, 1) if recipe.sigma_ramp else 1
    return np.full(steps, recipe.sigma * done)
