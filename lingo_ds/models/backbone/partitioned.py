"""Weights that DeepSpeed has partitioned: the attributes that it adds to parameters and tensors, as types.

The types are for type checks alone: at run time these are plain parameters and tensors.
"""

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn


class PartTensor(Tensor):
    """A process's range of a partitioned weight.

    Attributes:
        ds_numel: entries of the range.
        ds_quant_scale: scales of a range in 8 bits, which other ranges lack.
        status: whether the range is in memory.
        final_location: where an offloaded range is kept; None: nowhere else.
    """

    ds_numel: int
    ds_quant_scale: Tensor
    status: Any
    final_location: str | None


class PartitionedParameter(nn.Parameter):
    """A partitioned weight.

    Attributes:
        ds_id: number of the weight, the same on all processes.
        ds_numel, ds_shape: entries and shape of the whole weight.
        ds_numel_aligned: entries of all ranges together.
        ds_tensor: this process's range.
        ds_secondary_tensor: its range of the second copy inside a host; None: there is none.
        ds_status: whether the weight is whole now, on its way, or not here.
        ds_persist: whether it stays whole once it was gathered.
        all_gather_coalesced: gathers several weights at the same time.
        partition: frees the whole weight, after its range was copied to where that is kept.
    """

    ds_id: int
    ds_numel: int
    ds_shape: torch.Size
    ds_numel_aligned: int
    ds_tensor: PartTensor
    ds_secondary_tensor: PartTensor | None
    ds_status: Any
    ds_persist: bool
    all_gather_coalesced: Callable[..., Any]
    partition: Callable[[], None]


def as_part(tensor: Tensor) -> PartTensor:
    """The tensor itself, as a range of a partitioned weight."""
    return cast(PartTensor, tensor)


def as_partitioned(param: nn.Parameter) -> PartitionedParameter:
    """The parameter itself, as a partitioned one."""
    return cast(PartitionedParameter, param)


def part_size(count: int, members: int) -> int:
    """Entries of each process's range of a weight of `count`; the last ranges may reach beyond its end."""
    return -(-count // members)
