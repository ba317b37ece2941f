"""The importance of a weight to the loss: smoothed sensitivity times uncertainty.

AdaLoRA, arXiv 2303.10512, eq. 8-11.
"""

import torch
from torch import Tensor


def update_importance_(
    sensitivity: Tensor,
    uncertainty: Tensor,
    weight: Tensor,
    grad: Tensor,
    *,
    beta1: float,
    beta2: float,
    moving: Tensor,
    scratch: Tensor | None = None,
) -> None:
    """Updates the averages S and U by one step, in place.

        I = |w g|      S <- beta1 S + (1 - beta1) I      U <- beta2 U + (1 - beta2) |I - S|

    Args:
        sensitivity: S, any shape.
        uncertainty: U, same shape.
        weight: w, same shape.
        grad: gradient of the whole global batch before clipping, same shape.
        beta1: average of S.
        beta2: average of U.
        moving: 1 where the averages move, 0 where they are held; broadcastable to the shape.
        scratch: buffer for I, same shape; touching new memory would take longer than the arithmetic.
    """
    instant = torch.mul(weight, grad, out=scratch).abs_()
    sensitivity.lerp_(instant, moving * (1 - beta1))
    uncertainty.lerp_(instant.sub_(sensitivity).abs_(), moving * (1 - beta2))
