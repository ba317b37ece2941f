"""Frozen linear maps that keep no weight for the backward pass; in fp32 on the CPU by oneDNN's products."""

from typing import Any

from torch import Tensor, nn
from torch.autograd import Function
from transformers.pytorch_utils import Conv1D

from lingo_ds.models.ops import matmul


class FrozenMap:
    """A linear map, plain or quantised: x W^T + b, whose gradient goes to x alone."""

    def __init__(self, module: nn.Module):
        self._module: Any = module  # a linear map of torch, transformers or `quantized_linear`
        self._transposed = isinstance(module, Conv1D)

    def __call__(self, x: Tensor) -> Tensor:
        """(.., d_in) to (.., d_out)."""
        return _FrozenProduct.apply(x, self)

    def weight(self) -> Tensor:
        """(d_out, d_in); a sharded one must be whole now, and may have been freed since the forward."""
        weight: Tensor = self._module.weight.detach()
        return weight.t() if self._transposed else weight

    def bias(self) -> Tensor | None:
        """(d_out,) or None."""
        bias: Tensor | None = self._module.bias
        return bias


class _FrozenProduct(Function):
    """Keeps the map and not its weight: what ZeRO-3 gathers for the backward pass is read then."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, frozen: FrozenMap) -> Tensor:
        ctx.frozen = frozen
        return matmul.product(x, frozen.weight(), frozen.bias())

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return matmul.product(grad, ctx.frozen.weight().t()), None
