"""What a training step sends between processes, from plain numbers: every collective, its link, its bytes.

Under ZeRO-3 a frozen weight is gathered for the forward pass and, where it is used in the backward pass and
was not kept in between, once more for that; every micro-batch gathers again. What learns is reduced once per
step. Prefetching changes when a weight is gathered, not how often.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

from lingo_ds.distributed.traffic import Link, link_of, sent_bytes
from lingo_ds.models.backbone.backbone import DTYPE_NAMES
from lingo_ds.models.backbone.eight_bit import packed_bytes, packed_entries
from lingo_ds.models.backbone.gathers import GatherState
from lingo_ds.models.backbone.weight_sizes import Weight, Weights, flatten
from lingo_ds.planning.plan import RunPlan

KEPT_LAYERS = 2
"""Last layers that stay gathered from the forward to the backward pass where weights may be reused: with
`stage3_max_live_parameters` of three layers and prefetching of one, as the plan sets them, DeepSpeed has seen
them needed again before their forward pass ends. What lies outside the layers is small and stays, too."""

PERSISTENT = 100_000
"""DeepSpeed's own `stage3_param_persistence_threshold`."""

AUDIT_BYTES = 8
"""Bytes of the fingerprint of one part."""


@dataclass(frozen=True, kw_only=True)
class Sharding:
    """How copies of the frozen weights lie over processes and hosts; neighbouring processes share a copy.

    Attributes:
        world_size: processes of the job.
        local_world_size: processes of one host.
        zero_stage: 3 or 0.
        shard_group: processes that share one copy.
        secondary_group: processes that a second copy is sharded over, from which weights are gathered
            (`zero_hpz_partition_size`); 1: there is none.
        entry_bytes: bytes of an entry in the compute dtype.
        eight_bit: whether maps are held and gathered in 8 bits, see `lingo_ds.models.backbone.eight_bit`.
        persistent: entries up to which a weight is gathered once and then stays.
        reuses: whether weights that are needed again soon may stay gathered: a `stage3_max_reuse_distance`
            above 0.
    """

    world_size: int
    local_world_size: int
    zero_stage: int
    shard_group: int
    secondary_group: int = 1
    entry_bytes: int
    eight_bit: bool = False
    persistent: int = 0
    reuses: bool = True

    @property
    def gathering(self) -> int:
        """Processes that gather a weight together."""
        if self.zero_stage == 0:
            return 1
        return self.secondary_group if self.secondary_group > 1 else self.shard_group

    def hosts(self, processes: int) -> int:
        """Number of hosts that a group of neighbouring processes reaches over."""
        if self.local_world_size % processes == 0:
            return 1
        return max(2, math.ceil(processes / self.local_world_size))


@dataclass(frozen=True)
class Collective:
    """One kind of collective of a step.

    Attributes:
        name: `all_gather`, `all_reduce` or `broadcast`.
        what: its purpose: `forward`, `backward` (weights gathered for that pass), `bank` (its gradient),
            `masks` or `audit`.
        group: processes that take part.
        hosts: hosts of these processes.
        payload: bytes of the whole tensor that is gathered, reduced or broadcast, over all calls of a step.
    """

    name: str
    what: str
    group: int
    hosts: int
    payload: int

    @property
    def link(self) -> Link:
        """The link that its bytes travel over."""
        return link_of(self.hosts)

    @property
    def sent(self) -> int:
        """Bytes that one process sends, and also receives, in a step."""
        return sent_bytes(self.name, self.payload, self.group)

    @property
    def inter_host(self) -> int:
        """Bytes that leave one host, and also arrive there, in a step."""
        return self.sent if self.link is Link.BETWEEN else 0


