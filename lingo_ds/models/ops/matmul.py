"""Products in fp32 on the CPU through oneDNN, over twice as fast as torch's own on some processors.

They are here because torch's fp32 matrix product is MKL's, which does not use AVX-512 on every processor that
has it; oneDNN's does. Both are fp32 throughout and differ by rounding.
"""

import platform
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

LARGE_WEIGHT = 1 << 14
"""Entries of a weight from which oneDNN and an addition are faster than one call of MKL, which adds itself.

The number of rows has no part in the choice: a row's result is then the same bits whatever other rows are
there, so that a run's is the same whatever other runs share its passes.
"""


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


def add_product_(out: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """Out + X W^T in place, on any device.

    Args:
        out: (rows, d_out).
        x: (rows, d_in).
        weight: as for `product`.
    """
    if supports_matmul(x.dtype, x.device) and weight.numel() >= LARGE_WEIGHT:
        return out.add_(product(x, weight))
    return out.addmm_(x, weight.t())
