"""What to set, and why: other ways to run the same job, planned and compared."""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from lingo_ds.config.run_config import RunConfig
from lingo_ds.planning.cost.estimate import Estimate, estimate_step
from lingo_ds.planning.cost.scenario import Scenario, with_budget
from lingo_ds.planning.memory import USABLE_MEMORY
from lingo_ds.utils.errors import UserError
from lingo_ds.utils.units import as_bytes

WORTH = 0.02
"""Share of a step that a change must save to be advised."""

Plan = Callable[[RunConfig], Scenario]
"""The job of a config in the place that is planned for; raises UserError where it cannot be."""


class Alternative(NamedTuple):
    """One way to run a job."""

    setting: str
    job: Scenario
    estimate: Estimate

    @property
    def fits(self) -> bool:
        """Whether a fifth of the memory stays free."""
        return self.estimate.model_bytes <= USABLE_MEMORY * self.job.machine.memory_bytes


def advise(config: RunConfig, job: Scenario, plan: Plan) -> list[str]:
    """One line for each of stage and shard group, hpZ, 8 bits, checkpointing, offload, tokens and network."""
    now = Alternative("as it is", job, estimate_step(job))
    return [
        _stage_and_group(config, now, plan),
        *_hpz(config, now, plan),
        *_eight_bit(config, now, plan),
        _checkpointing(config, now, plan),
        _offload(now),
        _budget(now),
        *_network(now),
    ]


def spreads(config: RunConfig, plan: Plan) -> Iterator[Alternative]:
    """A whole copy on every process, and every size of a shard group inside a host, whole hosts, and all."""
    first = _way(config, plan, "zero.stage=0", stage=0, shard_group="auto")
    if first is None:
        return
    yield first
    facts = first.job.plan.facts
    world, local = facts.world_size, facts.local_world_size
    groups = [
        g for g in range(2, world + 1) if world % g == 0 and (local % g == 0 or g in (world, 2 * local))
    ]
    for group in groups:
        way = _way(config, plan, f"zero.stage=3 zero.shard_group={group}", stage=3, shard_group=group)
        if way:
            yield way


def _way(config: RunConfig, plan: Plan, setting: str, **zero: Any) -> Alternative | None:
    changed = config.model_copy(update={"zero": config.zero.model_copy(update=zero)})
    try:
        job = plan(changed)
    except UserError:
        return None
    return Alternative(setting, job, estimate_step(job))


def _stage_and_group(config: RunConfig, now: Alternative, plan: Plan) -> str:
    facts, ways = now.job.plan.facts, list(spreads(config, plan))
    fitting = [way for way in ways if way.fits]
    if not fitting:
        need = min(way.estimate.model_bytes for way in ways) if ways else now.estimate.model_bytes
        usable = as_bytes(USABLE_MEMORY * now.job.machine.memory_bytes)
        return f"stage      no spread fits: {as_bytes(need)} at least of {usable} usable; add processes"
    best = min(fitting, key=lambda way: way.estimate.seconds)
    why = f"{as_bytes(best.estimate.model_bytes)} per process"
    smaller = [way for way in ways if way.job.plan.shard_group < best.job.plan.shard_group and not way.fits]
    if smaller:
        most = max(smaller, key=lambda way: way.job.plan.shard_group)
        why += f", where {most.setting} needs {as_bytes(most.estimate.model_bytes)}"
    plain = _way(config, plan, "", stage=3, shard_group=facts.world_size, hpz="off")
    if plain and best.job.plan.shard_group != facts.world_size:
        slower = plain.estimate.seconds / best.estimate.seconds
        why += f"; plain ZeRO-3 over all {facts.world_size} processes takes {slower:.2f} times as long"
    same = (best.job.plan.zero_stage, best.job.plan.shard_group) == (
        now.job.plan.zero_stage, now.job.plan.shard_group,
    )  # fmt: skip
    if same or (now.fits and now.estimate.seconds <= (1 + WORTH) * best.estimate.seconds):
        return (
            f"stage      keep zero.stage={now.job.plan.zero_stage}, group {now.job.plan.shard_group}: {why}"
        )
    gain = "the plan as it is does not fit"
    if now.fits:
        gain = f"{1 - best.estimate.seconds / now.estimate.seconds:.0%} less time a step"
    return f"stage      set {best.setting}: {gain}; {why}"


