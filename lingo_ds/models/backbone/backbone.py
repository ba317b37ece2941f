"""Backbone: the frozen language model as the rest of the project sees it, whole or sharded."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lingo_ds.distributed import numerics, process_group
from lingo_ds.distributed.process_group import DistEnv
from lingo_ds.models.backbone.expert_weights import recompute_experts
from lingo_ds.models.backbone.families import READS_EMBEDDING
from lingo_ds.models.backbone.frozen_linear import freeze_maps
from lingo_ds.models.backbone.fused import FusedKernels, fuse
from lingo_ds.models.backbone.gathers import GatherState
from lingo_ds.models.backbone.own_code import last_hidden_state
from lingo_ds.models.backbone.pack_places import PackPlaces, Pooled, find_places
from lingo_ds.models.backbone.packed_attention import choose_kernel
from lingo_ds.models.backbone.quantized_linear import held_by_maps, quantize_maps
from lingo_ds.models.backbone.spec import BackboneSpec
from lingo_ds.models.backbone.weight_files import WeightFiles, fill_whole
from lingo_ds.models.ops.compiled import has_bf16, processor_features
from lingo_ds.models.ops.host_memory import keep_no_holes

if TYPE_CHECKING:
    from lingo_ds.models.backbone.packed_forward import PackedForward
    from lingo_ds.models.backbone.padded_masks import UnreadMasks
    from lingo_ds.models.backbone.zero import ShardedModule


DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


BF16_WIDTH = 512
"""Hidden size from which a CPU with bf16 instructions is faster in bf16 (`benchmarks/dtypes.py`)."""


def compute_dtype(
    name: str, device: torch.device, *, hidden_size: int, quantization: str = "none"
) -> torch.dtype:
    """The dtype behind `backbone.dtype`.

    auto: bf16 on GPUs that have it, else fp16; on CPUs that have it bf16 for wide models, else fp32.
    """
    if name != "auto":
        return DTYPES[name]
    if device.type != "cuda":
        wide = hidden_size >= BF16_WIDTH and quantization == "none"  # bitsandbytes' products gain nothing
        return torch.bfloat16 if wide and has_bf16(processor_features()) else torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


@dataclass(frozen=True)
class BackboneOptions:
    """How a backbone is loaded.

    Attributes:
        activation_checkpointing: recompute a layer in the backward pass instead of keeping its activations.
        packed: load a model for packs, which takes no padded batches.
        fused_kernels: what norms, gates and rotary positions are computed by, see `fuse`.
        quantization: `none`, or `int8` or `nf4` of the linear maps of a whole copy.
        ds_config: DeepSpeed's settings, without any `auto`: the weights are sharded; None: a whole copy.
        shard_group: processes that share one copy of sharded weights; None: all.
        eight_bit: hold and gather sharded maps in 8 bits, see `lingo_ds.models.backbone.eight_bit`.
        embedding_rows: rows of the input embedding that are wanted whole here, whoever holds them.
    """

    activation_checkpointing: bool = False
    packed: bool = False
    fused_kernels: FusedKernels = "auto"
    quantization: str = "none"
    ds_config: dict[str, Any] | None = None
    shard_group: int | None = None
    eight_bit: bool = False
    embedding_rows: tuple[int, ...] = ()


class Backbone:
    """A frozen language model that turns token ids into hidden states.

    Attributes:
        module: the transformers base model; `AdaptedSites` replaces forwards of its linear maps.
        embedding_rows: (rows, size) fp32, the rows of the input embedding that the options name.
        layers: number of decoder layers.
        state_sizes: width of the hidden states that layers read, and of those behind the last.
    """

    def __init__(
        self,
        spec: BackboneSpec,
        options: BackboneOptions,
        *,
        shards: "ShardedModule | None",
        embedding_rows: Tensor,
        dtype: torch.dtype,
        device: torch.device,
    ):
        """Wraps the filled skeleton of `spec`, whose weights are whole or `shards`.

        Args:
            spec: the shapes, and the module.
            options: how it was loaded.
            shards: its weights, where they are sharded.
            embedding_rows: see the attribute.
            dtype: what it computes in.
            device: where it computes.
        """
        self.module, self.embedding_rows = spec.skeleton, embedding_rows
        self._shards, self._first_position = shards, spec.first_position
        self.layers, self.state_sizes = spec.layers, (spec.hidden_size, spec.output_size)
        self._causal, self._no_cache = spec.causal, {"use_cache": False} if spec.causal else {}
        self._packed: PackedForward | None = None
        self._masks: UnreadMasks | None = None
        if options.packed:
            from lingo_ds.models.backbone import packed_forward  # imports what models are built of

            self._packed = packed_forward.PackedForward(self.module, spec.last_layer)
            self._kernel = choose_kernel(spec, dtype, device)
            # The last layer is computed for one token that sees all of its example. Flash attention takes it
            # as the last of its keys, which an example's first token is not where there are windows.
            self._first_is_enough = not spec.causal and not (spec.windows_ahead and self._kernel == "flash")
        elif spec.packable and device.type == "cuda" and spec.softcap is None and not spec.windows_ahead:
            from lingo_ds.models.backbone import padded_masks

            self._masks = padded_masks.UnreadMasks(self.module, causal=spec.causal)
        if options.activation_checkpointing:
            self.module.gradient_checkpointing_enable({"use_reentrant": False})
        self.module.eval()

    def hidden_states(self, input_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
        """Last hidden states, (batch, length, output_size).

        Args:
            input_ids: (batch, length) token ids, padded on the right.
            attention_mask: (batch, length), 1 on real tokens; None: all are real.
        """
        if self._masks:
            attention_mask = self._masks.given(input_ids, attention_mask)
        output = self.module(input_ids=input_ids, attention_mask=attention_mask, **self._no_cache)
        return last_hidden_state(self.module, output)

    def pack_places(self, prefix: int, lengths: Sequence[int], *, pooled: Pooled | None) -> PackPlaces:
        """The places of a pack on the CPU: any thread may ask for them, ahead of the forward.

        Args:
            prefix: tokens of the shared prefix, 0 for none.
            lengths: own tokens of each example.
            pooled: the token of each example whose hidden state is used; None: all are.
        """
        assert self._packed is not None, "a backbone that was loaded for padded batches"
        return find_places(
            prefix,
            lengths,
            kernel=self._kernel,
            pooled=pooled,
            shortened=pooled == "last" or (pooled == "first" and self._first_is_enough),
            first_position=self._first_position,
        )

    def packed_states(self, input_ids: Tensor, packs: Sequence[PackPlaces]) -> Tensor:
        """Last hidden states of packs, (tokens, output_size); of a shortened last layer, 0 elsewhere.

        Args:
            input_ids: (tokens,) of all packs, of each the shared prefix, then every example's own tokens.
            packs: the places of each, on the same device.
        """
        assert self._packed is not None, "a backbone that was loaded for padded batches"
        positions = self._packed.begin(packs)
        row = input_ids.unsqueeze(0)
        output = self.module(input_ids=row, position_ids=positions, **self._no_cache)
        hidden: Tensor = last_hidden_state(self.module, output)
        return hidden.squeeze(0)

    def train(self, mode: bool = True) -> None:
        """Switches adapter dropout and activation checkpointing; the frozen weights have no dropout."""
        if self.module.training != mode:  # a Llama of 32 layers has 421 modules to go through
            self.module.train(mode)

    def held_entries(self) -> int:
        """Number of the weights' entries that this process holds now."""
        if self._shards:
            return self._shards.held_entries()
        return sum(p.numel() for p in self.module.parameters()) + held_by_maps(self.module)[0]

    def held_bytes(self) -> int:
        """Bytes of these entries."""
        if self._shards:
            return self._shards.held_bytes()
        width = next(self.module.parameters()).element_size()
        quantized, size = held_by_maps(self.module)
        return (self.held_entries() - quantized) * width + size

    def release(self) -> None:
        """Frees weights that a forward gathered for a backward pass which does not come."""
        if self._shards:
            self._shards.release()

    def start(self) -> GatherState:
        """The state in which the next forward and backward pass find a sharded backbone's weights."""
        return self._shards.start() if self._shards else GatherState.STEADY

    def require_partitioned(self) -> None:
        """Checks, between steps, that no weight stayed whole on this process."""
        whole = self._shards.gathered_weights() if self._shards else []
        assert not whole, f"{len(whole)} weights stayed gathered, e.g. {whole[0]}"


