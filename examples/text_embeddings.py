"""A custom text classifier, trained on embeddings that are perturbed word by word.

From some words it predicts which of scikit-learn's data sets they describe. Each word has its own ball,
whose radius is a fraction of the median norm of the words; padding is not perturbed.

python examples/text_embeddings.py [--p 2] [--sigma 0.2] [--epochs 25] [--seeds 3]
"""

import argparse
import re
import statistics
from typing import Any

import torch
from sklearn import datasets
from torch import nn
from torch.nn.functional import cross_entropy

from lpfamily_torch import perturb, regularized_loss

NAMES = ("iris", "wine", "breast_cancer", "diabetes", "digits")
LENGTH = 16
PADDING = 0


class Classifier(nn.Module):
    """Filters over three words, with the largest output of each; `forward` takes embedded words."""

    def __init__(self, words: int, width: int = 32, filters: int = 64) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words, width, padding_idx=PADDING)
        self.filters = nn.Conv1d(width, filters, kernel_size=3, padding=1)
        self.head = nn.Linear(filters, len(NAMES))

    def forward(self, embedded: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
        features = torch.relu(self.filters(embedded.mT)).masked_fill(~known[:, None], 0)
        return self.head(features.amax(dim=2))


def texts(generator: torch.Generator) -> tuple[int, list[tuple[torch.Tensor, torch.Tensor]]]:
    """Return the number of words, and training and test examples: word numbers and labels.

    Every third passage is for testing.
    """
    words = [re.findall(r"[a-z]{2,}", getattr(datasets, f"load_{name}")().DESCR.lower()) for name in NAMES]
    vocabulary = {word: number for number, word in enumerate(sorted({w for text in words for w in text}), 1)}
    subsets: list[list[tuple[torch.Tensor, int]]] = [[], []]
    for label, text in enumerate(words):
        numbers = torch.tensor([vocabulary[word] for word in text])
        for place, passage in enumerate(numbers.split(LENGTH)):
            for begin in range(0, len(passage) - LENGTH // 2, 2):
                row = torch.full((LENGTH,), PADDING)
                length = int(torch.randint(LENGTH // 2, LENGTH + 1, (), generator=generator))
                row[: len(passage[begin : begin + length])] = passage[begin : begin + length]
                subsets[place % 3 == 2].append((row, label))
    return len(vocabulary) + 1, [
        (torch.stack([row for row, _ in subset]), torch.tensor([label for _, label in subset]))
        for subset in subsets
    ]


def losses_of(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return one loss per example."""
    return cross_entropy(logits, labels, reduction="none")


def errors(seed: int, p: float, sigma: float, trained_sigma: float, epochs: int) -> list[float]:
    """Train a classifier; return its errors on test passages, clean and perturbed."""
    generator = torch.Generator().manual_seed(seed)
    count, [training, testing] = texts(generator)
    torch.manual_seed(seed)
    model = Classifier(count)

    def prepared(words: torch.Tensor, sigma: float) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        known, embedded = words != PADDING, model.embedding(words)
        ball = {
            "p": p,
            "sigma": sigma * embedded.detach().norm(dim=2)[known].median(),
            "batch_ndim": 2,  # examples and words
            "mask": known[..., None],
        }
        return {"embedded": embedded, "known": known}, ball

    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(epochs):
        for rows in torch.randperm(len(training[0]), generator=generator).split(32):
            x, ball = prepared(training[0][rows], trained_sigma)
            loss = regularized_loss(model, losses_of, x, training[1][rows], **ball)
            optimizer.zero_grad()
            loss.backward()  # through x, to the embedding
            optimizer.step()

    x, ball = prepared(testing[0], sigma)
    eps = perturb(model.eval(), losses_of, x, testing[1], **ball)
    with torch.no_grad():
        logits = [model(x["embedded"] + shift, x["known"]) for shift in (0, eps)]
    return [(each.argmax(dim=1) != testing[1]).float().mean().item() for each in logits]


def main(arguments: list[str] | None = None) -> None:
    """Train on plain and on perturbed words, and print both errors."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--p", type=float, default=2.0)
    parser.add_argument("--sigma", type=float, default=0.2, help="in units of the words' median norm")
    parser.add_argument("--epochs", type=int, default=25)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args(arguments)
    for trained_sigma in 0.0, options.sigma:
        by_seed = [
            errors(seed, options.p, options.sigma, trained_sigma, options.epochs)
            for seed in range(options.seeds)
        ]
        clean, perturbed = map(statistics.mean, zip(*by_seed, strict=True))
        print(f"trained with sigma = {trained_sigma:g}: error {clean:.1%}, perturbed {perturbed:.1%}")


if __name__ == "__main__":
    main()
