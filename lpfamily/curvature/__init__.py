"""The loss to second order: Gauss-Newton (Appendix B), eq. 13-20 and Remark 2, and their accuracy.

Eq. 13 is L(x + eps) to second order in the steepest step eps. Eq. 14 replaces the Hessian by J H_L(y) J',
with y the probabilities; by Lemma B.1 that is grad grad', of rank one. It is neither the Hessian nor the
Gauss-Newton matrix of the logits, which is positive semidefinite of rank up to classes - 1. The three agree
on average over labels drawn from the model's probabilities y (Fisher's identity), not example by example.
For a confident right prediction grad grad' is nearly zero, and the Hessian is usually larger. `SecondOrder`
therefore has each term separately, and `measure` compares each with the loss itself.
"""

from lpfamily.curvature.derivatives import (
    gauss_newton,
    lemma_b1,
    logit_gradient,
    logit_hessian,
    probability_gradient,
    probability_hessian,
)
from lpfamily.curvature.expansion import (
    Loss,
    LossFunctions,
    Measurement,
    SecondOrder,
    hutchinson,
    loss_of,
    measure,
    rademacher,
    second_order,
)

__all__ = [
    "Loss",
    "LossFunctions",
    "Measurement",
    "SecondOrder",
    "gauss_newton",
    "hutchinson",
    "lemma_b1",
    "logit_gradient",
    "logit_hessian",
    "loss_of",
    "measure",
    "probability_gradient",
    "probability_hessian",
    "rademacher",
    "second_order",
]
