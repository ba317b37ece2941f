"""Frozen linear maps on the CPU through oneDNN."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from lingo_ds import onednn
from lingo_ds.backbone.spec import BackboneSpec


def use_onednn(spec: BackboneSpec, *, dtype: torch.dtype, device: torch.device) -> None:
    """Lets the linear maps inside the layers compute with oneDNN where torch does not: fp32 on an x86 CPU."""
    if not onednn.serves(dtype, device):
        return
    for name in spec.linear_maps:
        module = spec.skeleton.get_submodule(name)
        module.forward = FrozenForward(module)


class FrozenForward:
    """In place of a linear map's forward: x W^T + b, whose gradient goes to x alone."""

    def __init__(self, module: nn.Linear | Conv1D):
        self._module, self._transposed = module, isinstance(module, Conv1D)

    def __call__(self, x: Tensor) -> Tensor:
        """(.., d_in) to (.., d_out)."""
        if x.dtype != torch.float32:  # tests compute in float64, which oneDNN has not
            return type(self._module).forward(self._module, x)
        return _FrozenProduct.apply(x, self)

    def weight(self) -> Tensor:
        """(d_out, d_in); a sharded one must be whole now, and may have been given back since the forward."""
        weight = self._module.weight.detach()
        return weight.t() if self._transposed else weight

    def bias(self) -> Tensor | None:
        """(d_out,) or None."""
        return self._module.bias


class _FrozenProduct(torch.autograd.Function):
    """Keeps the map and not its weight: what ZeRO-3 gathers for the backward pass is read then."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, frozen: FrozenForward) -> Tensor:
        ctx.frozen = frozen
        return onednn.product(x, frozen.weight(), frozen.bias())

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return onednn.product(grad, ctx.frozen.weight().t()), None
