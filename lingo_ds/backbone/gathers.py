"""All-gathers on the CPU."""

import torch.distributed as dist
from torch import Tensor

from lingo_ds.heap import use_large_pages


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
