"""From a config to all that a run knows before a weight is loaded: files, shapes, data, plan."""

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lingo_ds.config.known_tasks import require_folder
from lingo_ds.config.run_config import RunConfig
from lingo_ds.data.builtin import make_builtin_data
from lingo_ds.data.pipeline import (
    Reading,
    learned_tokens,
    length_limit,
    log_data_summary,
    require_tokens,
    tokenized_data,
)
from lingo_ds.data.task import Task, task_of
from lingo_ds.data.tokenization import letter_ids
from lingo_ds.data.tokenized import TokenizedData
from lingo_ds.distributed import agreement
from lingo_ds.distributed.process_group import DistEnv
from lingo_ds.models.adapters.layout import BankLayout, Site
from lingo_ds.models.backbone.backbone import compute_dtype
from lingo_ds.models.backbone.deepspeed_config import read_profile
from lingo_ds.models.backbone.families import LEARNS_TOKENS
from lingo_ds.models.backbone.fused import may_fuse
from lingo_ds.models.backbone.hub import backbone_folder, make_builtin_backbone
from lingo_ds.models.backbone.spec import BackboneSpec, read_spec
from lingo_ds.models.backbone.tokenizer import CachedTokenizer
from lingo_ds.models.backbone.weight_files import require_weights, weights_fingerprint
from lingo_ds.planning.automatic import remark_on_masks, with_numbers
from lingo_ds.planning.fleet import GroupSize, facts_of_group
from lingo_ds.planning.memory import require_quantizable
from lingo_ds.planning.plan import RunPlan, make_plan, warn_if_nothing_eight_bit
from lingo_ds.planning.plan_inputs import (
    Facts,
    data_facts,
    gather_processes,
    layout_of,
    model_facts,
    sites_of,
)
from lingo_ds.utils.errors import Mistake, UserError
from lingo_ds.utils.files import default_cache, make_folder

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunFiles:
    """Where the inputs of a run lie on this host.

    Attributes:
        config: the run's settings.
        env: this process.
        cache: folder of everything that is made once per host.
        backbone: the backbone's folder.
    """

    config: RunConfig
    env: DistEnv
    cache: Path
    backbone: Path


@dataclass(frozen=True)
class RunShapes:
    """What the backbone's small files tell.

    Attributes:
        files: where they lie.
        spec: shapes of the backbone.
        fingerprint: fingerprint of its weights.
        sites: its adapted maps.
        max_length: tokens of the longest example.
        tokenizer: the backbone's tokenizer.
        reading: how it reads DNA in the run's prompt.
        letters: its tokens that learned embeddings of nucleotides start from; none for text.
        profile: DeepSpeed's settings before its `auto`s are filled in.
    """

    files: RunFiles
    spec: BackboneSpec
    fingerprint: str
    sites: list[Site]
    max_length: int
    tokenizer: CachedTokenizer
    reading: Reading
    letters: list[list[int]]
    profile: dict[str, Any]


@dataclass(frozen=True)
class RunData:
    """The examples of a run, and what is learned from them.

    Attributes:
        shapes: the backbone they were tokenised for.
        data: token ids and labels of every split.
        task: what the outputs mean.
    """

    shapes: RunShapes
    data: TokenizedData
    task: Task


@dataclass(frozen=True)
class RunSetup:
    """What a run knows before any weight is loaded.

    Attributes:
        layout: where each adapter lies in the bank.
        plan: every derived number.
        dtype: precision of the computation.
        config, env: as in `RunFiles`.
        spec, tokenizer, letters, sites, profile: as in `RunShapes`.
        tokens: how the tokenizer reads DNA, see `tokens_fingerprint`.
        task, data: as in `RunData`.
        backbone_fingerprint: fingerprint of the backbone's weights.
    """

    config: RunConfig
    env: DistEnv
    spec: BackboneSpec
    tokenizer: CachedTokenizer
    tokens: str
    letters: list[list[int]]
    task: Task
    data: TokenizedData
    sites: list[Site]
    layout: BankLayout
    plan: RunPlan
    profile: dict[str, Any]
    dtype: torch.dtype
    backbone_fingerprint: str

    @property
    def resolved_config(self) -> RunConfig:
        """The config with this plan's numbers in place of `auto`."""
        plan = self.plan
        return with_numbers(self.config, learning_rate=plan.learning_rate, schedule=plan.schedule)


def prepare(config: RunConfig, env: DistEnv, *, group: GroupSize | None = None) -> RunSetup:
    """Finds files, reads and tokenises the data once per host, and makes the plan; call on all processes.

    Args:
        config: the run's settings.
        env: this process.
        group: processes of the group that the run is planned for; None: all.

    Raises:
        UserError: for every mistake in config or input that can be seen without loading weights.
    """
    files = find_files(config, env)
    shapes = read_backbone_shapes(files)  # before any data are converted, which may take hours
    find_data(files)
    data = read_data(shapes)
    setup = plan_run(data, group)
    return agree(setup)