def _hpz(config: RunConfig, now: Alternative, plan: Plan) -> Iterator[str]:
    """A second copy inside each host pays where the first reaches over several."""
    sharding = now.job.sharding
    inside = math.gcd(sharding.shard_group, sharding.local_world_size)
    if sharding.zero_stage == 0 or sharding.hosts(sharding.shard_group) == 1 or inside == 1:
        return
    with_it, without = (_way(config, plan, "", hpz=hpz) for hpz in (inside, "off"))
    if with_it is None or without is None:
        return
    saved = 1 - with_it.estimate.seconds / without.estimate.seconds
    gain = f"gathers stay inside a host, {saved:.0%} less time a step"
    if not with_it.fits:
        need = as_bytes(with_it.estimate.model_bytes)
        yield f"hpZ        leave off: a copy in each host needs {need} per process"
    elif sharding.secondary_group > 1:
        yield f"hpZ        keep over {sharding.secondary_group} processes: {gain}"
    else:
        yield f"hpZ        set zero.hpz=auto: {gain}"


def _eight_bit(config: RunConfig, now: Alternative, plan: Plan) -> Iterator[str]:
    """Maps in 8 bits pay where nothing hides their gathers, or where memory is short."""
    on = now.job.sharding.eight_bit
    if now.job.sharding.zero_stage == 0:
        return
    other = _way(config, plan, "", quantized_weights=not on)
    with_it, without = (now, other) if on else (other, now)
    if with_it is None or with_it.job.sharding.zero_stage == 0 or not with_it.fits:
        return
    saved = 0.0 if without is None else 1 - with_it.estimate.seconds / without.estimate.seconds
    say = "keep" if on else "set"
    if without is None or not without.fits:
        need = as_bytes(with_it.estimate.model_bytes)
        yield f"8 bits     {say} zero.quantized_weights=true: only so it fits, in {need} per process"
    elif saved >= WORTH:
        yield f"8 bits     {say} zero.quantized_weights=true: {saved:.0%} less time a step, rounded weights"
    elif on:
        yield f"8 bits     set zero.quantized_weights=false: they save only {max(saved, 0):.1%} of a step"


def _checkpointing(config: RunConfig, now: Alternative, plan: Plan) -> str:
    on = not now.job.checkpointing
    backbone = config.backbone.model_copy(update={"activation_checkpointing": on})
    try:
        job = plan(config.model_copy(update={"backbone": backbone}))
    except UserError:
        return f"recompute  keep {'on' if now.job.checkpointing else 'off'}: the other way does not fit"
    other = Alternative("", job, estimate_step(job))
    saved = 1 - other.estimate.seconds / now.estimate.seconds
    value = str(on).lower()
    if other.fits and (saved >= WORTH or not now.fits):
        gain = f"{saved:.0%} less time a step" if saved >= WORTH else "else it does not fit"
        return (
            f"recompute  set backbone.activation_checkpointing={value}: {gain}, "
            f"{job.plan.accumulation} instead of {now.job.plan.accumulation} forwards"
        )
    if on:
        fitting = as_bytes(now.estimate.model_bytes)
        return f"recompute  leave off: it would cost {-saved:.0%} of a step, and {fitting} fit"
    return f"recompute  keep on: without it a step needs {as_bytes(other.estimate.model_bytes)} per process"


def _offload(now: Alternative) -> str:
    if now.job.offload:
        return "offload    on: every pass reads the weights from the host's memory; not in the seconds above"
    if now.fits:
        return "offload    leave off: the weights fit beside the activations"
    saved = now.estimate.memory.get("backbone", 0)
    return (
        f"offload    set zero.profile=zero3_offload where processes cannot be added: frees {as_bytes(saved)}"
    )


def _budget(now: Alternative) -> str:
    plan, most = now.job.plan, now.estimate.most_tokens
    if plan.micro_batch_tokens is None:
        return f"budget     {most:,} tokens of a forward fit; batches are padded"
    used = plan.micro_batch_tokens
    share = f"{used:,} tokens of a forward planned, {most:,} fit"
    if plan.accumulation == 1 or most <= used:
        return f"budget     keep: {share}; {plan.accumulation} forwards a step"
    other = estimate_step(with_budget(now.job, most))
    saved = 1 - other.seconds / now.estimate.seconds
    if saved < WORTH:
        return f"budget     keep: {share}; more would save {max(saved, 0):.1%} of a step"
    return f"budget     set train.micro_batch_tokens={most}: {share}; {saved:.0%} less time a step"


def _network(now: Alternative) -> Iterator[str]:
    """What nothing hides of a step, and what would: the bank goes once a step, weights with each forward."""
    share = now.estimate.exposed / now.estimate.seconds
    if share < 0.05:
        return
    bank = sum(one.exposed for one in now.estimate.sent if one.collective.what == "bank")
    larger = now.estimate.exposed / now.estimate.compute / 0.05
    mend = f"{larger:.1f} times the examples of a step would bring it to a twentieth"
    if bank < now.estimate.exposed / 2:
        mend = "larger forwards or a copy inside each host would hide it; more forwards a step would not"
    yield f"network    communication that nothing hides is {share:.0%} of a step; {mend}"
