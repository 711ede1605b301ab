"""A convolutional network in Flax, trained with a plain loss and with `lpfamily_jax.regularize`.

python examples/jax_flax_cnn.py [--epochs 40] [--sigma 0.5] [--p 2]
"""

import argparse
import functools
import itertools
from collections.abc import Callable, Iterator

import jax
import numpy as np
import optax
from flax import nnx
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from lpfamily import epsilon, error_log_odds
from lpfamily_jax import regularize

PIXELS = 0.0, 1.0


class CNN(nnx.Module):
    """Two convolutions with batch norms, a dropout and a linear layer, for images of 8 x 8 pixels."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.first, self.second = (nnx.Conv(n, m, (3, 3), rngs=rngs) for n, m in ((1, 16), (16, 32)))
        self.norms = nnx.List([nnx.BatchNorm(n, rngs=rngs) for n in (16, 32)])
        self.dropout = nnx.Dropout(0.3, rngs=rngs)
        self.last = nnx.Linear(128, 10, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Return the logits of images (n, 8, 8, 1)."""
        for layer, norm in zip((self.first, self.second), self.norms, strict=True):
            x = nnx.avg_pool(nnx.relu(norm(layer(x))), (2, 2), (2, 2))
        return self.last(self.dropout(x.reshape(len(x), -1)))


def loss(model: CNN, x: jax.Array, labels: jax.Array) -> jax.Array:
    """Return the cross-entropy of each example."""
    return optax.softmax_cross_entropy_with_integer_labels(model(x), labels)


def odds(model: CNN, x: jax.Array, labels: jax.Array) -> jax.Array:
    """Return the log-odds, whose gradient has the cross-entropy's direction and does not round to zero."""
    return error_log_odds(model(x), labels)


def train(loss: Callable[..., jax.Array], x: np.ndarray, labels: np.ndarray) -> Iterator[tuple[CNN, float]]:
    """Train a network without end; after each epoch yield it and its mean loss."""
    model, rng = CNN(nnx.Rngs(0)), np.random.default_rng(0)
    optimizer = nnx.Optimizer(model, optax.adam(3e-3), wrt=nnx.Param)

    @nnx.jit
    def step(model: CNN, optimizer: nnx.Optimizer, x: jax.Array, labels: jax.Array) -> jax.Array:
        value, slopes = nnx.value_and_grad(lambda model: loss(model, x, labels).mean())(model)
        optimizer.update(model, slopes)
        return value

    while True:
        batches = rng.permutation(len(x) // 50 * 50).reshape(-1, 50)
        yield model, float(np.mean([step(model, optimizer, x[batch], labels[batch]) for batch in batches]))


@functools.partial(nnx.jit, static_argnames=("p", "sigma"))
def errors(model: CNN, x: jax.Array, labels: jax.Array, p: float, sigma: float) -> tuple[jax.Array, ...]:
    """Return the error on x, and on x + eps, the steepest step in the Lp ball and the box of pixels."""
    model = nnx.view(model, deterministic=True, use_running_average=True)
    eps = epsilon(jax.grad(lambda x: odds(model, x, labels).sum())(x), p, sigma, x=x, bounds=PIXELS)
    return tuple((model(at).argmax(axis=1) != labels).mean() for at in (x, x + eps))


def main(arguments: list[str] | None = None) -> None:
    """Train both networks, and print their losses by epoch and their errors at the end."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--sigma", type=float, default=0.5, help="radius of the ball; pixels are in [0, 1]")
    parser.add_argument("--p", type=float, default=2.0, help="exponent of the ball, from 1 to inf")
    options = parser.parse_args(arguments)

    digits = load_digits()
    x, labels = (digits.images[..., None] / 16).astype(np.float32), digits.target
    x, test_x, labels, test_labels = train_test_split(x, labels, test_size=300, random_state=0)

    robust = regularize(loss, options.p, sigma=options.sigma, bounds=PIXELS, direction=odds)
    both = zip(train(loss, x, labels), train(robust, x, labels), strict=True)
    print("                    plain regularised")
    for epoch, networks in enumerate(itertools.islice(both, options.epochs), 1):
        print(f"loss of epoch {epoch:3}" + "".join(f"{value:10.3f}" for _, value in networks))
    by_network = [errors(model, test_x, test_labels, options.p, options.sigma) for model, _ in networks]
    for name, row in zip(("error", "error at x + eps"), zip(*by_network, strict=True), strict=True):
        print(f"{name:17}" + "".join(f"{error:10.1%}" for error in row))


if __name__ == "__main__":
    main()
