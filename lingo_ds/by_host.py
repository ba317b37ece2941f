"""A sum over all processes in three strides, so that less of it goes between hosts.

A ring over P processes, as gloo makes it, carries 2 (P - 1) / P of the tensor over every host's cable. Here
the processes of a host first sum among themselves, each its own part; then those of one part on all H hosts,
with 2 (H - 1) / H on the cable; then each host puts the parts together. nccl knows its hosts by itself.
"""

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Self

import torch
import torch.distributed as dist
import torch.nn.functional as F

from lingo_ds.counter import counter
from lingo_ds.errors import Mistake, UserError


def hosts_of(local_ranks: Sequence[int]) -> list[int]:
    """The number of the host that each global rank is on, from every process's local rank.

    Raises:
        UserError: where a host's processes are not neighbours, as shard groups need them.
    """
    if local_ranks[0] or any(rank not in (0, before + 1) for before, rank in pairwise(local_ranks)):
        rule = "the processes of a host are not neighbours"
        fix = "place them host by host (srun --distribution=block, mpirun --map-by slot)"
        raise UserError(Mistake("local ranks", " ".join(map(str, local_ranks)), rule, fix), on_all=True)
    return [number - 1 for number in accumulate(int(rank == 0) for rank in local_ranks)]


class ByHost:
    """The two groups this process is in: its host's, and that of its own place on every host."""

    def __init__(self, host_of: Sequence[int], rank: int):
        """Every process must call this at the same point; hosts have as many processes each."""
        hosts = host_of[-1] + 1
        local = len(host_of) // hosts
        inside = [dist.new_group(list(range(h * local, (h + 1) * local))) for h in range(hosts)]
        across = [dist.new_group(list(range(place, len(host_of), local))) for place in range(local)]
        self._inside, self._across, self._local = inside[rank // local], across[rank % local], local

    @classmethod
    def if_it_pays(cls, host_of: Sequence[int], rank: int, device: torch.device) -> Self | None:
        """For several hosts of as many processes each, and more than one, under gloo; else None."""
        counts = {list(host_of).count(host) for host in host_of}
        pays = device.type == "cpu" and host_of[-1] > 0 and len(counts) == 1 and counts != {1}
        return cls(host_of, rank) if pays else None

    def all_reduce_(self, tensor: torch.Tensor, *, what: str) -> None:
        """Sums a flat `tensor` over all processes, in place: the same bits on every one of them.

        Each entry is summed once per host, by one process, in order of the host's processes; over hosts and
        back into hosts it is copied.
        """
        whole = F.pad(tensor, (0, -len(tensor) % self._local))
        counter.add("all_to_all", what, whole.nbytes, self._inside)
        parts = torch.empty_like(whole)
        dist.all_to_all_single(parts, whole, group=self._inside)
        own = parts.view(self._local, -1).sum(0)
        counter.add("all_reduce", what, own.nbytes, self._across)
        dist.all_reduce(own, group=self._across)
        counter.add("all_gather", what, whole.nbytes, self._inside)
        dist.all_gather_into_tensor(whole, own, group=self._inside)
        tensor.copy_(whole[: len(tensor)])
