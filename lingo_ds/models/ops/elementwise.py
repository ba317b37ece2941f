"""RMS norm and gated activation: on the CPU by `kernels/elementwise.cpp`, the norm on a GPU by torch."""

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


class TorchRMSNorm(torch.autograd.Function):
    """The same by torch's fused kernel on a GPU, in any dtype, computed in fp32."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Callable[[], Tensor], epsilon: float) -> Tensor:
        out, scales = torch.ops.aten._fused_rms_norm(x, x.shape[-1:], weight(), epsilon)
        ctx.save_for_backward(x, scales)
        ctx.weight = weight
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        x, scales = ctx.saved_tensors
        of_x, _ = torch.ops.aten._fused_rms_norm_backward(
            grad, x, x.shape[-1:], scales, ctx.weight(), [True, False]
        )
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
