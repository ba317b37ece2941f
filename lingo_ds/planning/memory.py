"""What fits where: how the backbone is sharded over processes, and what a forward pass alone may hold."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from lingo_ds.config.backbone_config import ZeroConfig
from lingo_ds.models.backbone.eight_bit import packed_bytes
from lingo_ds.models.backbone.quantized_linear import require_bitsandbytes
from lingo_ds.planning.plan_inputs import ModelFacts
from lingo_ds.utils.errors import Mistake, UserError
from lingo_ds.utils.units import as_bytes

USABLE_MEMORY = 0.8
"""Share of a process's memory that a plan fills; the rest is left to fragments, the runtime and errors of the
estimate."""


MAX_FORWARD_TOKENS = {"cpu": 4096, "cuda": 65536}
"""Most tokens of a forward pass without backward: more fill no GPU better, and leave a CPU's caches."""


def require_quantizable(quantization: str, zero: ZeroConfig) -> None:
    """Checks that the backbone can be quantised here, before anything large is read.

    Raises:
        UserError: without bitsandbytes, or where the backbone is to be sharded.
    """
    require_whole(quantization, zero)
    require_bitsandbytes(quantization)


@dataclass(frozen=True)
class ForwardPlan:
    """Every derived number of a job that only predicts.

    Attributes:
        tokens: tokens of a forward pass of one process, about.
        packed: whether forward passes are packs, without padding.
        zero_stage: 3 or 0.
        shard_group: processes that share one copy of the backbone.
        secondary_group: processes of a host that hold a second copy; 1: there is none.
        eight_bit: whether the frozen maps are held and gathered in 8 bits.
    """

    tokens: int
    packed: bool
    zero_stage: int
    shard_group: int
    secondary_group: int
    eight_bit: bool


