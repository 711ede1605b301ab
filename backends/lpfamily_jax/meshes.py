"""Loops and conditions inside `jax.shard_map`."""

from __future__ import annotations

import functools
import operator
from typing import Any

import jax
from jax import numpy as jnp


def alike(tree: Any) -> Any:
    """Return a tree whose arrays all vary over the axes of the mesh over which one of them does.

    The results of a loop or a condition in `jax.shard_map` must vary over the same axes as what it begins
    with, which may be a constant.
    """
    if not jax.sharding.get_abstract_mesh().manual_axes:
        return tree
    no = functools.reduce(
        operator.or_, (jnp.any(jnp.zeros_like(leaf, bool)) for leaf in jax.tree.leaves(tree))
    )
    return jax.tree.map(lambda leaf: jnp.where(no, leaf, leaf), tree)
