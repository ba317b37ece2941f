"""torch's fused RMS norm on the pretend card, in fp32 as the real one, rounded once.

It checks its arguments as torch's kernel does (aten/src/ATen/native/cuda/layer_norm_kernel.cu).
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def _require(x: Tensor, shape: Sequence[int], weight: Tensor) -> None:
    assert x.is_cuda and weight.is_cuda, "all must be on the device"
    assert x.dtype == weight.dtype, f"expected one dtype, but got {x.dtype} and {weight.dtype}"
    assert list(shape) == list(weight.shape) == list(x.shape[-1:]), "weight is not of the normalised shape"


def _forward(x: Tensor, shape: Sequence[int], weight: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    _require(x, shape, weight)
    own = x.cpu().float()
    scales = (own.square().mean(-1, keepdim=True) + epsilon).rsqrt()
    return (own * scales * weight.cpu().float()).to(x.device, x.dtype), scales.to(x.device)


def _backward(
    grad: Tensor, x: Tensor, shape: Sequence[int], scales: Tensor, weight: Tensor, mask: Sequence[bool]
) -> tuple[Tensor, None]:
    _require(x, shape, weight)
    assert grad.dtype == x.dtype and grad.shape == x.shape and list(mask) == [True, False]
    by_weight, normed = grad.cpu().float() * weight.cpu().float(), x.cpu().float() * scales.cpu()
    of_x = scales.cpu() * (by_weight - normed * (by_weight * normed).mean(-1, keepdim=True))
    return of_x.to(x.device, x.dtype), None


_library = torch.library.Library("aten", "IMPL")
_library.impl("_fused_rms_norm", _forward, "CUDA")
_library.impl("_fused_rms_norm_backward", _backward, "CUDA")
