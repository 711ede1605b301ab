"""All chapters of a reproduction, in the order of the page, and their experiments by name."""

from lpfamily.experiments.errors import report as errors
from lpfamily.experiments.exponents import report as exponents
from lpfamily.experiments.pictures import report as pictures
from lpfamily.experiments.robustness import report as robustness
from lpfamily.experiments.softmax import report as softmax
from lpfamily.experiments.theory import report as theory

CHAPTERS = tuple(each.CHAPTER for each in (errors, robustness, exponents, pictures, softmax, theory))
EXPERIMENTS = {experiment.name: experiment for chapter in CHAPTERS for experiment in chapter.experiments}

FINDINGS = (
    *("table1", "figure-robustness", "table-p", "table4", "table8", "table-transfer", "figure-theory"),
    *("table3", "table2", "table4-dense", "table9", "table5", "table6", "table-p-cifar10"),
)
"""The experiments that have a finding, the most important first; a page begins with three of them."""
