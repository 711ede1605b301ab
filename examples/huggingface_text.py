"""A Hugging Face text model, trained by its `Trainer` on embeddings that are perturbed token by token.

The sentences are random, and each has some words of its topic. Every token has its own ball, whose radius is
a fraction of the median norm of the embeddings; padding is not perturbed. The model begins with random
weights.

python examples/huggingface_text.py [--p 2] [--sigma 0.2] [--epochs 8]
"""

import argparse
import tempfile
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    PrinterCallback,
    Trainer,
    TrainingArguments,
    set_seed,
)

from lpfamily_torch import perturb, regularized_loss

WORDS, TOPICS, LENGTH, PADDING = 200, 5, 24, 0


def losses(outputs: Any, labels: torch.Tensor) -> torch.Tensor:
    """Return one loss per example."""
    return cross_entropy(outputs.logits, labels, reduction="none")


def embedded(model: Any, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the arguments of the model with embeddings instead of word numbers."""
    embedding = model.get_input_embeddings()(inputs["input_ids"])
    return {"inputs_embeds": embedding, "attention_mask": inputs["attention_mask"]}


def ball(x: dict[str, torch.Tensor], p: float, sigma: float) -> dict[str, Any]:
    """Return the options that give every token a ball and do not move padding."""
    known = x["attention_mask"].bool()
    radius = sigma * x["inputs_embeds"].detach().norm(dim=2)[known].median()
    return {
        "p": p, "sigma": radius, "leaf": "inputs_embeds", "batch_ndim": 2, "mask": known[..., None],
        "direction": "log-odds",
    }  # fmt: skip


class RobustTrainer(Trainer):
    """Trains on embeddings in which every token is perturbed; evaluates as the plain `Trainer` does."""

    loss_is_scaled_for_ga = False  # the loss is the mean of a batch, also if gradients are accumulated

    def __init__(self, *arguments: Any, p: float, sigma: float, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.p, self.sigma = p, sigma

    def compute_loss(
        self, model: nn.Module, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        if not model.training:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        x = embedded(self.accelerator.unwrap_model(model), inputs)
        options = ball(x, self.p, self.sigma)
        return regularized_loss(model, losses, x, inputs["labels"], clean_weight=0.5, **options)


def sentences(n: int) -> dict[str, torch.Tensor]:
    """Return sentences of different lengths; half of their words are among the 20 words of their topic."""
    labels = torch.randint(TOPICS, (n,))
    of_topic = 1 + 20 * labels[:, None] + torch.randint(20, (n, LENGTH))
    words = torch.where(torch.rand(n, LENGTH) < 0.5, of_topic, torch.randint(1, WORDS, (n, LENGTH)))
    known = torch.arange(LENGTH) < torch.randint(LENGTH // 2, LENGTH + 1, (n, 1))
    return {
        "input_ids": torch.where(known, words, PADDING),
        "attention_mask": known.long(),
        "labels": labels,
    }


def main(arguments: list[str] | None = None) -> None:
    """Train on plain and on perturbed tokens, and print both errors."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--p", type=float, default=2.0)
    parser.add_argument("--sigma", type=float, default=0.2, help="in units of the tokens' median norm")
    parser.add_argument("--epochs", type=int, default=8)
    options = parser.parse_args(arguments)

    config = BertConfig(
        vocab_size=WORDS, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=LENGTH, num_labels=TOPICS, pad_token_id=PADDING, initializer_range=0.05,
    )  # fmt: skip
    radius = {"p": options.p, "sigma": options.sigma}
    for name, kind, given in ("plain", Trainer, {}), ("perturbed", RobustTrainer, radius):
        set_seed(0)
        training, testing = sentences(1000), sentences(500)
        rows = [dict(zip(training, row, strict=True)) for row in zip(*training.values(), strict=True)]
        model = BertForSequenceClassification(config)
        settings = TrainingArguments(
            tempfile.mkdtemp(), num_train_epochs=options.epochs, per_device_train_batch_size=50,
            learning_rate=3e-3, use_cpu=True, dataloader_pin_memory=False, save_strategy="no",
            logging_strategy="no", report_to="none", disable_tqdm=True,
        )  # fmt: skip
        trainer = kind(model, settings, train_dataset=rows, **given)
        trainer.remove_callback(PrinterCallback)
        trainer.train()

        x, y = embedded(model.eval(), testing), testing["labels"]
        eps = perturb(model, losses, x, y, steps=5, **ball(x, options.p, options.sigma))
        moved = x | {"inputs_embeds": x["inputs_embeds"] + eps}
        with torch.no_grad():
            wrong = [(model(**at).logits.argmax(dim=1) != y).float().mean().item() for at in (x, moved)]
        if trainer.is_world_process_zero():
            print(f"{name:>9}: error {wrong[0]:.1%}, with every token perturbed {wrong[1]:.1%}")


if __name__ == "__main__":
    main()
