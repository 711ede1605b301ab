"""All pieces of a reproduction, by the section of the page that they are in."""

from __future__ import annotations

from dataclasses import dataclass

from lpfamily.experiments import errors, pictures_pieces, robust, softmax_pieces, theory_pieces
from lpfamily.experiments.pieces import Piece


@dataclass(frozen=True)
class Chapter:
    """A section of the page."""

    title: str
    text: tuple[str, ...]
    pieces: tuple[Piece, ...]


CHAPTERS = (
    Chapter(
        "Test errors (section IV)",
        (
            "Networks trained on x + eps, where eps is the steepest step of the loss in an Lp ball, beside "
            "the same networks trained without. Each row is runs of lpfamily.train, one a seed.",
        ),
        errors.PIECES,
    ),
    Chapter(
        "Robustness, as it is measured today",
        (
            "One step measures the step that a network was trained with. Many steps find what one has "
            "missed: where the two differ much, robustness to one step means nothing.",
        ),
        robust.PIECES,
    ),
    Chapter(
        "What a perturbation looks like (section III)",
        (
            "The paper shows digits and their perturbations by a sigmoid network, and explains with them "
            "why perturbations carry over from one network to another.",
        ),
        pictures_pieces.PIECES,
    ),
    Chapter(
        "Minimum perturbations and Gaussian noise (section V)",
        (
            "Softmax regression at three strengths of weight decay: how far the decision boundary is along "
            "the gradient, and what that says of the errors under Gaussian noise.",
        ),
        softmax_pieces.PIECES,
    ),
    Chapter(
        "How far the first-order theory holds (section II)",
        (
            "The family maximises the linearised loss. Here is how much the loss of trained networks does "
            "rise, beside what the terms of eq. 4 and eq. 13 to 20 predict.",
        ),
        theory_pieces.PIECES,
    ),
)

PIECES = {piece.name: piece for chapter in CHAPTERS for piece in chapter.pieces}
