"""Memory of one process at the peak of a step, by part, and the largest pack that leaves some of it free."""

import math

from lingo_ds.planning.cost.scenario import Scenario
from lingo_ds.planning.memory import USABLE_MEMORY, backbone_bytes, bank_parts


def memory_parts(scenario: Scenario) -> dict[str, int]:
    """Bytes of one process at the peak of a step, by part."""
    plan, facts = scenario.plan, scenario.plan.facts
    held = backbone_bytes(facts, plan.zero_stage, plan.shard_group, plan.secondary_group)
    if plan.zero_stage == 3:
        table = max((weight.entries for weight in scenario.weights.embeddings), default=0)
        whole = (table + facts.layer_parameters) * facts.compute_bytes
        held["gathered layers"] = max(held["gathered layers"], whole)
    if scenario.offload:
        held["backbone"] = 0
    tokens = min(plan.forward_tokens, math.ceil(scenario.tokens / plan.accumulation))
    held |= bank_parts(facts, sampling=scenario.sampling)
    held |= {
        "activations": int(tokens * scenario.machine.holes * kept_per_token(scenario)),
        "working": int(scenario.machine.holes * tokens * scenario.layer.working * facts.compute_bytes),
        "buffers": tokens * 3 * 8,
        "runtime": scenario.machine.runtime_bytes,
    }
    return {part: size for part, size in held.items() if size}


def kept_per_token(scenario: Scenario) -> float:
    """Bytes that a token keeps for the backward pass, over all layers."""
    facts, shape = scenario.plan.facts, scenario.layer
    whole = facts.layers - (1 if scenario.last_layer_cut else 0)
    masks = shape.inputs * shape.mask // facts.compute_bytes
    last = (shape.hidden * 3 + (shape.inputs + masks) // 4 + 2 * shape.keys) if scenario.last_layer_cut else 0
    if not facts.learns_inside:
        return shape.kept(facts.compute_bytes) * facts.compute_bytes
    if scenario.checkpointing:
        entries = facts.layers * shape.hidden + shape.kept(facts.compute_bytes)
    else:
        entries = whole * shape.kept(facts.compute_bytes) + last
    return entries * facts.compute_bytes


def kept_by_layer(scenario: Scenario, *, checkpointing: bool) -> int:
    """Bytes of activations that one layer keeps of a forward pass."""
    tokens = math.ceil(scenario.tokens / scenario.plan.accumulation)
    facts = scenario.plan.facts
    entries = scenario.layer.hidden if checkpointing else scenario.layer.kept(facts.compute_bytes)
    return int(tokens * entries * facts.compute_bytes)


def most_tokens(scenario: Scenario) -> int:
    """Most tokens of a forward pass that leave a fifth of the memory free."""
    parts = memory_parts(scenario)
    counted_apart = ("activations", "working", "buffers", "runtime")
    fixed = sum(size for part, size in parts.items() if part not in counted_apart)
    working = scenario.layer.working * scenario.plan.facts.compute_bytes
    each = scenario.machine.holes * (kept_per_token(scenario) + working) + 24
    return max(0, int((USABLE_MEMORY * scenario.machine.memory_bytes - fixed) // each))
