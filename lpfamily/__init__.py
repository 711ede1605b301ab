"""The Lp family of input perturbations (Lyu, Huang, Liang 2015), for any array library."""

__version__ = "0.2.0"

from lpfamily.ascent import ascend
from lpfamily.balls import project, sample
from lpfamily.certificate import certify
from lpfamily.classification import binary_error_log_odds, cross_entropy, error_log_odds
from lpfamily.ensemble import robustness
from lpfamily.norms import norm, penalty
from lpfamily.steepest import dual_exponent
from lpfamily.step import epsilon

__all__ = [
    "ascend",
    "binary_error_log_odds",
    "certify",
    "cross_entropy",
    "dual_exponent",
    "epsilon",
    "error_log_odds",
    "norm",
    "penalty",
    "project",
    "robustness",
    "sample",
]
