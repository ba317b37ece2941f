"""Memory of one process at the peak of a step, by part, and the largest pack that leaves some of it free."""

import math

from lingo_ds.planning.cost.scenario import Scenario
from lingo_ds.planning.memory import USABLE_MEMORY, backbone_bytes, bank_parts


def memory_parts(job: Scenario) -> dict[str, int]:
    """Bytes of one process at the peak of a step, by part."""
    plan, facts = job.plan, job.plan.facts
    held = backbone_bytes(facts, plan.zero_stage, plan.shard_group, plan.secondary_group)
    if plan.zero_stage == 3:
        table = max((weight.entries for weight in job.weights.embeddings), default=0)
        whole = (table + facts.layer_parameters) * facts.compute_bytes
        held["gathered layers"] = max(held["gathered layers"], whole)
        heap = job.machine.heap
        stays = heap.unpacked if job.sharding.eight_bit else heap.gathered
        left = facts.backbone_parameters * facts.compute_bytes * stays
        held["gathered layers"] = max(held["gathered layers"], int(left))
    if job.offload:
        held["backbone"] = 0
    tokens = min(plan.forward_tokens, math.ceil(job.tokens / plan.accumulation))
    held |= bank_parts(facts, sampling=job.sampling)
    held |= {
        "activations": int(tokens * _taken_per_token(job)),
        "working": int(_taken_per_byte(job) * tokens * job.layer.working * facts.compute_bytes),
        "buffers": tokens * 3 * 8,
        "runtime": job.machine.runtime_bytes,
    }
    return {part: size for part, size in held.items() if size}


def kept_per_token(job: Scenario) -> float:
    """Bytes that a token leaves for the backward pass, over all layers."""
    facts, shape = job.plan.facts, job.layer
    whole = facts.layers - (1 if job.last_layer_cut else 0)
    last = (shape.hidden * 3 + shape.inputs // 4 + 2 * shape.keys) if job.last_layer_cut else 0
    if not facts.learns_inside:
        return shape.kept(facts.compute_bytes) * facts.compute_bytes
    if job.checkpointing:
        entries = facts.layers * shape.hidden + shape.kept(facts.compute_bytes)
    else:
        entries = whole * shape.kept(facts.compute_bytes) + last
    return entries * facts.compute_bytes


def _taken_per_byte(job: Scenario) -> float:
    """Bytes that the process grows by for each that a layer keeps or works on."""
    return job.machine.heap.fused if job.layer.fused else job.machine.heap.kept


def _taken_per_token(job: Scenario) -> float:
    """Bytes that the process grows by for what a token leaves."""
    heap, facts = job.machine.heap, job.plan.facts
    again = 0.0
    if job.checkpointing and facts.learns_inside:
        again = heap.again * facts.layers * job.layer.kept(facts.compute_bytes) * facts.compute_bytes
    return _taken_per_byte(job) * kept_per_token(job) + again


def kept_by_layer(job: Scenario, *, checkpointing: bool) -> int:
    """Bytes of activations in use that one layer keeps of a forward."""
    tokens = math.ceil(job.tokens / job.plan.accumulation)
    facts = job.plan.facts
    entries = job.layer.hidden if checkpointing else job.layer.kept(facts.compute_bytes)
    return int(tokens * entries * facts.compute_bytes)


def most_tokens(job: Scenario) -> int:
    """Tokens of a forward at most that leave a fifth of the memory free."""
    parts = memory_parts(job)
    counted_apart = ("activations", "working", "buffers", "runtime")
    fixed = sum(size for part, size in parts.items() if part not in counted_apart)
    working = _taken_per_byte(job) * job.layer.working * job.plan.facts.compute_bytes
    each = _taken_per_token(job) + working + 24
    return max(0, int((USABLE_MEMORY * job.machine.memory_bytes - fixed) // each))
