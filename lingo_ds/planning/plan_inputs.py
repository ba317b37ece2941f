"""What a plan starts from: facts of the data, of the adapted model, and of the processes that hold it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch

from lingo_ds.config.run_config import RunConfig
from lingo_ds.data.packing import common_prefix
from lingo_ds.data.pipeline import learned_tokens
from lingo_ds.data.tokenized import TokenizedData
from lingo_ds.distributed import agreement
from lingo_ds.distributed.process_group import DistEnv
from lingo_ds.models.adapters.layout import BankLayout, Site, uniform_layout
from lingo_ds.models.adapters.sites import choose_sites
from lingo_ds.models.backbone.deepspeed_config import fill_profile
from lingo_ds.models.backbone.quantized_linear import quantized_facts
from lingo_ds.models.backbone.spec import BackboneSpec
from lingo_ds.planning.layer import HOLES, RUNTIME_BYTES, layer_shape, mask_bytes
from lingo_ds.utils.host import host_bytes

GPU_GRAIN = 256 * 1024**2
"""Bytes to whose multiple a GPU's free memory is rounded down, so that two runs on an idle one plan alike."""


@dataclass(frozen=True, kw_only=True)
class Processes:
    """The processes of a job, the same on all of them.

    Attributes:
        device: `cpu` or `cuda`.
        world_size: processes of the job.
        local_world_size: processes of one host; where hosts differ, of the smallest.
        memory_bytes: memory that one process may use; where they differ, the least.
    """

    device: str
    world_size: int
    local_world_size: int
    memory_bytes: int


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """Numbers of the adapted model and of the processes that will hold it.

    Attributes:
        backbone_parameters: entries of the frozen weights.
        layer_parameters: entries of the largest decoder layer.
        layers: number of decoder layers.
        hidden_size, ffn_size: widths of the residual stream and inside the feed-forward part.
        sites: number of adapted maps.
        bank_parameters: trainable entries of a new bank, head included.
        head_parameters: entries of the head, part of `bank_parameters`.
        token_parameters: entries of the learned tokens, part of `bank_parameters`.
        kept_in_layer: entries that one token keeps in a decoder layer for the backward pass, including the
            allocator's overhead; None: as many as `inside_layer`.
        runtime_bytes: what a process takes without the model.
        products: frozen products of different shape, forward and backward, whose compiled code is kept for
            every number of tokens that they met; 0: none is.
        compute_bytes: bytes per entry in the compute dtype.
        packable: whether the backbone's attention takes packs.
        causal: whether a token attends only to those before it, so that a prefix can be shared.
        world_size: processes of the job.
        local_world_size: processes of one host.
        memory_bytes: memory that one process may use.
        quantized_parameters: entries of the frozen maps that are held in int8 or nf4.
        quantized_bytes: bytes that these maps take.
        largest_quantized: entries of the largest of these maps.
        eight_bit_parameters: entries of the frozen maps that are held and gathered in 8 bits wherever the
            backbone is sharded.
    """

    backbone_parameters: int
    layer_parameters: int
    layers: int
    hidden_size: int
    ffn_size: int
    sites: int
    bank_parameters: int
    head_parameters: int
    compute_bytes: int
    packable: bool
    causal: bool
    world_size: int
    local_world_size: int
    memory_bytes: int
    token_parameters: int = 0
    quantized_parameters: int = 0
    quantized_bytes: int = 0
    largest_quantized: int = 0
    eight_bit_parameters: int = 0
    kept_in_layer: int | None = None
    runtime_bytes: int = 0
    products: int = 0

    @property
    def learns_inside(self) -> bool:
        """Whether a backward pass goes through the backbone: not where the head alone learns."""
        return self.sites > 0 or self.token_parameters > 0

    def packed_parameters(self, stage: int) -> int:
        """Entries of the frozen maps that are held in 8 bits at a ZeRO stage: whole copies are not."""
        return self.eight_bit_parameters if stage == 3 else 0

    def deepspeed_config(
        self, profile: Mapping[str, Any], *, micro_batch_size: int, dtype: str, secondary_group: int
    ) -> dict[str, Any]:
        """DeepSpeed's settings: the profile with every `auto` filled in.

        Args:
            profile: DeepSpeed's settings as the profile has them.
            micro_batch_size: examples per forward of one process.
            dtype: fp32, bf16 or fp16.
            secondary_group: processes of a host that hold a second copy; 1: there is none.
        """
        return fill_profile(
            profile,
            layer_parameters=self.layer_parameters,
            hidden_size=self.hidden_size,
            compute_bytes=self.compute_bytes,
            micro_batch_size=micro_batch_size,
            dtype=dtype,
            secondary_group=secondary_group,
        )

    @property
    def inside_layer(self) -> int:
        """Entries that one token has inside a decoder layer (a deliberate overestimate)."""
        return 12 * self.hidden_size + 5 * self.ffn_size