def plan_forward(
    facts: ModelFacts, zero: ZeroConfig, *, packing: str, longest: int, tokens: int | None, device: str
) -> ForwardPlan:
    """Derives the plan of a job that keeps nothing for a backward pass.

    Args:
        facts: facts of the model and the processes.
        zero: how the user wants the backbone sharded.
        packing: `auto` or `off`.
        longest: tokens of the longest example that may come.
        tokens: tokens of a forward pass as the user wants it; None: what memory allows, `MAX_FORWARD_TOKENS`
            at most.
        device: `cpu` or `cuda`.

    Raises:
        UserError: where the backbone does not fit.
    """
    token_bytes = facts.inside_layer * facts.compute_bytes
    bank = sum(bank_parts(facts, sampling=False).values())
    beside = bank + facts.runtime_bytes + longest * token_bytes
    fix = ways_to_fit(zero, "bf16")
    stage, group = choose_sharding(zero, facts, beside=beside, fix=fix)
    secondary = choose_secondary_group(zero, facts, stage, group, beside=beside)
    held = bank + facts.runtime_bytes + sum(backbone_bytes(facts, stage, group, secondary).values())
    free = USABLE_MEMORY * facts.memory_bytes - held
    fitting = max(min(MAX_FORWARD_TOKENS[device], int(free // token_bytes)), 1)
    return ForwardPlan(
        tokens=tokens or fitting,
        packed=packing == "auto" and facts.packable,
        zero_stage=stage,
        shard_group=group,
        secondary_group=secondary,
        eight_bit=facts.packed_parameters(stage) > 0,
    )


def bank_parts(facts: ModelFacts, *, sampling: bool) -> dict[str, int]:
    """Memory of one process for the bank, by part; `sampling`: whether importance is averaged.

    The bank itself is fp32 masters and their gradient, a copy in the compute dtype and, below fp32, that
    copy's gradient. Sampling takes two averages, room to compute them, and at most three copies of triplets
    that are held.
    """
    entries, width = facts.bank_parameters, facts.compute_bytes
    return {
        "bank": entries * (4 + 4 + (width if width == 4 else 2 * width)),
        "moments": entries * 2 * 4,
        "importance": entries * 6 * 4 if sampling else 0,
    }


def backbone_bytes(facts: ModelFacts, stage: int, group: int, secondary_group: int = 1) -> dict[str, int]:
    """Memory of one process for its share of the frozen weights, by part."""
    packed = facts.packed_parameters(stage)
    entries = math.ceil((facts.backbone_parameters - facts.quantized_parameters - packed) / group)
    parts = {
        "backbone": entries * facts.compute_bytes
        + packed_bytes(math.ceil(packed / group))
        + facts.quantized_bytes
    }
    if facts.quantized_parameters:
        parts["one map dequantised"] = facts.largest_quantized * facts.compute_bytes
    if secondary_group > 1:
        parts["second copy"] = math.ceil(facts.backbone_parameters / secondary_group) * facts.compute_bytes
    if stage == 3:
        packed_layer = facts.layer_parameters if packed else 0  # a layer as it arrives, before it is unpacked
        parts["gathered layers"] = 3 * facts.layer_parameters * facts.compute_bytes + packed_layer
    return parts


def ways_to_fit(zero: ZeroConfig, *more: str) -> str:
    """Settings that help where nothing fits, beside adding processes; the last of `more` is no setting."""
    sharded = [] if zero.quantized_weights else ["zero.quantized_weights=true", "zero.profile=zero3_offload"]
    *settings, last = ["backbone.quantization=nf4", *sharded, *more]
    return f"set {', '.join(settings)} or {last}"


def require_whole(quantization: str, zero: ZeroConfig) -> None:
    """Checks that quantised weights are not to be sharded.

    Raises:
        UserError: where `zero` asks for shards.
    """
    if quantization == "none":
        return
    asked = {
        "stage": (zero.stage == 3, f"{zero.stage} shards them", "auto"),
        "shard_group": (zero.shard_group not in ("auto", 1), f"{zero.shard_group} shards them", "auto"),
        "quantized_weights": (zero.quantized_weights, "true is for shards", "false"),
    }
    for setting, (wrong, why, instead) in asked.items():
        if wrong:
            rule = f"is for whole copies, and zero.{setting}={why}"
            fix = f"set zero.{setting}={instead}, or backbone.quantization=none"
            raise UserError(Mistake("backbone.quantization", quantization, rule, fix))


def choose_sharding(zero: ZeroConfig, facts: ModelFacts, *, beside: int, fix: str) -> tuple[int, int]:
    """ZeRO stage and shard group: a whole copy if it fits, else the smallest group, if possible in a host.

    Args:
        zero: what the user wants.
        facts: facts of the model and the processes.
        beside: bytes of one process that are needed beside the backbone.
        fix: what a user may do, beside adding processes, where nothing fits.

    Raises:
        UserError: where nothing fits, or the group does not divide the processes.
    """
    usable = int(USABLE_MEMORY * facts.memory_bytes)

    def need(stage: int, group: int) -> int:
        return sum(backbone_bytes(facts, stage, group).values()) + beside

    def fits(group: int) -> bool:
        return need(3, group) <= usable

    if _stays_whole(zero, facts, fits=need(0, 1) <= usable):
        return 0, 1
    if facts.quantized_parameters:
        rule = f"does not fit {as_bytes(usable)}, and quantised weights are not sharded"
        fix = (
            "use backbone.quantization=nf4 with backbone.activation_checkpointing=true, or set "
            "backbone.quantization=none so that the weights can be sharded"
        )
        raise UserError(Mistake("backbone.path", f"{as_bytes(need(0, 1))} per process", rule, fix))
    if zero.shard_group != "auto":
        if facts.world_size % zero.shard_group:
            rule = f"does not divide the {facts.world_size} processes"
            raise UserError(Mistake("zero.shard_group", zero.shard_group, rule, "choose a divisor or auto"))
        return 3, zero.shard_group
    if group := _smallest_group(facts, fits):
        return 3, group
    if zero.stage == 3 or zero.profile:
        return 3, facts.world_size  # the user insists, e.g. with offload, which the estimate does not know
    need_bytes = f"{as_bytes(need(3, facts.world_size))} per process"
    rule = f"does not fit {as_bytes(usable)} on {facts.world_size} processes"
    raise UserError(Mistake("backbone.path", need_bytes, rule, f"add processes, or {fix}"))


def _stays_whole(zero: ZeroConfig, facts: ModelFacts, *, fits: bool) -> bool:
    """Whether every process holds a whole copy: the user says so, or leaves it open and a copy fits."""
    if zero.stage == 0 or (zero.shard_group == 1 and facts.world_size > 1):
        return True
    return zero.stage == "auto" and zero.shard_group in ("auto", 1) and fits


def _smallest_group(facts: ModelFacts, fits: Callable[[int], bool]) -> int | None:
    """The smallest shard group that fits, inside a host if there is one; None where none fits."""
    smallest = 2 if facts.world_size > 1 else 1
    divisors = [g for g in range(smallest, facts.world_size + 1) if facts.world_size % g == 0]
    inside = [g for g in divisors if facts.local_world_size % g == 0]
    return next(filter(fits, [*inside, *divisors]), None)


def choose_secondary_group(
    zero: ZeroConfig, facts: ModelFacts, stage: int, group: int, *, beside: int
) -> int:
    """Processes of a host that hold a second copy, where the first is sharded over several hosts; 1: none.

    Frozen weights never change, so DeepSpeed gathers them for both passes from the second copy, which is
    never out of date: none of them travels between hosts. A host with room for a second copy has room for
    the first, so this is for a `shard_group` that the user made larger than need be.

    Raises:
        UserError: for a number of processes that is not possible.
    """
    inside = stage == 0 or facts.local_world_size % group == 0
    if zero.hpz == "off" or (zero.hpz == "auto" and (inside or facts.eight_bit_parameters)):
        return 1
    if zero.hpz == "auto":
        size = math.gcd(group, facts.local_world_size)
        need = sum(backbone_bytes(facts, stage, group, size).values()) + beside
        return size if need <= USABLE_MEMORY * facts.memory_bytes else 1
    if stage == 0 or zero.hpz >= group or group % zero.hpz or facts.local_world_size % zero.hpz:
        rule = (
            f"is no part of {group} processes that share a copy, {facts.local_world_size} of them on a host"
        )
        raise UserError(Mistake("zero.hpz", zero.hpz, rule, "choose auto or off"))
    if zero.hpz > 1 and facts.eight_bit_parameters:
        rule = "is a second copy, and weights in 8 bits are held once"
        raise UserError(Mistake("zero.hpz", zero.hpz, rule, f"set zero.shard_group={zero.hpz} instead"))
    return zero.hpz
