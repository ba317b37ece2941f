"""RunPlan: every derived number of a run, computed from plain numbers before anything is loaded."""

import logging
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from lingo_ds.config.backbone_config import BackboneConfig, ZeroConfig
from lingo_ds.config.fields import resolve_duration
from lingo_ds.config.run_config import RunConfig
from lingo_ds.distributed.process_group import DistEnv
from lingo_ds.models.backbone.backbone import BackboneOptions
from lingo_ds.planning.automatic import choose_learning_rate, choose_schedule
from lingo_ds.planning.memory import (
    USABLE_MEMORY,
    ForwardPlan,
    backbone_bytes,
    bank_parts,
    choose_secondary_group,
    choose_sharding,
    ways_to_fit,
)
from lingo_ds.planning.micro_batch import (
    choose_micro_batch,
    choose_micro_batch_tokens,
    example_bytes,
    prefix_shared,
    product_code_bytes,
    token_bytes,
)
from lingo_ds.planning.plan_inputs import Facts
from lingo_ds.rank_sampling.schedule import BudgetSchedule
from lingo_ds.utils.errors import Mistake, UserError
from lingo_ds.utils.units import as_bytes

logger = logging.getLogger(__name__)

EVAL_BATCH_FACTOR = 4
"""Examples of an evaluation forward pass for each of a training one, where its memory holds as many."""


