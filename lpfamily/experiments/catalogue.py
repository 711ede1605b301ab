"""All chapters of a reproduction, in the order of the page, and their pieces by name."""

from lpfamily.experiments.errors import report as errors
from lpfamily.experiments.pictures import report as pictures
from lpfamily.experiments.robustness import report as robustness
from lpfamily.experiments.softmax import report as softmax
from lpfamily.experiments.theory import report as theory

CHAPTERS = (errors.CHAPTER, robustness.CHAPTER, pictures.CHAPTER, softmax.CHAPTER, theory.CHAPTER)
PIECES = {piece.name: piece for chapter in CHAPTERS for piece in chapter.pieces}

FINDINGS = (
    *("table1", "figure-robustness", "table4", "table8", "table-transfer", "figure-theory", "table3"),
    *("table2", "table4-dense", "table9", "table5", "table6"),
)
"""The pieces that have a finding, those that matter most first: a page begins with three of its own."""
