"""Frozen linear maps on the CPU through oneDNN: over twice as fast as torch's own fp32 on some processors.

torch's fp32 matrix product is MKL's, which does not use AVX-512 on every processor that has it; oneDNN's
does. Both are fp32 throughout and differ by rounding.
"""

import platform
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from lingo_ds.backbone.spec import BackboneSpec


def use_onednn(spec: BackboneSpec, *, dtype: torch.dtype, device: torch.device) -> None:
    """Lets the linear maps inside the layers compute with oneDNN where torch does not: fp32 on an x86 CPU."""
    has_it = torch.backends.mkldnn.is_available() and platform.machine() in ("x86_64", "AMD64")
    if device.type != "cpu" or dtype != torch.float32 or not has_it:
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
        return _product(x, frozen.weight(), frozen.bias())

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _product(grad, ctx.frozen.weight().t(), None), None


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The map of x, which is no view of anything: adapters write to it in place."""
    out = torch.ops.mkldnn._linear_pointwise(x.reshape(-1, x.shape[-1]), weight, bias, "none", [], "")
    return torch.ops.aten._unsafe_view(out, [*x.shape[:-1], len(weight)])