@dataclass(frozen=True)
class RunPlan:
    """Every derived number of a run.

    Attributes:
        facts: the numbers that it was derived from.
        global_batch_size: examples per step.
        micro_batch_size: examples per forward pass of one process; with packing an average.
        micro_batch_tokens: most tokens of a pack; None without packing.
        accumulation: forward passes of one process per step; with packing an estimate, since lengths differ.
        steps_per_epoch, steps: optimizer steps; the last batch of an epoch may be smaller.
        warmup_steps: steps in which the learning rate rises.
        learning_rate: its peak.
        rate_origin: where that comes from, as a person would check it.
        eval_interval: steps between evaluations on dev; the last step is always evaluated.
        schedule: budget of triplets over the run; None without sampling.
        zero_stage: 3 or 0.
        shard_group: processes that share one copy of the backbone.
        secondary_group: processes of a host that hold a second copy; 1: there is none.
        bytes_per_process: memory by part.
        flops_per_token: FLOPs of a token's forward and backward pass through the frozen backbone.
    """

    facts: Facts
    global_batch_size: int
    micro_batch_size: int
    micro_batch_tokens: int | None
    accumulation: int
    steps_per_epoch: int
    steps: int
    warmup_steps: int
    eval_interval: int
    learning_rate: float
    rate_origin: str
    schedule: BudgetSchedule | None
    zero_stage: int
    shard_group: int
    secondary_group: int
    bytes_per_process: dict[str, int]
    flops_per_token: float

    @property
    def fraction(self) -> float:
        """Trainable parameters over backbone parameters."""
        return self.facts.bank_parameters / self.facts.backbone_parameters

    @property
    def eval_batch_size(self) -> int:
        """Examples of an evaluation forward pass of one process, which keeps nothing for a backward pass."""
        return int(self._eval_factor * self.micro_batch_size)

    @property
    def packed(self) -> bool:
        """Whether forward passes are packs, without padding."""
        return self.micro_batch_tokens is not None

    @property
    def eight_bit(self) -> bool:
        """Whether the frozen maps are held and gathered in 8 bits: if they are sharded and it was set."""
        return self.facts.packed_parameters(self.zero_stage) > 0

    @property
    def shared_prefix(self) -> int:
        """Fewest tokens that a pack holds once for all of its examples; 0: none are shared."""
        return prefix_shared(self.facts) if self.packed else 0

    @property
    def share_prefix(self) -> bool:
        """Whether a pack holds the common prefix of its examples once."""
        return self.shared_prefix > 0

    @property
    def eval_tokens(self) -> int:
        """Tokens of an evaluation forward pass of one process, about."""
        return int(self._eval_factor * self.forward_tokens)

    @property
    def _eval_factor(self) -> float:
        """Size of an evaluation forward pass over a training one's, in whose memory it stays."""
        inside = self.forward_tokens * self.facts.inside_layer * self.facts.compute_bytes
        return min(max(self.bytes_per_process["activations"] / inside, 1), EVAL_BATCH_FACTOR)

    @property
    def forward_tokens(self) -> int:
        """Most tokens of a training forward pass of one process."""
        return self.micro_batch_tokens or self.micro_batch_size * self.facts.longest

    def equations(self) -> list[str]:
        """The arithmetic, one line each, as a person would check it."""
        f = self.facts
        lines = [
            f"batch      {self.global_batch_size} examples <= {f.world_size} processes x {self.accumulation} "
            f"accumulation x {self.micro_batch_size} micro-batch{self._how_packed()}",
            f"epoch      ceil({f.train_rows} rows / {self.global_batch_size}) = {self.steps_per_epoch} steps",
            f"run        {self.steps} steps = {self.steps / self.steps_per_epoch:.2f} epochs; "
            f"{self.warmup_steps} warm-up; dev every {self.eval_interval}",
            f"tokens     {f.mean_tokens:.1f} per example on average, {f.longest} at most",
            f"parameters {f.bank_parameters:,} trainable / {f.backbone_parameters:,} backbone "
            f"= {self.fraction:.2%} ({f.sites} sites, head {f.head_parameters:,}{self._learned_tokens()})",
        ]
        lines.append(f"rate       {self.learning_rate:g} ({self.rate_origin})")
        if self.schedule:
            s = self.schedule
            every = "step" if s.interval == 1 else f"{s.interval} steps"
            lines.append(
                f"budget     {s.initial} -> {s.target} triplets: all until step {s.t_init}, a mask every "
                f"{every} ({len(s.mask_steps())} in all), final at step {s.final_step}"
            )
        copies = f.world_size // self.shard_group
        sharding = f"sharded over {self.shard_group}" if self.zero_stage else "whole"
        sharding += f" and again over every {self.secondary_group}" if self.secondary_group > 1 else ""
        sharding += ", maps in 8 bits" if self.eight_bit else ""
        lines.append(
            f"backbone   {copies} {'copy' if copies == 1 else 'copies'}, each {sharding} "
            f"(ZeRO stage {self.zero_stage})"
        )
        parts = " + ".join(f"{as_bytes(size)} {part}" for part, size in self.bytes_per_process.items())
        total = as_bytes(sum(self.bytes_per_process.values()))
        lines.append(f"memory     {parts} = {total} of {as_bytes(f.memory_bytes)} per process (estimate)")
        lines.append(f"work       {self.flops_per_token:.3g} FLOP per token")
        return lines

    def _learned_tokens(self) -> str:
        return f", tokens {self.facts.token_parameters:,}" if self.facts.token_parameters else ""

    def _how_packed(self) -> str:
        if not self.packed:
            return ", padded"
        prefix = f", {self.facts.shared_prefix} of each shared" if self.share_prefix else ""
        return f", packed to {self.micro_batch_tokens:,} tokens at most{prefix}"

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain JSON values; the second copy's processes are `hpz` there, like the setting."""
        fields = {"hpz" if name == "secondary_group" else name: value for name, value in asdict(self).items()}
        return {**fields, "fraction": self.fraction}

    def deepspeed_config(self, profile: Mapping[str, Any], *, dtype: str) -> dict[str, Any]:
        """DeepSpeed's settings: the profile with every `auto` filled in; `dtype` is fp32, bf16 or fp16."""
        return self.facts.deepspeed_config(
            profile,
            micro_batch_size=self.micro_batch_size,
            dtype=dtype,
            secondary_group=self.secondary_group,
        )

    def backbone_options(
        self,
        backbone: BackboneConfig,
        profile: Mapping[str, Any],
        *,
        dtype: str,
        embedding_rows: Iterable[int] = (),
    ) -> BackboneOptions:
        """How the run's backbone is loaded.

        Args:
            backbone: its settings.
            profile: DeepSpeed's settings, as for `deepspeed_config`.
            dtype: fp32, bf16 or fp16.
            embedding_rows: rows of the input embedding that every process needs whole.
        """
        return BackboneOptions(
            activation_checkpointing=backbone.activation_checkpointing,
            packed=self.packed,
            fused_kernels=backbone.fused_kernels,
            quantization=backbone.quantization,
            ds_config=self.deepspeed_config(profile, dtype=dtype) if self.zero_stage == 3 else None,
            shard_group=self.shard_group,
            eight_bit=self.eight_bit,
            embedding_rows=tuple(embedding_rows),
        )


class _Place(NamedTuple):
    """How the backbone is sharded, and what one process holds of it and of the bank, in bytes by part."""

    zero_stage: int
    shard_group: int
    secondary_group: int
    held: dict[str, int]


