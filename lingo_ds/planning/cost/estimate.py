"""The cost of a step: memory by part, FLOPs, bytes on each link, seconds. Pure arithmetic."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from lingo_ds.models.adapters.bank import Scalar
from lingo_ds.planning.cost.footprint import kept_by_layer, memory_parts, most_tokens
from lingo_ds.planning.cost.machine import Machine
from lingo_ds.planning.cost.scenario import Scenario
from lingo_ds.planning.cost.work import pass_work, seconds
from lingo_ds.planning.traffic import Collective, by_link, step_traffic

UPDATE_PASSES, SAMPLING_PASSES = 14, 16
"""Floats that an update reads or writes per learned entry: clear, norm, clip, AdamW, copy; importance."""

TREE_RATE = 0.9
"""Share of a ring's bytes/s that a tree reaches in NCCL's own model (src/graph/tuning.cc)."""


class CollectiveTime(NamedTuple):
    """A collective of a step, the seconds it takes, and those of them that no computation hides."""

    collective: Collective
    seconds: float
    exposed: float


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """The cost of a job, per process and step.

    Attributes:
        memory: bytes by part at the peak of training.
        kept_by_layer: bytes of one layer's activations, without and with checkpointing.
        flops: FLOPs by part.
        sent: collectives with their seconds.
        compute, exposed, update: seconds of a step: passes, communication that nothing hides, optimizer.
        real_tokens, examples: tokens and examples of a step, over all processes.
        rows: training examples of an epoch.
        most_tokens: most tokens of a forward pass that fit.
    """

    memory: dict[str, int]
    kept_by_layer: tuple[int, int]
    flops: dict[str, float]
    sent: tuple[CollectiveTime, ...]
    compute: float
    exposed: float
    update: float
    real_tokens: float
    examples: int
    rows: int
    most_tokens: int

    @property
    def seconds(self) -> float:
        """Seconds of one step."""
        return self.compute + self.exposed + self.update

    @property
    def peak_bytes(self) -> int:
        """Memory of one process at the peak of a step, in bytes."""
        return sum(self.memory.values())

    @property
    def model_bytes(self) -> int:
        """The peak without the runtime, for which `USABLE_MEMORY` leaves room."""
        return self.peak_bytes - self.memory.get("runtime", 0)

    @property
    def tokens_per_second(self) -> float:
        """Tokens per second of all processes, padding not counted."""
        return self.real_tokens / self.seconds

    @property
    def epochs_per_hour(self) -> float:
        """Epochs per hour, evaluation not counted."""
        return 3600 * self.examples / self.rows / self.seconds

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain JSON values."""
        sent = [
            {
                **asdict(one.collective),
                "link": str(one.collective.link),
                "sent": one.collective.sent,
                "seconds": one.seconds,
                "exposed": one.exposed,
            }
            for one in self.sent
        ]
        return {
            **asdict(self),
            "sent": sent,
            "seconds": self.seconds,
            "peak_bytes": self.peak_bytes,
            "bytes_by_link": by_link(one.collective for one in self.sent),
            "tokens_per_second": self.tokens_per_second,
            "epochs_per_hour": self.epochs_per_hour,
        }


def estimate_step(scenario: Scenario) -> Estimate:
    """Derives the cost of a step from plain numbers."""
    plan, facts = scenario.plan, scenario.plan.facts
    work = pass_work(scenario)
    forward, backward = (seconds(scenario, part) for part in (work.forward, work.backward))
    sent = tuple(_sent(scenario, one, forward, backward) for one in _collectives(scenario))
    passes = UPDATE_PASSES + (SAMPLING_PASSES if scenario.sampling else 0)
    return Estimate(
        memory=memory_parts(scenario),
        kept_by_layer=(
            kept_by_layer(scenario, checkpointing=False),
            kept_by_layer(scenario, checkpointing=True),
        ),
        flops=work.flops,
        sent=sent,
        compute=forward + backward,
        exposed=sum(one.exposed for one in sent),
        update=passes * 4 * facts.bank_parameters / scenario.machine.memory + 40 * scenario.machine.dispatch,
        real_tokens=plan.global_batch_size * facts.mean_tokens,
        examples=plan.global_batch_size,
        rows=facts.train_rows,
        most_tokens=most_tokens(scenario),
    )


def _collectives(scenario: Scenario) -> Sequence[Collective]:
    reduce_buffer = 4 * (scenario.plan.facts.bank_parameters + len(Scalar))
    return step_traffic(
        scenario.weights,
        scenario.sharding,
        micro_batches=scenario.plan.accumulation,
        reduce_buffer=reduce_buffer,
        learns_inside=scenario.plan.facts.learns_inside,
    )


def _sent(scenario: Scenario, one: Collective, forward: float, backward: float) -> CollectiveTime:
    """Seconds of a collective: gathers run layer by layer and hide behind the layer before."""
    passes = scenario.plan.accumulation
    if one.what not in ("forward", "backward"):
        seconds = ring_seconds(scenario.machine, one, calls=1)
        return CollectiveTime(one, seconds, seconds)
    apart = (
        2 if scenario.sharding.eight_bit and not scenario.sharding.persistent else 1
    )  # maps, and what is not in 8 bits
    calls = passes * scenario.plan.facts.layers * apart
    seconds = ring_seconds(scenario.machine, one, calls=calls)
    computing = forward if one.what == "forward" else backward
    network = scenario.machine.between if one.hosts > 1 else scenario.machine.inside
    hidden = min(seconds * (1 - 1 / scenario.plan.facts.layers), network.hidden * computing)
    return CollectiveTime(one, seconds, seconds - hidden)


def ring_seconds(machine: Machine, one: Collective, *, calls: int) -> float:
    """Seconds of all calls of a collective: its bytes over the slowest connection, and a ring's steps.

    A ring over several hosts leaves each host once, so the host's whole network carries what one process
    sends. An all-reduce may take a tree instead, whose steps grow with the logarithm of the hosts.
    """
    between = one.hosts > 1
    rate = machine.inside.rate
    if between:
        rate = min(rate, machine.between.rate)
    turns = 2 if one.name == "all_reduce" else 1
    crossing = turns * (one.hosts - 1)
    steps = turns * (one.group - 1)
    delay = (steps - crossing) * machine.inside.latency + crossing * machine.between.latency
    ring = one.sent / rate + calls * delay
    if one.name != "all_reduce" or not machine.trees:
        return ring
    up = (one.group // one.hosts - 1) * machine.inside.latency + math.log2(
        one.hosts
    ) * machine.between.latency
    return min(ring, one.sent / (TREE_RATE * rate) + calls * 2 * up)
