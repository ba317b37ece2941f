"""Whether torch's flash attention for sequences of different length takes a tensor on this GPU."""

import inspect
import logging
from functools import cache

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

LARGEST_HEAD = 256
FIRST_CAPABILITY = (8, 0)
"""Compute capability of the first GPUs that the kernel is for: an A100's. A T4 has 7.5, a V100 7.0."""


def is_flash(query: Tensor) -> bool:
    """Whether flash attention computes the packs of `query` (.., head size); the log says so, once."""
    return query.is_cuda and _is_flash(query.dtype, query.shape[-1], query.device)


@cache
def _is_flash(dtype: torch.dtype, head_size: int, device: torch.device) -> bool:
    obstacle = _obstacle(dtype, head_size, torch.cuda.get_device_capability(device))
    if obstacle:
        logger.info("attention of packs: torch's own, group after group; flash attention %s", obstacle)
    else:
        logger.info("attention of packs: flash attention")
    return obstacle is None


def _obstacle(dtype: torch.dtype, head_size: int, capability: tuple[int, int]) -> str | None:
    """What the kernel needs and does not get, as the end of a sentence about it; None: nothing.

    The conditions are those of flash_api.cpp and sdp_utils.cpp in torch.
    """
    if dtype not in (torch.bfloat16, torch.float16):
        return "is for bf16 and fp16"
    if torch.version.hip is not None:
        return "is not used on ROCm"
    if not {"scale", "window_size"} <= varlen_options():
        return f"of torch {torch.__version__} takes no window"
    if capability < FIRST_CAPABILITY:
        return "needs compute capability {}.{}, and this GPU has {}.{}".format(*FIRST_CAPABILITY, *capability)
    if head_size % 8 or head_size > LARGEST_HEAD:
        return f"needs a head size that is a multiple of 8 and at most {LARGEST_HEAD}, not {head_size}"
    # Its backward pass wants more shared memory for these sizes than any but a data centre's GPUs have.
    if 192 < head_size <= 224 and ((8, 6) <= capability < (9, 0) or capability >= (12, 0)):
        return "has no backward pass for head size {} on compute capability {}.{}".format(
            head_size, *capability
        )
    return None


@cache
def varlen_options() -> frozenset[str]:
    """Parameters of torch's variable-length attention, which gained some from one version to the next."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return frozenset()
    return frozenset(inspect.signature(varlen_attn).parameters)
