"""All-gathers of weights: counted, on the CPU received in place, and of maps in 8 bits."""

from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from lingo_ds.distributed.traffic import counter
from lingo_ds.models.backbone import eight_bit
from lingo_ds.models.backbone.partitioned import PartitionedParameter
from lingo_ds.models.ops.host_memory import use_large_pages


class GatherState(StrEnum):
    """What the next pass has to gather.

    RECORDING: the order of the weights is not known yet. FILLING: weights that stay whole once they were
    gathered are not here. STEADY: everything else.
    """

    RECORDING = "recording"
    FILLING = "filling"
    STEADY = "steady"


def count_collectives(backend: Any) -> None:
    """Counts the collectives that DeepSpeed issues, at the one object which all of them pass.

    It replaces two functions of that object, DeepSpeed's communication backend, for the whole process.
    """
    if "all_gather_into_tensor" in vars(backend):
        return
    gather, broadcast = backend.all_gather_into_tensor, backend.broadcast

    def counted_gather(
        output_tensor: Tensor,
        input_tensor: Tensor,
        group: dist.ProcessGroup | None = None,
        async_op: bool = False,
    ) -> Any:
        kind = counter.add("all_gather", "weights", output_tensor.nbytes, group)
        # where several processes of a host are in the group, gloo's ring sends less between hosts
        directly = kind.hosts in (1, kind.group)
        if async_op and directly and output_tensor.device.type == "cpu":
            return GatheredInPlace(output_tensor, input_tensor, group)
        return gather(output_tensor, input_tensor, group=group, async_op=async_op)

    def counted_broadcast(
        tensor: Tensor, src: int, group: dist.ProcessGroup | None = None, async_op: bool = False
    ) -> Any:
        counter.add("broadcast", "order", tensor.nbytes, group)
        return broadcast(tensor, src, group=group, async_op=async_op)

    backend.all_gather_into_tensor, backend.broadcast = counted_gather, counted_broadcast


class GatheredInPlace:
    """A running all-gather on the CPU in which every process receives each part where it belongs.

    gloo's own receives into a second tensor as large as the whole, and copies.
    """

    def __init__(self, whole: Tensor, own: Tensor, group: dist.ProcessGroup | None):
        """Begins to fill `whole` (members * entries,) with each member's `own` (entries,)."""
        use_large_pages(whole)
        place, parts = dist.get_rank(group), whole.chunk(dist.get_world_size(group))
        others = [k for k in range(len(parts)) if k != place]
        self._under_way = [dist.irecv(parts[k], group=group, group_src=k) for k in others]
        self._under_way += [dist.isend(own, group=group, group_dst=k) for k in others]
        parts[place].copy_(own)

    def wait(self) -> None:
        """Returns once `whole` is whole, and `own` may be changed."""
        for transfer in self._under_way:
            if transfer is not None:
                transfer.wait()


class EightBitGather:
    """A running all-gather of maps in 8 bits."""

    def __init__(
        self,
        maps: Sequence[PartitionedParameter],
        group: dist.ProcessGroup | None,
        *,
        backend: Any,
        arrived: Callable[[PartitionedParameter], None],
    ):
        """Begins.

        Args:
            maps: maps with their own parts as `ds_tensor`, in the same order on all of `group`.
            group: processes that gather.
            backend: DeepSpeed's backend, which issues the all-gather, see `count_collectives`.
            arrived: called with each map that has its values.
        """
        self._arrived = arrived
        self._under_way: Any = None
        parts = [one.ds_tensor[None] for one in maps]
        if (members := dist.get_world_size(group)) > 1:
            own = torch.cat(parts, dim=1)[0] if len(parts) > 1 else maps[0].ds_tensor
            whole = own.new_empty(members * len(own))
            self._under_way = backend.all_gather_into_tensor(whole, own, group=group, async_op=True)
            parts = whole.view(members, -1).split([len(one.ds_tensor) for one in maps], dim=1)
        self._left = list(zip(maps, parts, strict=True))

    def wait(self, **_: Any) -> None:
        """Returns once every map has its values, in the compute dtype; called again it does nothing."""
        if self._under_way is not None:
            self._under_way.wait()
            self._under_way = None  # it refers to the gathered parts
        while self._left:
            param, parts = self._left.pop()
            whole = param.data.new_empty(len(parts) * param.ds_tensor.ds_numel)
            use_large_pages(whole)
            eight_bit.unpack(parts, whole)
            param.data = whole[: param.ds_numel].view(param.ds_shape)
            self._arrived(param)