def step_traffic(
    weights: Weights,
    sharding: Sharding,
    *,
    micro_batches: int,
    reduce_buffer: int,
    learns_inside: bool = True,
    start: GatherState = GatherState.STEADY,
) -> tuple[Collective, ...]:
    """Every collective of one step, except those of masks and audits.

    Args:
        weights: sizes of the backbone's weights.
        sharding: how they lie over processes.
        micro_batches: forward passes of one process in the step.
        reduce_buffer: bytes of the bank's gradient with the step's sums.
        learns_inside: whether a backward pass goes through the backbone; otherwise its weights are released
            after each forward pass, the persistent ones too.
        start: what is gathered when the step begins. A run's first pass gathers all it uses, while DeepSpeed
            records the order; its second, and the first after an evaluation, gather the persistent weights,
            which then stay.
    """
    starts = [start] + [GatherState.STEADY] * (micro_batches - 1)
    if start is GatherState.RECORDING and micro_batches > 1:
        starts[1] = GatherState.FILLING
    passes = [_pass_bytes(weights, sharding, one, learns_inside=learns_inside) for one in starts]
    group = sharding.gathering
    collectives = (
        Collective("all_gather", "forward", group, sharding.hosts(group), sum(p[0] for p in passes)),
        Collective("all_gather", "backward", group, sharding.hosts(group), sum(p[1] for p in passes)),
        _among_all(sharding, "all_reduce", "bank", reduce_buffer),
    )
    return tuple(one for one in collectives if one.sent)


def _among_all(sharding: Sharding, name: str, what: str, payload: int) -> Collective:
    """A collective in which all processes take part."""
    world = sharding.world_size
    return Collective(name, what, world, sharding.hosts(world), payload)


def _pass_bytes(
    weights: Weights, sharding: Sharding, start: GatherState, *, learns_inside: bool
) -> tuple[int, int]:
    """Bytes gathered for one forward pass and for the backward pass that follows."""
    layers, small = weights.layers, sharding.persistent
    everything = gathered_bytes(weights.every, sharding, above=0)
    if not learns_inside:
        return everything, 0
    if start is GatherState.RECORDING:
        return everything, gathered_bytes((*flatten(layers), *weights.others), sharding, above=0)
    forward = (
        everything if start is GatherState.FILLING else gathered_bytes(weights.every, sharding, above=small)
    )
    return forward, gathered_bytes(gathered_again(weights, sharding), sharding, above=small)


def gathered_again(weights: Weights, sharding: Sharding) -> tuple[Weight, ...]:
    """Weights that a backward pass gathers; the persistent ones among them stay and are not gathered."""
    return (
        flatten(weights.layers[:-KEPT_LAYERS])
        if sharding.reuses
        else (*flatten(weights.layers), *weights.others)
    )


def audit_traffic(sharding: Sharding, *, parts: int) -> Collective:
    """The all-gather of one audit: every process's fingerprint of each part that must agree."""
    return _among_all(sharding, "all_gather", "audit", sharding.world_size * parts * AUDIT_BYTES)


def mask_traffic(sharding: Sharding, *, triplets: int) -> Collective:
    """The broadcast of one change of the masks: a bit per triplet, from the first process to all."""
    return _among_all(sharding, "broadcast", "masks", math.ceil(triplets / 8))


def gathered_bytes(weights: Iterable[Weight], sharding: Sharding, *, above: int) -> int:
    """Bytes of the gathered weights of more than `above` entries, each padded to equal parts."""
    if sharding.gathering == 1:
        return 0
    parts = sharding.shard_group  # with a second copy too: it is cut from the padded weight

    def whole(weight: Weight) -> int:
        if sharding.eight_bit and weight.is_map:
            return parts * packed_bytes(packed_entries(weight.entries, parts))
        return parts * math.ceil(weight.entries / parts) * sharding.entry_bytes

    return sum(whole(weight) for weight in weights if weight.entries > above)


def by_link(collectives: Iterable[Collective]) -> dict[str, int]:
    """Bytes that one process sends over each link."""
    sums = dict.fromkeys(map(str, Link), 0)
    for one in collectives:
        sums[one.link] += one.sent
    return sums


def sharding_of_plan(plan: RunPlan, profile: dict[str, Any], dtype: torch.dtype) -> Sharding:
    """How a plan shards the backbone under a DeepSpeed profile."""
    facts = plan.facts
    settings = plan.deepspeed_config(profile, dtype=DTYPE_NAMES[dtype])["zero_optimization"]
    return Sharding(
        world_size=facts.world_size,
        local_world_size=facts.local_world_size,
        zero_stage=plan.zero_stage,
        shard_group=plan.shard_group,
        secondary_group=plan.secondary_group,
        entry_bytes=facts.compute_bytes,
        eight_bit=plan.eight_bit,
        reuses=settings.get("stage3_max_reuse_distance", 1) != 0,
        persistent=int(settings.get("stage3_param_persistence_threshold", PERSISTENT)),
    )
