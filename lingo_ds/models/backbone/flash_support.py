"""Whether torch's flash attention for sequences of different length takes a tensor on this GPU."""

import logging
from functools import cache

import torch

logger = logging.getLogger(__name__)

LARGEST_HEAD = 256
FIRST_CAPABILITY = (8, 0)
"""Compute capability of the first GPUs that the kernel is for: an A100's. A T4 has 7.5, a V100 7.0."""


@cache
def is_flash(dtype: torch.dtype, head_size: int, device: torch.device) -> bool:
    """Whether flash attention computes packs of queries of this kind; on a GPU the log says so, once."""
    if device.type != "cuda":
        return False
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
