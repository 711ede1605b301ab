"""Keras models, trained on x + eps and with the penalty, with Keras' backend for torch or for JAX.

KERAS_BACKEND=torch python examples/keras_digits.py [--p inf] [--sigma 0.1] [--epochs 20]
KERAS_BACKEND=jax python examples/keras_digits.py
"""

import argparse
import math
from typing import Any

import keras
from sklearn.datasets import load_digits

BALL: dict[str, Any] = {"p": math.inf, "sigma": 0.1, "bounds": (0, 1)}  # pixels lie in [0, 1]


def losses(logits: Any, y: Any) -> Any:
    """Return one loss per example."""
    return keras.ops.sparse_categorical_crossentropy(y, logits, from_logits=True)


if keras.backend.backend() == "torch":
    import torch

    from lpfamily_torch import perturb, regularized_loss, robustness

    class Perturbed(keras.Sequential):
        """Its step of training sees x + eps; all else is Keras'."""

        def train_step(self, data: Any) -> Any:
            x, y = data

            def model(x: Any) -> Any:
                return self(x, training=self.training)  # Keras reads the argument, perturb sets the attribute

            eps = perturb(model, losses, x, y, direction="log-odds", **BALL)
            return super().train_step((x + eps, y))

    class Penalised(keras.Sequential):
        """Its step of training is of the loss with the penalty."""

        def train_step(self, data: Any) -> Any:
            x, y = data

            def model(x: Any) -> Any:
                return self(x, training=True)

            self.zero_grad()
            loss = regularized_loss(model, losses, x, y, objective="penalty", **BALL)
            loss.backward()
            weights = self.trainable_weights
            with torch.no_grad():
                self.optimizer.apply([weight.value.grad for weight in weights], weights)
            return {"loss": loss.detach()}

elif keras.backend.backend() == "jax":
    import jax

    from lpfamily import epsilon, error_log_odds
    from lpfamily_jax import regularize, robustness

    class Perturbed(keras.Sequential):
        """Its step of training sees x + eps; all else is Keras'."""

        def train_step(self, state: Any, data: Any) -> Any:
            (x, y), (weights, others, *_) = data, state

            def odds(x: Any) -> Any:
                logits, _ = self.stateless_call(weights, others, x, training=False)
                return error_log_odds(logits, y).sum()

            eps = epsilon(jax.grad(odds)(x), x=x, **BALL)
            return super().train_step(state, (x + eps, y))

    class Penalised(keras.Sequential):
        """Its step of training is of the loss with the penalty."""

        def compute_loss_and_updates(
            self, weights: Any, others: Any, metrics: Any, x: Any, y: Any, *rest: Any, **options: Any
        ) -> Any:
            if not options.get("training"):
                return super().compute_loss_and_updates(weights, others, metrics, x, y, *rest, **options)

            def loss(x: Any) -> Any:
                logits, after = self.stateless_call(weights, others, x, training=True)
                return losses(logits, y), (logits, after)

            penalised = regularize(loss, argnum=0, objective="penalty", has_aux=True, **BALL)
            values, (logits, after) = penalised(x)
            return values.mean(), (values.mean(), logits, after, metrics)

else:
    raise SystemExit("KERAS_BACKEND must be torch or jax")


def main(arguments: list[str] | None = None) -> None:
    """Train a network in three ways, and print the errors of each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--p", type=float, default=math.inf)
    parser.add_argument("--sigma", type=float, default=0.1, help="the radius; pixels lie in [0, 1]")
    parser.add_argument("--epochs", type=int, default=20)
    options = parser.parse_args(arguments)
    BALL.update(p=options.p, sigma=options.sigma)

    x, y = load_digits(return_X_y=True)
    x = (x / 16).astype("float32")
    for kind in keras.Sequential, Perturbed, Penalised:
        keras.utils.set_random_seed(0)
        model = kind(
            [
                keras.Input((64,)),
                keras.layers.Dense(128),
                keras.layers.BatchNormalization(),
                keras.layers.ReLU(),
                keras.layers.Dropout(0.2),
                keras.layers.Dense(10),
            ]
        )
        model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        model.fit(x[:1297], y[:1297], batch_size=64, epochs=options.epochs, verbose=0)
        test = map(keras.ops.convert_to_tensor, (x[1297:], y[1297:]))
        result = robustness(model, *test, **BALL, effort="quick", progress=False)
        errors = result.error().value, result.error(options.p, options.sigma).value
        print(f"{kind.__name__:>10}: error {errors[0]:.1%}, in the ball {errors[1]:.1%}")


if __name__ == "__main__":
    main()
