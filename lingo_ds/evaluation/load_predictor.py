"""From an adapter folder to a `Predictor`: its backbone is found and loaded, the adapter attached."""

from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from lingo_ds.config.run_config import PredictConfig
from lingo_ds.data.prompt import make_prompt
from lingo_ds.data.task import Task
from lingo_ds.data.tokenization import make_tokenize
from lingo_ds.distributed import agreement, process_group
from lingo_ds.distributed.process_group import DistEnv
from lingo_ds.evaluation.predictor import Predictor
from lingo_ds.export.adapter_card import SavedAdapter
from lingo_ds.export.adapter_folder import find_adapter
from lingo_ds.export.open_adapter import find_backbone_of, open_adapter, require_same_tokens
from lingo_ds.models.adapted_model import AdaptedModel
from lingo_ds.models.adapters.bank import AdapterBank
from lingo_ds.models.backbone.backbone import DTYPE_NAMES, BackboneOptions, compute_dtype, load_backbone
from lingo_ds.models.backbone.deepspeed_config import read_profile
from lingo_ds.models.backbone.spec import BackboneSpec
from lingo_ds.models.backbone.tokenizer import read_tokenizer
from lingo_ds.planning.memory import ForwardPlan, plan_forward, require_quantizable
from lingo_ds.planning.plan import warn_if_nothing_eight_bit
from lingo_ds.planning.plan_inputs import gather_processes, model_facts
from lingo_ds.planning.remedies import remedy_of_loading
from lingo_ds.utils.errors import Mistake, UserError
from lingo_ds.utils.files import default_cache
from lingo_ds.utils.out_of_memory import report_out_of_memory


class PredictorSource(NamedTuple):
    """All that is read before the weights of the backbone.

    Attributes:
        adapter: the adapter.
        spec: the shapes of its backbone.
        quantization: `none`, `int8` or `nf4`.
        tokenizer: the backbone's tokenizer.
        profile: DeepSpeed's settings as the profile has them.
    """

    adapter: SavedAdapter
    spec: BackboneSpec
    quantization: str
    tokenizer: Any
    profile: dict[str, Any]


def locate_adapter(adapter: Path, env: DistEnv) -> Path:
    """The folder of an adapter, see `find_adapter`, on all processes; one of each host downloads it.

    Raises:
        UserError: on every process, where there is none.
    """
    agreement.run_once_per_host(lambda: find_adapter(adapter), env)
    with agreement.errors_raised_on_all(env):
        return find_adapter(adapter)


def make_predictor(folder: Path, config: PredictConfig, env: DistEnv) -> Predictor:
    """Loads an adapter, or that of a run's folder, and its backbone on all processes.

    Raises:
        UserError: where the adapter is damaged, its backbone is missing or another one, or does not fit.
    """
    return build_predictor(read_source(locate_adapter(folder, env), config, env), config, env)


def build_predictor(source: PredictorSource, config: PredictConfig, env: DistEnv) -> Predictor:
    """Loads the backbone of an adapter that was read, on all processes.

    Raises:
        UserError: where it does not fit into memory.
    """
    adapter, spec = source.adapter, source.spec
    task = adapter.card.task
    dtype = compute_dtype(
        config.backbone.dtype,
        env.device,
        hidden_size=spec.hidden_size,
        quantization=source.quantization,
    )
    plan, options = _plan(source, dtype, config, env)
    remedy = partial(remedy_of_loading, config.zero, stage=plan.zero_stage, processes=env.world_size)
    with report_out_of_memory("loading the backbone", remedy):
        backbone = load_backbone(spec, options, dtype=dtype, env=env)
    model = AdaptedModel(
        backbone,
        _make_bank(adapter, dtype, env),
        pooling=adapter.card.pooling,
        dropout=0.0,
        shared_inputs=spec.shared_inputs,
    )
    return Predictor(
        model,
        tokenize=make_tokenize(task.tokens, source.tokenizer, vocabulary=spec.embedding_shape[0]),
        task=task,
        causal=spec.causal,
        plan=plan,
        env=env,
        average_strands=adapter.card.average_strands,
    )


def read_source(folder: Path, config: PredictConfig, env: DistEnv) -> PredictorSource:
    """Reads the same adapter on all processes, and finds and checks its backbone; no weight of it is read.

    Raises:
        UserError: where the adapter is damaged, or its backbone is missing, none, or another one.
    """
    use = config.backbone
    where: dict[str, Any] = {
        "backbone": use.path,
        "cache": default_cache(),
        "revision": use.revision,
        "trust_remote_code": use.trust_remote_code,
    }
    agreement.run_once_per_host(lambda: find_backbone_of(folder, **where), env)
    with agreement.errors_raised_on_all(env):
        adapter, spec = open_adapter(folder, **where)
        quantization = adapter.card.backbone.quantization if use.quantization == "auto" else use.quantization
        require_quantizable(quantization, config.zero)
        tokenizer = read_tokenizer(spec.folder, trust_remote_code=use.trust_remote_code)
        require_same_tokens(adapter.card, tokenizer, spec)
        profile = read_profile(config.zero, env)
    agreement.require_equal(adapter.card.model_dump_json(), "--adapter", env)
    _require_lone_sequences(adapter.card.task, folder)
    return PredictorSource(adapter, spec, quantization, tokenizer, profile)


def _require_lone_sequences(task: Task, folder: Path) -> None:
    """Raises for a task that reads more than a sequence: a second one, or columns that its template names."""
    if columns := make_prompt(task.template, domain=task.domain).columns:
        rule = f"was trained with a template that reads columns of the data ({', '.join(columns)})"
        fix = "train one whose data.prefix names no column"
        raise UserError(Mistake("--adapter", folder, rule, fix), on_all=True)
    if task.pair_separator is not None:
        rule, fix = "was trained on pairs of sequences, which predict does not read", "run evaluate instead"
        raise UserError(Mistake("--adapter", folder, rule, fix), on_all=True)


def _plan(
    source: PredictorSource, dtype: torch.dtype, config: PredictConfig, env: DistEnv
) -> tuple[ForwardPlan, BackboneOptions]:
    """How much goes into a forward, and how the backbone is loaded for it."""
    facts = model_facts(
        source.spec,
        source.adapter.layout,
        dtype,
        gather_processes(env),
        quantization=source.quantization,
        eight_bit=config.zero.quantized_weights,
    )
    plan = plan_forward(
        facts,
        config.zero,
        packing=config.packing,
        longest=source.adapter.card.task.max_length,
        tokens=config.batch_tokens,
        device=env.device.type,
    )
    warn_if_nothing_eight_bit(config.zero, plan, env)
    ds_config = None
    if plan.zero_stage == 3:
        ds_config = facts.deepspeed_config(
            source.profile,
            micro_batch_size=1,
            dtype=DTYPE_NAMES[dtype],
            secondary_group=plan.secondary_group,
        )
    options = BackboneOptions(
        packed=plan.packed,
        fused_kernels=config.backbone.fused_kernels,
        quantization=source.quantization,
        ds_config=ds_config,
        shard_group=plan.shard_group,
        eight_bit=plan.eight_bit,
    )
    return plan, options


def _make_bank(adapter: SavedAdapter, dtype: torch.dtype, env: DistEnv) -> AdapterBank:
    """The adapter as global rank 0 read it, on every process."""
    bank = AdapterBank(
        adapter.layout,
        scale=adapter.alpha / adapter.rank,
        dtype=dtype,
        device=env.device,
        scalars=0,
        importance=False,
    )
    bank.master.copy_(process_group.broadcast_(adapter.values.to(env.device)))
    bank.refresh()
    return bank