def find_files(config: RunConfig, env: DistEnv) -> RunFiles:
    """Finds or downloads the backbone, once per host."""
    cache = config.data.cache_dir or default_cache()
    agreement.run_once_per_host(lambda: make_folder(cache, setting="data.cache_dir"), env)

    use = config.backbone

    def backbone() -> Path:
        return backbone_folder(
            use.path, revision=use.revision, cache=cache, trust_remote_code=use.trust_remote_code
        )

    def find() -> None:
        make_builtin_backbone(use.path, cache)
        backbone()

    agreement.run_once_per_host(find, env)
    with agreement.errors_raised_on_all(env):
        require_quantizable(use.quantization, config.zero)
        return RunFiles(config, env, cache, backbone())


def read_backbone_shapes(files: RunFiles) -> RunShapes:
    """Reads the backbone's shapes and tokenizer, checks its weight files, and derives what needs no data."""
    config, trusted = files.config, files.config.backbone.trust_remote_code
    with agreement.errors_raised_on_all(files.env):
        spec = read_spec(files.backbone, trust_remote_code=trusted, cache=files.cache)
        fingerprint = weights_fingerprint(spec.folder)
        require_weights(spec, fingerprint, cache=files.cache)
        sites = sites_of(config, spec)
        max_length = length_limit(config, context=spec.context)
        _require_learnable(config, spec)
        tokenizer = CachedTokenizer(spec.folder, trust_remote_code=trusted, cache=files.cache)
        reading = require_tokens(config, tokenizer, vocabulary=spec.embedding_shape[0], cache=files.cache)
        letters: list[list[int]] = []
        if learned_tokens(config):
            letters = letter_ids(tokenizer.loaded, vocabulary=spec.embedding_shape[0])
        profile = read_profile(config.zero, files.env)
    return RunShapes(files, spec, fingerprint, sites, max_length, tokenizer, reading, letters, profile)


def find_data(files: RunFiles) -> None:
    """Finds the data, once per host; those that are built in are made where they are missing."""
    config = files.config.data

    def find() -> None:
        make_builtin_data(config.path, files.cache)
        require_folder(config.task, path=config.path, root=config.root)

    agreement.run_once_per_host(find, files.env)


def read_data(shapes: RunShapes) -> RunData:
    """Reads and tokenises the examples, and checks that all hosts hold the same data and backbone."""
    files, spec = shapes.files, shapes.spec
    config, env = files.config, files.env
    data = tokenized_data(
        config,
        shapes.tokenizer,
        vocabulary=spec.embedding_shape[0],
        max_length=shapes.max_length,
        cache=files.cache,
        env=env,
    )
    task = task_of(config, data, max_length=shapes.max_length)
    if env.is_main:
        log_data_summary(data, task, around=shapes.reading.around)
    agreement.require_equal(data.fingerprint, "data.path", env)
    agreement.require_equal(shapes.fingerprint, "backbone.path", env)
    return RunData(shapes, data, task)


def plan_run(read: RunData, group: GroupSize | None = None) -> RunSetup:
    """Derives every number of the run; `group` is as for `prepare`."""
    shapes, files = read.shapes, read.shapes.files
    config, env, spec = files.config, files.env, shapes.spec
    if config.data.packing == "auto" and spec.target_names and not spec.packable and env.is_main:
        logger.warning("family %s takes no packs: batches are padded", spec.model_type)
    layout = layout_of(config, spec, shapes.sites, outputs=read.data.classes)
    dtype = compute_dtype(
        config.backbone.dtype,
        env.device,
        hidden_size=spec.hidden_size,
        quantization=config.backbone.quantization,
    )
    model = model_facts(
        spec,
        layout,
        dtype,
        gather_processes(env),
        quantization=config.backbone.quantization,
        eight_bit=config.zero.quantized_weights,
        dropout=config.adapter.dropout,
        fused=may_fuse(spec, config.backbone.fused_kernels, dtype, env.device.type),
    )
    facts = Facts.of(model, data_facts(config, spec, read.data))
    return RunSetup(
        config=config,
        env=env,
        spec=spec,
        tokenizer=shapes.tokenizer,
        tokens=shapes.reading.fingerprint,
        letters=shapes.letters,
        task=read.task,
        data=read.data,
        sites=shapes.sites,
        layout=layout,
        plan=make_plan(config, facts if group is None else facts_of_group(config, facts, group)),
        profile=shapes.profile,
        dtype=dtype,
        backbone_fingerprint=shapes.fingerprint,
    )


def agree(setup: RunSetup) -> RunSetup:
    """Checks that all processes made the same plan, and returns it."""
    config, plan, env = setup.config, setup.plan, setup.env
    agreement.require_equal(json.dumps(plan.to_dict()), "plan", env)
    warn_if_nothing_eight_bit(config.zero, plan, env)
    remark = remark_on_masks(config.rank_sampling, plan.schedule, steps=plan.steps)
    if remark and env.is_main:
        logger.warning("%s", remark)
    return setup


def _require_learnable(config: RunConfig, spec: BackboneSpec) -> None:
    """Checks that the input embedding is known, or only looks rows up, as nucleotide tokens need it."""
    known = spec.model_type in LEARNS_TOKENS or spec.plain_embedding
    if learned_tokens(config) and not known:
        rule = f"is not known to work with the embedding of family {spec.model_type}"
        fix = f"set text, or choose one of {', '.join(sorted(LEARNS_TOKENS))}"
        raise UserError(Mistake("data.tokens", config.data.tokens, rule, fix))