@dataclass(frozen=True, kw_only=True)
class DataFacts:
    """Numbers of the data.

    Attributes:
        train_rows, dev_rows, test_rows: examples per split.
        longest: tokens of the longest example.
        shared_prefix: tokens that all training examples begin with.
        mean_tokens: tokens per example, on average over the training split.
    """

    train_rows: int
    dev_rows: int
    test_rows: int
    longest: int
    shared_prefix: int
    mean_tokens: float


@dataclass(frozen=True, kw_only=True)
class Facts(DataFacts, ModelFacts):
    """Everything that the plan of a run starts from."""

    @classmethod
    def of(cls, model: ModelFacts, data: DataFacts) -> Self:
        """The facts of a model together with those of its data."""
        return cls(**vars(model), **vars(data))


def sites_of(config: RunConfig, spec: BackboneSpec) -> list[Site]:
    """The maps that a run adapts; none where the head alone learns.

    Raises:
        UserError: for a target that matches no map.
    """
    if config.adapter.method == "none":
        return []
    return choose_sites(spec.linear_maps, targets=config.adapter.targets, family_default=spec.target_names)


def layout_of(config: RunConfig, spec: BackboneSpec, sites: Sequence[Site], *, outputs: int) -> BankLayout:
    """The bank that a run begins with."""
    learned = learned_tokens(config)
    return uniform_layout(
        sites,
        rank=config.adapter.rank,
        head_shape=(outputs, spec.output_size),
        has_lam=config.adapter.method == "svd",
        token_shape=(learned, spec.embedding_shape[1]) if learned else (0, 0),
    )


def data_facts(config: RunConfig, spec: BackboneSpec, data: TokenizedData) -> DataFacts:
    """Counts and lengths of tokenised data."""
    train = data.splits["train"]
    read = train.both_strands() if config.data.augments else train
    shares = config.data.packing == "auto" and spec.packable and spec.causal
    return DataFacts(
        train_rows=len(train),
        dev_rows=len(data.splits["dev"]),
        test_rows=len(data.splits["test"]),
        longest=data.longest,
        shared_prefix=common_prefix(read, np.arange(len(read))) if shares else 0,
        mean_tokens=float(train.lengths.mean()),
    )


def gather_processes(env: DistEnv) -> Processes:
    """The processes of this job: each says what it has, and all get the least."""
    gathered = agreement.all_gather_json([_memory_bytes(env), env.local_world_size], env)
    memory, local_world_size = (min(values) for values in zip(*gathered, strict=True))
    return Processes(
        device=env.device.type,
        world_size=env.world_size,
        local_world_size=local_world_size,
        memory_bytes=memory,
    )


def model_facts(
    spec: BackboneSpec,
    layout: BankLayout,
    dtype: torch.dtype,
    processes: Processes,
    *,
    quantization: str,
    eight_bit: bool,
    dropout: float = 0.0,
    fused: bool = False,
) -> ModelFacts:
    """Sizes of a backbone with its adapters, on the processes that will hold it.

    Args:
        spec: shapes of the backbone.
        layout: the bank that learns.
        dtype: the compute dtype.
        processes: who holds the model.
        quantization: none, int8 or nf4: how whole copies are held.
        eight_bit: whether shards are held in 8 bits.
        dropout: probability with which the adapters drop an entry of their input.
        fused: whether norms and gates are one kernel each.
    """
    mask = mask_bytes(dropout)
    shape = layer_shape(spec, layout.sites, max(layout.ranks, default=0), fused=fused, mask=mask)
    return ModelFacts(
        backbone_parameters=spec.parameters,
        layer_parameters=spec.layer_parameters,
        layers=spec.layers,
        hidden_size=spec.hidden_size,
        ffn_size=spec.ffn_size,
        sites=len(layout.sites),
        bank_parameters=layout.size,
        head_parameters=layout.head_size,
        token_parameters=layout.token_size,
        kept_in_layer=math.ceil(shape.kept(dtype.itemsize) * HOLES[processes.device]),
        runtime_bytes=RUNTIME_BYTES[processes.device],
        products=2 * len(set(spec.linear_maps.values())) if processes.device == "cpu" else 0,
        compute_bytes=dtype.itemsize,
        packable=spec.packable,
        causal=spec.causal,
        eight_bit_parameters=sum(map(math.prod, spec.linear_maps.values())) if eight_bit else 0,
        world_size=processes.world_size,
        local_world_size=processes.local_world_size,
        memory_bytes=processes.memory_bytes,
        **quantized_facts(spec.linear_maps, quantization),
    )


def _memory_bytes(env: DistEnv) -> int:
    """Memory that this process may use: of its GPU, or its share of the host's or of the container's limit.

    Of a GPU it is what is free, and what torch has taken for this process: other jobs and this process's own
    context are left out, and a backbone that is loaded already counts as memory of the next run of a suite.
    """
    if env.device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(env.device)
        return (free + torch.cuda.memory_reserved(env.device)) // GPU_GRAIN * GPU_GRAIN
    return host_bytes() // env.local_world_size
