"""Training on perturbed inputs in Lightning, without changes to the module."""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from typing import Any

from lpfamily._packages import needs
from lpfamily_torch.evaluator import Loss
from lpfamily_torch.regularized import perturb

with needs("pip install lightning", "lightning"):
    from lightning.pytorch import Callback, LightningModule, Trainer


class PerturbInputs(Callback):
    """Adds the steepest perturbation in an Lp ball (eq. 3) to the inputs of every training batch.

    `training_step` then sees x + eps, as in the objective "perturb" of `lpfamily_torch.regularized_loss`. For
    the penalty, or a mix with the clean loss, call that function in `training_step`. The pass that computes
    eps calls `forward` of the module, under the trainer's precision. It has no side effects on the module,
    and on several devices it exchanges nothing.

    Parameters
    ----------
    loss
        `loss(outputs, labels)` returns one value per example; outputs are what `forward` returns.
    sigma
        The radius, in units of the input: a number, or for a schedule a function of the trainer.
    p
        A number in [1, inf].
    inputs, labels
        Where these are in a batch: indices of a list, into which Lightning turns pairs, or keys of a dict.
    options
        Further options of `lpfamily_torch.perturb`, such as `bounds` or `direction`; not `leaf`, as the
        callback perturbs one tensor of the batch.

    Raises
    ------
    TypeError
        For a `leaf`; in training, for a batch that is neither a list nor a dict.

    References
    ----------
    Lyu, Huang, Liang: A Unified Gradient Regularization Family for Adversarial Examples, 2015, eq. 3.
    """

    def __init__(
        self,
        loss: Loss,
        *,
        sigma: float | Callable[[Trainer], float],
        p: float = 2.0,
        inputs: Any = 0,
        labels: Any = 1,
        **options: Any,
    ) -> None:
        if "leaf" in options:
            raise TypeError(
                "leaf is for models with several inputs: call lpfamily_torch.perturb in training_step"
            )
        self.loss, self.sigma, self.p, self.options = loss, sigma, p, options
        self.inputs, self.labels = inputs, labels

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Replace x by x + eps."""
        if not isinstance(batch, list | MutableMapping):
            raise TypeError(
                f"a batch must be a list or a dict, whose entries can be replaced; got "
                f"{type(batch).__name__}: return one from the DataLoader's collate_fn"
            )
        sigma = self.sigma(trainer) if callable(self.sigma) else self.sigma
        x, plugin = batch[self.inputs], trainer.precision_plugin
        scaler = getattr(plugin, "scaler", None)
        with plugin.train_step_context():
            eps = perturb(
                pl_module,
                self.loss,
                x,
                batch[self.labels],
                p=self.p,
                sigma=sigma,
                scaler=scaler,
                **self.options,
            )
        batch[self.inputs] = x + eps
