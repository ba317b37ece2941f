"""All-gathers of weights: counted, on the CPU received in place, and of maps in 8 bits."""

from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lingo_ds.distributed.traffic import counter
from lingo_ds.models.backbone import eight_bit
from lingo_ds.models.ops.host_memory import use_large_pages


class GatherState(StrEnum):
    """What the next pass finds: nothing known of the model's order, no small weights, or all as usual."""

    RECORDING = "recording"
    FILLING = "filling"
    STEADY = "steady"


def count_collectives(backend: Any) -> None:
    """Lets the counter of traffic see what DeepSpeed issues, at the one object all of it passes."""
    if "all_gather_into_tensor" in vars(backend):
        return
    gather, broadcast = backend.all_gather_into_tensor, backend.broadcast

    def counted_gather(output_tensor, input_tensor, group=None, async_op=False):
        kind = counter.add("all_gather", "weights", output_tensor.nbytes, group)
        # where several of a host's processes are in it, gloo's ring crosses the cable less often
        directly = kind.hosts in (1, kind.group)
        if async_op and directly and output_tensor.device.type == "cpu":
            return GatheredInPlace(output_tensor, input_tensor, group)
        return gather(output_tensor, input_tensor, group=group, async_op=async_op)

    def counted_broadcast(tensor, src, group=None, async_op=False):
        counter.add("broadcast", "order", tensor.nbytes, group)
        return broadcast(tensor, src, group=group, async_op=async_op)

    backend.all_gather_into_tensor, backend.broadcast = counted_gather, counted_broadcast


class GatheredInPlace:
    """An all-gather on the CPU under way: every part goes to each, and is received where it belongs.

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
            transfer.wait()


class EightBitGather:
    """Maps on their way in 8 bits, in one all-gather."""

    def __init__(
        self,
        maps: Sequence[nn.Parameter],
        group: dist.ProcessGroup | None,
        *,
        backend: Any,
        arrived: Callable[[nn.Parameter], None],
    ):
        """Begins.

        Args:
            maps: each with its own part as `ds_tensor`; the same in the same order on all of `group`.
            group: processes that gather.
            backend: what issues the all-gather, see `count_collectives`.
            arrived: called with each map that has its values.
        """
        self._arrived, self._under_way = arrived, None
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
            self._under_way = None  # it holds on to what was gathered
        while self._left:
            param, parts = self._left.pop()
            whole = param.data.new_empty(len(parts) * param.ds_tensor.ds_numel)
            use_large_pages(whole)
            eight_bit.unpack(parts, whole)
            param.data = whole[: param.ds_numel].view(param.ds_shape)
            self._arrived(param)
