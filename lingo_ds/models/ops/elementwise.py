"""RMS norm, gated activation and rotary positions on the CPU, by `kernels/elementwise.cpp`."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lingo_ds.models.ops.compiled import run


class RMSNorm(torch.autograd.Function):
    """x / sqrt(mean(x^2) + epsilon) * weight, over the last dimension.

    `weight` is a function that returns the (size,) weight: a sharded one is whole only while its layer runs,
    forward and backward, and is not kept in between.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Callable[[], Tensor], epsilon: float) -> Tensor:
        x = x.contiguous()
        out, rows = torch.empty_like(x), x.numel() // x.shape[-1]
        scales = torch.empty(rows)
        run("rms_norm", x, weight(), out, scales, rows, x.shape[-1], epsilon)
        ctx.save_for_backward(x, scales)
        ctx.weight = weight
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        x, scales = ctx.saved_tensors
        of_x = torch.empty_like(x)
        weight, grad = ctx.weight(), grad.contiguous()
        run("rms_norm_backward", x, weight, scales, grad, of_x, len(scales), x.shape[-1])
        return of_x, None, None


class SiLUGate(torch.autograd.Function):
    """silu(gate) * up, element by element."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        gate, up = gate.contiguous(), up.contiguous()
        out = torch.empty_like(gate)
        run("gated", gate, up, out, gate.numel())
        ctx.save_for_backward(gate, up)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        of_gate, of_up = torch.empty_like(gate), torch.empty_like(up)
        run("gated_backward", gate, up, grad.contiguous(), of_gate, of_up, gate.numel())
        return of_gate, of_up


class Rotary(torch.autograd.Function):
    """Rotary position embedding of x (1, heads, tokens, size) by cos and sin (1, tokens, size)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _rotated(x, cos, sin, gradient=False)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return _rotated(grad, *ctx.saved_tensors, gradient=True), None, None


def _rotated(x: Tensor, cos: Tensor, sin: Tensor, *, gradient: bool) -> Tensor:
    """(1, heads, tokens, size), one token after the other in memory."""
    x = x if x.stride(-1) == 1 else x.contiguous()
    _, heads, tokens, size = x.shape
    out = torch.empty(1, tokens, heads, size)
    run("rotary", x, x.stride(2), x.stride(1), cos, sin, out, tokens, heads, size, int(gradient))
    return out.transpose(1, 2)
