"""From a config to all a run stands on: files found, data tokenised, plan made, backbone loaded, adapted."""

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lingo_ds.config.known_tasks import require_folder
from lingo_ds.config.run_config import RunConfig
from lingo_ds.data.builtin import make_builtin_data
from lingo_ds.data.pipeline import learned_tokens, length_limit, log_data_summary, tokenized_data
from lingo_ds.data.task import Task, task_of
from lingo_ds.data.tokenization import letter_ids
from lingo_ds.data.tokenized import TokenizedData
from lingo_ds.distributed import agreement, process_group
from lingo_ds.distributed.process_group import DistEnv
from lingo_ds.models.adapted_model import AdaptedModel
from lingo_ds.models.adapters.bank import AdapterBank, Scalar
from lingo_ds.models.adapters.layout import BankLayout, Site
from lingo_ds.models.backbone.backbone import (
    DTYPE_NAMES,
    Backbone,
    BackboneOptions,
    compute_dtype,
    load_backbone,
)
from lingo_ds.models.backbone.deepspeed_config import read_profile
from lingo_ds.models.backbone.families import LEARNS_TOKENS
from lingo_ds.models.backbone.hub import backbone_folder, make_builtin_backbone
from lingo_ds.models.backbone.spec import BackboneSpec, read_spec
from lingo_ds.models.backbone.tokenizer import CachedTokenizer
from lingo_ds.models.backbone.weight_files import weights_fingerprint
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
from lingo_ds.planning.traffic import Sharding, sharding_of_plan
from lingo_ds.utils.errors import Mistake, UserError
from lingo_ds.utils.files import default_cache, make_folder

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunSetup:
    """What a run knows before any weight is loaded.

    `letters` are the backbone's tokens that learned embeddings of nucleotides start from; none in text.
    """

    config: RunConfig
    env: DistEnv
    spec: BackboneSpec
    tokenizer: CachedTokenizer
    letters: list[list[int]]
    task: Task
    data: TokenizedData
    sites: list[Site]
    layout: BankLayout
    plan: RunPlan
    profile: dict[str, Any]
    dtype: torch.dtype
    backbone_fingerprint: str


def prepare(config: RunConfig, env: DistEnv) -> RunSetup:
    """Finds files, reads and tokenises the data once per host, and makes the plan.

    Raises:
        UserError: for every mistake in config or input that can be seen without loading weights.
    """
    cache = config.data.cache_dir or default_cache()
    agreement.run_once_per_host(lambda: make_folder(cache, setting="data.cache_dir"), env)

    def find_inputs() -> None:
        make_builtin_backbone(config.backbone.path, cache)
        make_builtin_data(config.data.path, cache)
        require_folder(config.data.task, path=config.data.path, root=config.data.root)
        _backbone_folder(config, cache)

    agreement.run_once_per_host(find_inputs, env)
    with agreement.errors_raised_on_all(env):
        require_quantizable(config.backbone.quantization, config.zero)
        spec = read_spec(
            _backbone_folder(config, cache),
            trust_remote_code=config.backbone.trust_remote_code,
            cache=cache,
        )
        sites = sites_of(config, spec)
        max_length = length_limit(config, context=spec.context)
        _require_learnable(config, spec)
        tokenizer = CachedTokenizer(
            spec.folder, trust_remote_code=config.backbone.trust_remote_code, cache=cache
        )
        letters = []
        if learned_tokens(config):
            letters = letter_ids(tokenizer.loaded, vocabulary=spec.embedding_shape[0])
        profile = read_profile(config.zero, env)
    data = tokenized_data(
        config, tokenizer, vocabulary=spec.embedding_shape[0], max_length=max_length, cache=cache, env=env
    )
    task = task_of(config, data, max_length=max_length)
    if env.is_main:
        log_data_summary(data, task)
    layout = layout_of(config, spec, sites, outputs=data.classes)
    dtype = compute_dtype(config.backbone.dtype, env.device)
    backbone_fingerprint = weights_fingerprint(spec.folder)
    agreement.require_equal(data.fingerprint, "data.path", env)
    agreement.require_equal(backbone_fingerprint, "backbone.path", env)
    if config.data.packing == "auto" and not spec.packable and env.is_main:
        logger.warning("family %s takes no packs: batches are padded", spec.model_type)
    facts = model_facts(
        spec, layout, dtype, gather_processes(env),
        quantization=config.backbone.quantization, eight_bit=config.zero.quantized_weights,
    )  # fmt: skip
    plan = make_plan(config, Facts.of(facts, data_facts(config, spec, data)))
    agreement.require_equal(json.dumps(plan.to_dict()), "plan", env)
    warn_if_nothing_eight_bit(config.zero, plan, env)
    return RunSetup(
        config, env, spec, tokenizer, letters, task, data, sites, layout, plan, profile, dtype,
        backbone_fingerprint,
    )  # fmt: skip


def build_model(setup: RunSetup) -> AdaptedModel:
    """Loads the backbone and puts a new bank on it, the same on every process."""
    backbone = load_backbone(setup.spec, backbone_options(setup), dtype=setup.dtype, env=setup.env)
    return adapt(setup, backbone)


def backbone_options(setup: RunSetup) -> BackboneOptions:
    """How a run needs its backbone loaded."""
    return setup.plan.backbone_options(
        setup.config.backbone,
        setup.profile,
        dtype=DTYPE_NAMES[setup.dtype],
        embedding_rows=[row for ids in setup.letters for row in ids],
    )


def sharding_numbers(setup: RunSetup) -> Sharding:
    """How the backbone lies, as the formula of traffic takes it."""
    return sharding_of_plan(setup.plan, setup.profile, setup.dtype)


def adapt(setup: RunSetup, backbone: Backbone) -> AdaptedModel:
    """Puts a new bank on a loaded backbone, the same on every process."""
    config, env, plan, letters = setup.config, setup.env, setup.plan, setup.letters
    bank = AdapterBank(
        setup.layout,
        scale=config.adapter.alpha / config.adapter.rank,
        dtype=setup.dtype,
        device=env.device,
        scalars=len(Scalar),
        importance=plan.schedule is not None,
    )
    if env.is_main:
        rows = backbone.embedding_rows.split([len(ids) for ids in letters])
        tokens = torch.stack([spelled.mean(0) for spelled in rows]) if letters else None
        bank.initialize(config.seed, init=config.adapter.init, tokens=tokens)
    process_group.broadcast_(bank.master)
    bank.refresh()
    return AdaptedModel(
        backbone,
        bank,
        pooling=config.head.pooling,
        dropout=config.adapter.dropout,
        shared_inputs=setup.spec.shared_inputs,
    )


def _require_learnable(config: RunConfig, spec: BackboneSpec) -> None:
    """Nucleotide tokens need an input embedding that only looks rows up."""
    if learned_tokens(config) and spec.model_type not in LEARNS_TOKENS:
        rule = f"is not known to work with family {spec.model_type}"
        fix = f"set text, or take one of {', '.join(sorted(LEARNS_TOKENS))}"
        raise UserError(Mistake("data.tokens", config.data.tokens, rule, fix))


def _backbone_folder(config: RunConfig, cache: Path) -> Path:
    return backbone_folder(config.backbone.path, revision=config.backbone.revision, cache=cache)
