"""The loss of any JAX function at the steepest step of all its weights in one Lp ball."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp

from lpfamily import epsilon
from lpfamily._arrays import Numbers, check_p

Loss = Callable[..., Any]


def perturb_weights(
    loss: Loss,
    p: float = 2.0,
    *,
    sigma: Numbers = 0.05,
    scale: Literal["weights"] | None = None,
    has_aux: bool = False,
) -> Loss:
    """Return the loss at the steepest step of all weights: a function with the arguments of `loss`.

    The weights are the first argument of `loss`, a tree whose floating arrays together are one point w. The
    result is L(w + eps), where eps is eq. 3 at the gradient of L, held constant. At p = 2 its derivative is
    that of sharpness-aware minimisation (Foret et al., 2021), for any optimiser::

        sharp = perturb_weights(loss, p=2, sigma=0.05)
        grads = jax.grad(sharp)(params, x, labels)
        updates, state = optimizer.update(grads, state, params)
        params = optax.apply_updates(params, updates)

    For the mean of a loss that `regularize` returns, this is adversarial weight perturbation (Wu et al.,
    2020), of all layers together. p = inf moves all weights by sigma, p = 1 only the weight with the largest
    gradient.

    The result is pure where `loss` is. Both passes have the same arguments, keys of dropout included. Weights
    in other arguments, or whose gradient is stopped, do not move. For a Flax NNX module give the parameters
    alone, `graphdef, params, rest = nnx.split(model, nnx.Param, ...)`.

    Parameters
    ----------
    loss
        Returns a scalar, the mean over a batch; with `has_aux` a pair of it and anything.
    p
        A number in [1, inf], as in `lpfamily.epsilon`.
    sigma
        The radius, in units of the weights, a number or a traced scalar.
    scale
        "weights" measures eps relative to the weights: ||eps / w||_p is at most sigma. Sharpness then does
        not depend on how layers share their scale (adaptive sharpness-aware minimisation, Kwon et al.,
        2021). A weight of zero does not move.
    has_aux
        Whether `loss` returns (value, aux); then so does the result. The aux is that of L(w), as batch
        statistics belong to the weights that stay.

    Returns
    -------
    Callable
        A function of the loss's arguments that returns what `loss` returns.

    Raises
    ------
    TypeError, ValueError
        For an unknown or impossible choice. When called: for weights without a floating array, for a loss
        that is not a scalar, and as in `lpfamily.epsilon`.

    References
    ----------
    Lyu, Huang, Liang: A Unified Gradient Regularization Family for Adversarial Examples, 2015, eq. 3.
    """
    check_p(p)
    if scale not in (None, "weights"):
        raise ValueError(f"scale must be None or 'weights'; got {scale!r}")

    @functools.wraps(loss)
    def perturbed(params: Any, *args: Any, **kwargs: Any) -> Any:
        leaves, structure = jax.tree.flatten(params)
        positions = [position for position, leaf in enumerate(leaves) if _is_floating(leaf)]
        if not positions:
            raise TypeError(
                f"the first argument of the loss must hold floating arrays, its weights; got {params!r}"
            )

        def at(weights: list[jax.Array]) -> Any:
            replaced = dict(enumerate(leaves)) | dict(zip(positions, weights, strict=True))
            # new trees, so that modules in the arguments do not change in place
            arguments, keywords = jax.tree.map(lambda leaf: leaf, (args, kwargs))
            return loss(jax.tree.unflatten(structure, replaced.values()), *arguments, **keywords)

        weights = [leaves[position] for position in positions]
        constant = jax.lax.stop_gradient(weights)
        grads, *aux = _pair(jax.grad(at, has_aux=has_aux)(constant), has_aux)
        scales = list(map(jnp.abs, constant)) if scale else None
        steps = jax.lax.stop_gradient(epsilon(grads, p, sigma, batch_ndim=0, scale=scales))
        value, *_ = _pair(at([w + step for w, step in zip(weights, steps, strict=True)]), has_aux)
        return (value, *aux) if has_aux else value

    return perturbed


def _is_floating(leaf: Any) -> bool:
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.floating)


def _pair(result: Any, has_aux: bool) -> tuple[Any, ...]:
    return result if has_aux else (result,)
