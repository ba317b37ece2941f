"""Frozen linear maps whose backward pass keeps no weight; in fp32 on the CPU they are oneDNN's products."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from lingo_ds.models.backbone.spec import BackboneSpec
from lingo_ds.models.ops import matmul


def freeze_maps(spec: BackboneSpec, *, dtype: torch.dtype, device: torch.device, sharded: bool) -> None:
    """Replaces the forward of the linear maps inside the layers, where that saves time or memory.

    Time where oneDNN is faster. Memory where weights are sharded: torch's own map keeps a view of each weight
    for the backward pass, and with it all of the model that was gathered in the forward pass.
    """
    if not sharded and not matmul.supports_matmul(dtype, device):
        return
    for name in spec.linear_maps:
        module = spec.skeleton.get_submodule(name)
        module.forward = FrozenForward(module)


class FrozenForward:
    """Forward of a linear map, plain or quantised: x W^T + b, whose gradient goes to x alone."""

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


class _FrozenProduct(torch.autograd.Function):
    """Keeps the map and not its weight: what ZeRO-3 gathers for the backward pass is read then."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, frozen: FrozenForward) -> Tensor:
        ctx.frozen = frozen
        return matmul.product(x, frozen.weight(), frozen.bias())

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return matmul.product(grad, ctx.frozen.weight().t()), None
