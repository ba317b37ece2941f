"""Counts the bytes of this process's collectives where they are issued."""

import math
from collections.abc import Sequence
from enum import StrEnum
from itertools import accumulate, pairwise
from typing import NamedTuple

import torch.distributed as dist

from lingo_ds.utils.errors import Mistake, UserError


class Link(StrEnum):
    """The link that a collective's bytes take: between processes of one host, or between hosts."""

    INSIDE = "inside"
    BETWEEN = "between"


def link_of(hosts: int) -> Link:
    """The link of a group that reaches over so many hosts."""
    return Link.BETWEEN if hosts > 1 else Link.INSIDE


def sent_bytes(name: str, payload: int, group: int) -> int:
    """Bytes that one process of a group sends: in a ring, or for a broadcast the whole payload.

    Where the processes of each host are neighbours in the ring, it leaves each host once: these are then also
    the bytes that one host's network link carries in each direction.
    """
    if group == 1:
        return 0
    part = math.ceil(payload / group)
    others = (group - 1) * part
    return {"all_gather": others, "all_reduce": 2 * others, "broadcast": payload}[name]


def hosts_of(local_ranks: Sequence[int]) -> list[int]:
    """The host's number of each global rank, from every process's local rank.

    Raises:
        UserError: where a host's processes are not neighbours, as shard groups need them.
    """
    if local_ranks[0] or any(rank not in (0, before + 1) for before, rank in pairwise(local_ranks)):
        rule = "the processes of a host are not neighbours"
        fix = "place them host by host (srun --distribution=block, mpirun --map-by slot)"
        raise UserError(Mistake("local ranks", " ".join(map(str, local_ranks)), rule, fix), on_all=True)
    return [number - 1 for number in accumulate(int(rank == 0) for rank in local_ranks)]


class CollectiveKind(NamedTuple):
    """A kind of collective: its name, what it moves, the number of processes and of their hosts."""

    name: str
    what: str
    group: int
    hosts: int

    @property
    def link(self) -> Link:
        """The link that its bytes take."""
        return link_of(self.hosts)


class Tally(NamedTuple):
    """Number of collectives, bytes of their whole tensors, and bytes that this process sent."""

    calls: int = 0
    payload: int = 0
    sent: int = 0

    def plus(self, other: "Tally") -> "Tally":
        """The sum of both tallies."""
        return Tally(*(a + b for a, b in zip(self, other, strict=True)))


class Counter:
    """Adds up bytes by kind of collective; a call never waits for the device."""

    def __init__(self) -> None:
        self._tallies: dict[CollectiveKind, Tally] = {}
        self._host_of: Sequence[int] | None = None
        self._sizes: dict[dist.ProcessGroup | None, tuple[int, int]] = {}

    def place(self, host_of: Sequence[int]) -> None:
        """Sets the host's number of each global rank."""
        self._host_of, self._sizes = host_of, {}

    def add(
        self, name: str, what: str, payload: int, group: dist.ProcessGroup | None = None
    ) -> CollectiveKind:
        """Counts one collective and returns its kind.

        Args:
            name: name of the collective, as in `lingo_ds.planning.traffic.Collective`.
            what: name of what it moves.
            payload: bytes of the whole tensor: what is gathered, reduced or sent to all.
            group: the processes that take part; None: all.
        """
        if group not in self._sizes:
            self._sizes[group] = self._size(group)
        kind = CollectiveKind(name, what, *self._sizes[group])
        more = Tally(1, payload, sent_bytes(name, payload, kind.group))
        self._tallies[kind] = self._tallies.get(kind, Tally()).plus(more)
        return kind

    def take(self) -> dict[CollectiveKind, Tally]:
        """Returns and resets the tallies of collectives among more than one process."""
        taken, self._tallies = self._tallies, {}
        return {kind: tally for kind, tally in taken.items() if tally.sent}

    def _size(self, group: dist.ProcessGroup | None) -> tuple[int, int]:
        """Number of processes of a group and of their hosts; one host where `place` was not called."""
        ranks = dist.get_process_group_ranks(group)
        return len(ranks), len({self._host_of[rank] for rank in ranks}) if self._host_of else 1


counter = Counter()
"""The counter of this process; it is global because process groups are."""