def load_backbone(
    spec: BackboneSpec, options: BackboneOptions, *, dtype: torch.dtype, env: DistEnv
) -> Backbone:
    """Loads the backbone: a whole copy on each process, or each process's ranges of sharded weights.

    Sharded, it is a call that every process makes at the same point, and joins the process group if need be.

    Raises:
        UserError: where the files do not fit the config, or liger-kernel cannot be used.
    """
    numerics.sum_in_full_precision()
    device = env.device
    if device.type == "cpu":
        keep_no_holes(spec.layer_parameters * dtype.itemsize)
    files = WeightFiles(Path(spec.folder), spec.skeleton)
    for name, buffer in spec.skeleton.named_buffers():
        if name in files.keys:  # persistent buffers come with the checkpoint
            buffer.copy_(files.shaped(name))
    embedding_rows = files.rows(f"{spec.embedding}.weight", options.embedding_rows)
    shards = None
    if options.ds_config is None:
        if options.quantization != "none":
            quantize_maps(spec, files, options.quantization, dtype=dtype, device=device)
        fill_whole(spec.skeleton, files, dtype=dtype, device=device)
        module: nn.Module = spec.skeleton  # transformers' own `to` has no type for a device
        module.to(device)
    else:
        shards = _shard(spec, files, options, dtype=dtype, env=env)
    freeze_maps(spec, dtype=dtype, device=device, sharded=shards is not None)
    fuse(spec, options.fused_kernels, dtype=dtype, device=device)
    return Backbone(spec, options, shards=shards, embedding_rows=embedding_rows, dtype=dtype, device=device)


def _shard(
    spec: BackboneSpec, files: WeightFiles, options: BackboneOptions, *, dtype: torch.dtype, env: DistEnv
) -> "ShardedModule":
    """Fills the skeleton with this process's ranges of its shard group's copy."""
    from lingo_ds.models.backbone import zero  # deepspeed is slow to import: whole copies do without

    assert options.quantization == "none", "quantised maps are not sharded"
    assert options.ds_config is not None
    process_group.start(env)
    group = process_group.shard_group(options.shard_group or env.world_size, env)
    shards = zero.shard(
        spec,
        files,
        ds_config=options.ds_config,
        group=group,
        dtype=dtype,
        device=env.device,
        eight_bit=options.eight_bit,
    )
    recompute_experts(spec.skeleton)
    if spec.model_type in READS_EMBEDDING:
        spec.skeleton.register_forward_pre_hook(_embed, with_kwargs=True)
    return shards


def _embed(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], Any]:
    """Looks the tokens up ahead of a model's forward, which then leaves the embedding's weight alone."""
    embedded = module.get_input_embeddings()(kwargs.pop("input_ids"))
    return args, kwargs | {"inputs_embeds": embedded}
