"""A run planned for machines that are not here; the backbone's weights need not be here either."""

import logging
from dataclasses import dataclass
from pathlib import Path

import torch

from lingo_ds.config.known_tasks import require_folder
from lingo_ds.config.run_config import RunConfig
from lingo_ds.data.builtin import make_builtin_data
from lingo_ds.data.pipeline import length_limit, tokenized_data
from lingo_ds.distributed.process_group import DistEnv
from lingo_ds.models.adapters.layout import BankLayout, Site
from lingo_ds.models.backbone.backbone import DTYPES
from lingo_ds.models.backbone.deepspeed_config import read_profile
from lingo_ds.models.backbone.fused import may_fuse
from lingo_ds.models.backbone.hub import backbone_folder, make_builtin_backbone
from lingo_ds.models.backbone.spec import BackboneSpec, read_spec
from lingo_ds.models.backbone.tokenizer import CachedTokenizer
from lingo_ds.models.backbone.weight_files import require_weights, weights_fingerprint
from lingo_ds.planning.cost.machine import Machine
from lingo_ds.planning.cost.scenario import Scenario
from lingo_ds.planning.fleet import GroupSize, facts_of_group
from lingo_ds.planning.layer import layer_shape, mask_bytes
from lingo_ds.planning.plan import make_plan
from lingo_ds.planning.plan_inputs import (
    DataFacts,
    Facts,
    Processes,
    data_facts,
    layout_of,
    model_facts,
    sites_of,
)
from lingo_ds.planning.traffic import sharding_of_plan
from lingo_ds.utils.errors import Mistake, UserError
from lingo_ds.utils.files import default_cache, make_folder

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Lengths:
    """A description of data that is not on this machine.

    Attributes:
        rows: number of training examples.
        tokens: tokens of each example.
        shared: tokens that all examples begin with.
        outputs: number of classes, labels or values.
    """

    rows: int
    tokens: int
    shared: int = 0
    outputs: int = 2


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """The machines that a run is planned for: hosts with equally many processes."""

    hosts: int
    per_host: int
    machine: Machine
    device: str = "cuda"

    @property
    def world_size(self) -> int:
        """Number of processes."""
        return self.hosts * self.per_host

    @property
    def env(self) -> DistEnv:
        """The environment of the first process there."""
        return DistEnv(0, 0, self.world_size, self.per_host, torch.device(self.device, 0))


@dataclass(frozen=True, kw_only=True)
class Shapes:
    """The inputs of a plan that are the same on any machines and under any sharding."""

    spec: BackboneSpec
    sites: tuple[Site, ...]
    layout: BankLayout
    data: DataFacts


def read_shapes(config: RunConfig, env: DistEnv, lengths: Lengths | None) -> Shapes:
    """Reads the backbone's config.json, and the data unless `lengths` describes it.

    Raises:
        UserError: for mistakes in config or input.
    """
    cache = config.data.cache_dir or default_cache()
    make_folder(cache, setting="data.cache_dir")
    make_builtin_backbone(config.backbone.path, cache)
    use = config.backbone
    folder = backbone_folder(use.path, revision=use.revision, cache=cache, weights=False)
    spec = read_spec(folder, trust_remote_code=use.trust_remote_code, cache=cache)
    _warn_of_weights(spec, cache)
    sites = sites_of(config, spec)
    limit = length_limit(config, context=spec.context)
    outputs, data = _described(lengths, limit) if lengths else _read(config, spec, cache, limit, env)
    layout = layout_of(config, spec, sites, outputs=outputs)
    return Shapes(spec=spec, sites=tuple(sites), layout=layout, data=data)


def _warn_of_weights(spec: BackboneSpec, cache: Path) -> None:
    """Warns of weights that are here, which this plan does not need, and that training would refuse."""
    if any(spec.folder.glob("*.safetensors")):
        try:
            require_weights(spec, weights_fingerprint(spec.folder), cache=cache)
        except UserError as error:
            logger.warning("train would refuse the backbone: %s", error.mistakes[0])


def _described(lengths: Lengths, limit: int) -> tuple[int, DataFacts]:
    if lengths.tokens > limit:
        fix = "lower it, or set data.max_length"
        raise UserError(Mistake("--tokens", lengths.tokens, f"is above the limit of {limit} tokens", fix))
    if not 0 <= lengths.shared < lengths.tokens:
        rule = f"is not below the {lengths.tokens} tokens of an example"
        raise UserError(Mistake("--shared", lengths.shared, rule, "lower it"))
    held_out = max(1, lengths.rows // 10)
    return lengths.outputs, DataFacts(
        train_rows=lengths.rows,
        dev_rows=held_out,
        test_rows=held_out,
        longest=lengths.tokens,
        shared_prefix=lengths.shared,
        mean_tokens=float(lengths.tokens),
    )


def _read(
    config: RunConfig, spec: BackboneSpec, cache: Path, limit: int, env: DistEnv
) -> tuple[int, DataFacts]:
    make_builtin_data(config.data.path, cache)
    require_folder(config.data.task, path=config.data.path, root=config.data.root)
    tokenizer = CachedTokenizer(spec.folder, trust_remote_code=config.backbone.trust_remote_code, cache=cache)
    data = tokenized_data(
        config, tokenizer, vocabulary=spec.embedding_shape[0], max_length=limit, cache=cache, env=env
    )
    return data.classes, data_facts(config, spec, data)


def make_scenario(
    config: RunConfig, shapes: Shapes, cluster: Cluster, *, group: GroupSize | None = None
) -> Scenario:
    """The plan of a run on a cluster, and all that its time and memory follow from.

    Args:
        config: the run's settings.
        shapes: of its model and data.
        cluster: the machines.
        group: processes of the group that the run is planned for; None: all.

    Raises:
        UserError: for the same reasons as `make_plan`.
    """
    spec, machine = shapes.spec, cluster.machine
    name = config.backbone.dtype
    dtype = DTYPES[{"cuda": "bf16", "cpu": "fp32"}[cluster.device] if name == "auto" else name]
    processes = Processes(
        device=cluster.device,
        world_size=cluster.world_size,
        local_world_size=cluster.per_host,
        memory_bytes=machine.memory_bytes,
    )
    fused = may_fuse(spec, config.backbone.fused_kernels, dtype, cluster.device)
    model = model_facts(
        spec,
        shapes.layout,
        dtype,
        processes,
        quantization=config.backbone.quantization,
        eight_bit=config.zero.quantized_weights,
        dropout=config.adapter.dropout,
        fused=fused,
    )
    facts = Facts.of(model, shapes.data)
    plan = make_plan(config, facts if group is None else facts_of_group(config, facts, group))
    profile = read_profile(config.zero, cluster.env)
    return Scenario(
        plan=plan,
        layer=layer_shape(
            spec,
            shapes.sites,
            config.adapter.rank,
            fused=fused,
            mask=mask_bytes(config.adapter.dropout),
        ),
        weights=spec.weights,
        sharding=sharding_of_plan(plan, profile, dtype),
        machine=machine,
        checkpointing=config.backbone.activation_checkpointing,
        sampling=config.rank_sampling.mode != "off",
        offload="offload_param" in profile["zero_optimization"] and plan.zero_stage == 3,
    )
