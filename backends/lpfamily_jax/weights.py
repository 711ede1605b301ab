"""All weights as one point of one Lp ball: a loss becomes that at their steepest step."""

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
    """Return the loss to train with: a function like `loss`, at the steepest step of all its weights.

    The weights are the first argument of `loss`, a tree whose floating arrays are one point w of one ball.
    The result is L(w + eps), eps of eq. 3 at the gradient of L and held constant. At p = 2 its derivative is
    that of sharpness-aware minimisation (Foret et al., 2021), which any optimiser takes::

        sharp = perturb_weights(loss, p=2, sigma=0.05)
        grads = jax.grad(sharp)(params, x, labels)
        updates, state = optimizer.update(grads, state, params)
        params = optax.apply_updates(params, updates)

    Of a loss that `regularize` makes, with its mean, it is adversarial weight perturbation (Wu et al., 2020),
    of all layers together. p = inf moves all weights by sigma, p = 1 the one of the largest gradient.

    The result is pure where `loss` is, and both passes are of the same arguments, keys of dropout included.
    Weights that another argument holds, or whose gradient is stopped, do not move. Of a Flax NNX module give
    the parameters alone, `graphdef, params, rest = nnx.split(model, nnx.Param, ...)`.

    Parameters
    ----------
    loss
        Returns a scalar, the mean of a batch; with `has_aux` a pair of that and anything.
    p
        A number in [1, inf], as in `lpfamily.epsilon`.
    sigma
        The radius, in units of the weights, a number or a traced scalar.
    scale
        "weights" measures eps relative to the weights, so that ||eps / w||_p is at most sigma, and that
        sharpness does not depend on how layers share their scale (adaptive sharpness-aware minimisation, Kwon
        et al., 2021). A weight of zero does not move.
    has_aux
        Whether `loss` returns (value, aux); then so does the result. The aux is that of L(w): batch
        statistics belong to the weights that stay.

    Returns
    -------
    Callable
        A function of the loss's arguments, which returns what it does.

    Raises
    ------
    TypeError, ValueError
        For an unknown or impossible choice. When called: for weights without a floating array, a loss that is
        no scalar, and as in `lpfamily.epsilon`.

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
        places = [place for place, leaf in enumerate(leaves) if _is_floating(leaf)]
        if not places:
            raise TypeError(
                f"the first argument of the loss must hold floating arrays, its weights; got {params!r}"
            )

        def at(weights: list[jax.Array]) -> Any:
            moved = dict(enumerate(leaves)) | dict(zip(places, weights, strict=True))
            # the trees are new, so that modules in them may change in place
            given, named = jax.tree.map(lambda leaf: leaf, (args, kwargs))
            return loss(jax.tree.unflatten(structure, moved.values()), *given, **named)

        weights = [leaves[place] for place in places]
        fixed = jax.lax.stop_gradient(weights)
        grads, *aux = _pair(jax.grad(at, has_aux=has_aux)(fixed), has_aux)
        sizes = list(map(jnp.abs, fixed)) if scale else None
        steps = jax.lax.stop_gradient(epsilon(grads, p, sigma, batch_ndim=0, scale=sizes))
        value, *_ = _pair(at([w + step for w, step in zip(weights, steps, strict=True)]), has_aux)
        return (value, *aux) if has_aux else value

    return perturbed


def _is_floating(leaf: Any) -> bool:
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.floating)


def _pair(result: Any, has_aux: bool) -> tuple[Any, ...]:
    return result if has_aux else (result,)
