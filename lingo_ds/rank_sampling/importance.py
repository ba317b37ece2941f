"""The importance of a weight to the loss: smoothed sensitivity times uncertainty.

AdaLoRA, arXiv 2303.10512, eq. 8-11.
"""

from collections.abc import Callable, Sequence

from torch import Tensor

Parts = Callable[[Tensor], Sequence[Tensor]]
"""A function from a tensor to views that cover it."""


def update_importance_(
    sensitivity: Tensor,
    uncertainty: Tensor,
    product: Tensor,
    *,
    beta1: float,
    beta2: float,
    moving: Sequence[Tensor],
    parts: Parts,
) -> None:
    """Updates the averages S and U by one step, in place.

        I = |w g|      S <- beta1 S + (1 - beta1) I      U <- beta2 U + (1 - beta2) |I - S|

    Args:
        sensitivity: S, any shape.
        uncertainty: U, same shape.
        product: w g, the weight times its gradient of the whole global batch before clipping, same shape; it
            is overwritten, since touching new memory would take longer than the arithmetic.
        beta1: average of S.
        beta2: average of U.
        moving: for each part, 1 where the averages move, 0 where they are held; broadcastable to its shape.
        parts: the parts of any of the three tensors.
    """
    instant = product.abs_()
    _average_(parts(sensitivity), parts(instant), beta1, moving)
    _average_(parts(uncertainty), parts(instant.sub_(sensitivity).abs_()), beta2, moving)


def _average_(
    averages: Sequence[Tensor], values: Sequence[Tensor], beta: float, moving: Sequence[Tensor]
) -> None:
    for average, value, moves in zip(averages, values, moving, strict=True):
        average.lerp_(value, moves * (1 - beta))
