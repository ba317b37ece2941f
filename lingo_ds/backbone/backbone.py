"""Backbone: the frozen language model as the rest of the project sees it, whole or sharded."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lingo_ds.backbone.load import WeightFiles, fill_whole
from lingo_ds.backbone.spec import BackboneSpec

if TYPE_CHECKING:
    from lingo_ds.backbone.zero import ShardedModule


DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def compute_dtype(name: str, device: torch.device) -> torch.dtype:
    """The dtype behind `backbone.dtype`; auto: bf16 on GPUs that have it, else fp16; fp32 on CPU."""
    if name != "auto":
        return DTYPES[name]
    if device.type != "cuda":
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


class Backbone:
    """A frozen language model that turns token ids into hidden states.

    Attributes:
        module: the transformers base model; adapters hook onto its linear maps.
    """

    def __init__(self, module: nn.Module, *, shards: "ShardedModule | None", activation_checkpointing: bool):
        self.module, self._shards = module, shards
        if activation_checkpointing:
            module.gradient_checkpointing_enable({"use_reentrant": False})
        module.eval()

    def hidden_states(self, input_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
        """Last hidden states, (batch, length, output_size).

        Args:
            input_ids: (batch, length) token ids.
            attention_mask: (batch, length), 1 on real tokens; None: all are real.
        """
        return self.module(
            input_ids=input_ids, attention_mask=attention_mask, use_cache=False
        ).last_hidden_state

    def train(self, mode: bool = True) -> None:
        """Switches adapter dropout and activation checkpointing; the frozen weights have no dropout."""
        self.module.train(mode)

    def held_entries(self) -> int:
        """Entries of the weights that this process holds now."""
        return (
            self._shards.held_entries() if self._shards else sum(p.numel() for p in self.module.parameters())
        )

    def release(self) -> None:
        """After a forward without backward: lets go of weights that were gathered for a backward pass."""
        if self._shards:
            self._shards.release()

    def require_partitioned(self) -> None:
        """Checks, between steps, that no weight stayed whole on this process."""
        whole = self._shards.gathered_weights() if self._shards else []
        assert not whole, f"{len(whole)} weights stayed gathered, e.g. {whole[0]}"


def load_backbone(
    spec: BackboneSpec,
    *,
    dtype: torch.dtype,
    device: torch.device,
    activation_checkpointing: bool,
    ds_config: dict[str, Any] | None,
    group: dist.ProcessGroup | None,
) -> Backbone:
    """Loads the weights: a whole copy, or with `ds_config` this process's ranges of it.

    Raises:
        UserError: where the files do not fit the config.
    """
    files = WeightFiles(Path(spec.folder), spec.skeleton)
    for name, buffer in spec.skeleton.named_buffers():
        if name in files.keys:  # persistent buffers come with the checkpoint
            buffer.copy_(files.read(name).view_as(buffer))
    if ds_config is None:
        fill_whole(spec.skeleton, files, dtype=dtype, device=device)
        shards = None
        spec.skeleton.to(device)
    else:
        from lingo_ds.backbone import zero  # deepspeed is slow to import, and one process may do without

        shards = zero.shard(spec, files, ds_config=ds_config, group=group, dtype=dtype, device=device)
    return Backbone(spec.skeleton, shards=shards, activation_checkpointing=activation_checkpointing)
