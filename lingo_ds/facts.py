"""What a plan starts from: facts of the data, of the backbone with its adapters, and of the machine."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from lingo_ds.config.run_config import RunConfig
from lingo_ds.data.packing import common_prefix
from lingo_ds.data.pipeline import learned_tokens
from lingo_ds.data.tokenized import TokenizedData
from lingo_ds.distributed import agreement
from lingo_ds.distributed.process_group import DistEnv
from lingo_ds.models.adapters.hooks import choose_sites
from lingo_ds.models.adapters.layout import BankLayout, Site, uniform_layout
from lingo_ds.models.backbone.quantized_linear import quantized_facts
from lingo_ds.models.backbone.spec import BackboneSpec
from lingo_ds.planning.layer import HEAPS, layer_shape
from lingo_ds.utils.host import host_bytes


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


def data_facts(config: RunConfig, spec: BackboneSpec, data: TokenizedData) -> dict[str, Any]:
    """The fields of `Facts` that the data decides."""
    train = data.splits["train"]
    read = train.both_strands() if config.data.augments else train
    shares = config.data.packing == "auto" and spec.packable and spec.causal
    return {
        "train_rows": len(train),
        "dev_rows": len(data.splits["dev"]),
        "test_rows": len(data.splits["test"]),
        "longest": data.longest,
        "shared_prefix": common_prefix(read, np.arange(len(read))) if shares else 0,
        "mean_tokens": float(train.lengths.mean()),
    }


def model_facts(
    spec: BackboneSpec,
    layout: BankLayout,
    dtype: torch.dtype,
    env: DistEnv,
    *,
    quantization: str,
    eight_bit: bool,
) -> dict[str, int | bool]:
    """The fields of `ModelFacts`, the same on all processes."""
    shares = agreement.share_from_all([_memory_bytes(env), env.local_world_size], env)
    memory, local_world_size = (min(values) for values in zip(*shares, strict=True))
    return facts_on(
        spec, layout, dtype, device=env.device.type, quantization=quantization, eight_bit=eight_bit,
        world_size=env.world_size, local_world_size=local_world_size, memory_bytes=memory,
    )  # fmt: skip


def facts_on(
    spec: BackboneSpec,
    layout: BankLayout,
    dtype: torch.dtype,
    *,
    device: str,
    quantization: str,
    eight_bit: bool,
    **processes: int,
) -> dict[str, int | bool]:
    """The fields of `ModelFacts` on a `device` (`cpu` or `cuda`), with `processes` by their fields.

    `quantization` is that of whole copies, `eight_bit` says whether shards are held in 8 bits.
    """
    shape = layer_shape(spec, layout.sites, max(layout.ranks, default=0))
    return {
        "backbone_parameters": spec.parameters,
        "layer_parameters": spec.layer_parameters,
        "layers": spec.layers,
        "hidden_size": spec.hidden_size,
        "ffn_size": spec.ffn_size,
        "sites": len(layout.sites),
        "bank_parameters": layout.size,
        "head_parameters": layout.head_size,
        "token_parameters": layout.token_size,
        "kept_in_layer": math.ceil(shape.kept(dtype.itemsize) * HEAPS[device].kept),
        "compute_bytes": dtype.itemsize,
        "packable": spec.packable,
        "causal": spec.causal,
        "eight_bit_parameters": sum(map(math.prod, spec.linear_maps.values())) if eight_bit else 0,
        **processes,
        **quantized_facts(spec.linear_maps, quantization),
    }


def _memory_bytes(env: DistEnv) -> int:
    """Memory that this process may use: its GPU's, or its share of the host's or of the container's limit."""
    if env.device.type == "cuda":
        return torch.cuda.get_device_properties(env.device).total_memory
    return host_bytes() // env.local_world_size
