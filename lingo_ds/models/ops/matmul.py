"""Products in fp32 on the CPU through oneDNN, over twice as fast as torch's own on some processors.

They are here because torch's fp32 matrix product is MKL's, which does not use AVX-512 on every processor that
has it; oneDNN's does. Both are fp32 throughout and differ by rounding.
"""

import platform
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def supports_matmul(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether oneDNN takes a product that torch gives to MKL: fp32 on an x86 CPU."""
    return dtype == torch.float32 and device.type == "cpu" and _on_x86()


@cache
def _on_x86() -> bool:
    return torch.backends.mkldnn.is_available() and platform.machine() in ("x86_64", "AMD64")


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """X W^T + b on any device, in a new tensor that may be written to.

    It has no gradient where oneDNN computes.

    Args:
        x: (.., d_in).
        weight: (d_out, d_in), contiguous or the transpose of a contiguous one; oneDNN takes a thousand times
            as long for others.
        bias: (d_out,).
    """
    rows = x.reshape(-1, x.shape[-1])
    if supports_matmul(x.dtype, x.device):
        out = torch.ops.mkldnn._linear_pointwise(rows, weight, bias, "none", [], "")
    else:
        out = F.linear(rows, weight, bias)
    return torch.ops.aten._unsafe_view(out, [*x.shape[:-1], len(weight)])


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """X W^T with gradients to both, on any device: (tokens, d_in), (d_out, d_in) to (tokens, d_out)."""
    served = supports_matmul(x.dtype, x.device) and weight.numel()
    return _Linear.apply(x, weight) if served else F.linear(x, weight)


def add_product_(output: Tensor, x: Tensor, weight: Tensor, *, scale: float) -> Tensor:
    """Output + scale x W in place, with gradients to all three, on any device.

    Args:
        output: (tokens, d_out) or (batch, tokens, d_out); nobody else may hold it.
        x: (all tokens, d_in).
        weight: (d_in, d_out).
        scale: of the product.
    """
    if supports_matmul(output.dtype, output.device) and weight.numel():
        return _AddProduct.apply(output, x, weight, scale)
    return _add_(output, x, weight, scale)


def _add_(output: Tensor, x: Tensor, weight: Tensor, scale: float) -> Tensor:
    if output.ndim == 2:
        return output.addmm_(x, weight, alpha=scale)
    # no view of the output: autograd would copy the gradient of a view that is written to
    x = x.view(*output.shape[:-1], -1)
    return output.baddbmm_(x, weight.expand(len(output), *weight.shape), alpha=scale)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return product(x, weight.contiguous())

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor]:
        x, weight = ctx.saved_tensors
        of_x = product(grad, weight.contiguous().t()) if ctx.needs_input_grad[0] else None
        return of_x, product(grad.t(), x.contiguous().t())


class _AddProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, output: Tensor, x: Tensor, weight: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.scale = scale
        ctx.mark_dirty(output)
        return _add_(output, x, weight, scale)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        x, weight = ctx.saved_tensors
        rows = grad.reshape(-1, grad.shape[-1]).contiguous()
        of_x = product(rows, weight.contiguous()).mul_(ctx.scale)
        return grad, of_x, product(x.t(), rows.t()).mul_(ctx.scale), None
