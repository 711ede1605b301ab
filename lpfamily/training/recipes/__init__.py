"""Recipes as data: the network, the data set, the objective and the schedules of a run."""

from lpfamily.training.recipes.layers import network_of, task_of
from lpfamily.training.recipes.published import PUBLISHED
from lpfamily.training.recipes.recipe import Recipe, default, matched_radius
from lpfamily.training.recipes.schedules import continued_rates, rates

__all__ = [
    "PUBLISHED",
    "Recipe",
    "continued_rates",
    "default",
    "matched_radius",
    "network_of",
    "rates",
    "task_of",
]