class _Rhythm(NamedTuple):
    """Steps of a run, and how they are divided."""

    steps_per_epoch: int
    steps: int
    warmup_steps: int
    eval_interval: int


def make_plan(config: RunConfig, facts: Facts) -> RunPlan:
    """Derives the plan.

    Raises:
        UserError: for a batch that the processes cannot share, a schedule that cannot work, or a backbone
            that does not fit.
    """
    batch = config.train.global_batch_size
    if batch < facts.world_size:
        rule = f"is below the {facts.world_size} processes"
        raise UserError(Mistake("train.global_batch_size", batch, rule, "raise it"))
    rhythm = _rhythm(config, facts)
    place = _place(config, facts)
    free = USABLE_MEMORY * facts.memory_bytes - sum(place.held.values())
    tokens = choose_micro_batch_tokens(config, facts, free)
    micro = choose_micro_batch(config, facts, free, tokens)
    share = math.ceil(batch / facts.world_size)
    accumulation = math.ceil(share / micro)
    if not config.train.micro_batch_size:
        micro = math.ceil(share / accumulation)
    parts = {**place.held, "activations": (tokens or micro * facts.longest) * token_bytes(config, facts)}
    if facts.products:
        parts["compiled products"] = product_code_bytes(facts, micro, rhythm.steps * accumulation)
    rate = choose_learning_rate(config, hidden_size=facts.hidden_size)
    return RunPlan(
        facts=facts,
        global_batch_size=batch,
        micro_batch_size=micro,
        micro_batch_tokens=tokens,
        accumulation=accumulation,
        learning_rate=rate.value,
        rate_origin=rate.origin,
        schedule=choose_schedule(config, sites=facts.sites, steps=rhythm.steps),
        zero_stage=place.zero_stage,
        shard_group=place.shard_group,
        secondary_group=place.secondary_group,
        bytes_per_process=parts,
        flops_per_token=_flops_per_token(facts),
        **rhythm._asdict(),
    )


def _rhythm(config: RunConfig, facts: Facts) -> _Rhythm:
    train = config.train
    steps_per_epoch = math.ceil(facts.train_rows / train.global_batch_size)
    steps = train.max_steps or math.ceil(train.num_epochs * steps_per_epoch)
    return _Rhythm(
        steps_per_epoch=steps_per_epoch,
        steps=steps,
        warmup_steps=min(resolve_duration(train.warmup, total=steps), steps),
        eval_interval=train.eval_steps or max(1, round((train.eval_epochs or 1) * steps_per_epoch)),
    )


def _place(config: RunConfig, facts: Facts) -> _Place:
    bank = sum(bank_parts(facts, sampling=config.rank_sampling.mode != "off").values())
    beside = bank + facts.runtime_bytes + example_bytes(config, facts)
    fix = ways_to_fit(config.zero, "backbone.activation_checkpointing=true", "bf16")
    stage, group = choose_sharding(config.zero, facts, beside=beside, fix=fix)
    secondary = choose_secondary_group(config.zero, facts, stage, group, beside=beside)
    held = {**backbone_bytes(facts, stage, group, secondary), "bank": bank}
    if facts.runtime_bytes:
        held["runtime"] = facts.runtime_bytes
    return _Place(stage, group, secondary, held)


def shard_group_of(config: RunConfig, facts: Facts) -> int:
    """Processes that share one copy of the run's backbone; raises UserError where it does not fit."""
    return _place(config, facts).shard_group


def _flops_per_token(facts: Facts) -> float:
    """4 N: forward and the gradient of activations, none of frozen weights; three passes of causal attention.

    Where the head alone learns there is no backward pass through the backbone.
    """
    weights, attention = (4.0, 6.0) if facts.learns_inside else (2.0, 2.0)
    work = weights * facts.layer_parameters + attention * facts.hidden_size * facts.mean_tokens
    return facts.layers * work


def warn_if_nothing_eight_bit(zero: ZeroConfig, plan: RunPlan | ForwardPlan, env: DistEnv) -> None:
    """Warns where 8 bits were asked for and every process holds a whole copy, which is never in 8 bits."""
    if zero.quantized_weights and not plan.eight_bit and env.is_main:
        logger.warning(
            "zero.quantized_weights: no effect, a whole copy fits every process; zero.stage=3 shards it"
        )
