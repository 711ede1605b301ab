"""The loss to second order: Gauss-Newton (Appendix B), eq. 13-20 and Remark 2, and how far they hold.

Eq. 13 is L(x + eps) to second order in the steepest step eps. The step to eq. 14 puts J H_L(y) J' for
the Hessian, with y the probabilities; by Lemma B.1 that is grad grad', of rank one. It is not the
Hessian, and not the Gauss-Newton matrix of the logits, which is positive semidefinite of rank up to
classes - 1: the three agree on average over labels drawn from the model's own y (Fisher's identity),
not example by example. A confident right prediction has next to no grad grad', and usually more
Hessian. So `SecondOrder` keeps each term apart, and `measure` compares each with the loss itself.
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
