"""From an adapter folder to a `Predictor`: its backbone found again and loaded, the adapter put on it."""

from pathlib import Path

from lingo_ds.config.run_config import PredictConfig
from lingo_ds.data.prompt import make_prompt
from lingo_ds.data.task import Task
from lingo_ds.data.tokenization import make_tokenize
from lingo_ds.distributed import agreement, process_group
from lingo_ds.distributed.process_group import DistEnv
from lingo_ds.evaluation.predictor import Predictor
from lingo_ds.export.open_adapter import OpenedAdapter, open_adapter
from lingo_ds.models.adapted_model import AdaptedModel
from lingo_ds.models.adapters.bank import AdapterBank
from lingo_ds.models.backbone.backbone import DTYPE_NAMES, BackboneOptions, compute_dtype, load_backbone
from lingo_ds.models.backbone.deepspeed_config import read_profile
from lingo_ds.models.backbone.tokenizer import read_tokenizer
from lingo_ds.planning.memory import plan_forward, require_quantizable
from lingo_ds.planning.plan import warn_if_nothing_eight_bit
from lingo_ds.planning.plan_inputs import gather_processes, model_facts
from lingo_ds.utils.errors import Mistake, UserError
from lingo_ds.utils.files import default_cache


def make_predictor(folder: Path, config: PredictConfig, env: DistEnv) -> Predictor:
    """Loads an adapter and its backbone on all processes.

    Raises:
        UserError: where the adapter is damaged, its backbone is missing or another one, or does not fit.
    """
    use = config.backbone

    def opened() -> OpenedAdapter:
        return open_adapter(
            folder, backbone=use.path, cache=default_cache(),
            revision=use.revision, trust_remote_code=use.trust_remote_code,
        )  # fmt: skip

    agreement.run_once_per_host(opened, env)  # downloads, or makes what is embedded
    with agreement.errors_raised_on_all(env):
        saved, spec = opened()
        quantization = saved.card.backbone.quantization if use.quantization == "auto" else use.quantization
        require_quantizable(quantization, config.zero)
        tokenizer = read_tokenizer(spec.folder, trust_remote_code=use.trust_remote_code)
        profile = read_profile(config.zero, env)
    agreement.require_equal(saved.card.model_dump_json(), "--adapter", env)
    _require_no_columns(saved.card.task, folder)
    task, dtype = saved.card.task, compute_dtype(use.dtype, env.device)
    if task.pair_separator is not None:
        rule, fix = "was trained on pairs of sequences, which predict does not read", "run evaluate instead"
        raise UserError(Mistake("--adapter", folder, rule, fix), on_all=True)
    facts = model_facts(
        spec, saved.layout, dtype, gather_processes(env),
        quantization=quantization, eight_bit=config.zero.quantized_weights,
    )  # fmt: skip
    plan = plan_forward(
        facts, config.zero, packing=config.packing, longest=task.max_length,
        tokens=config.batch_tokens, device=env.device.type,
    )  # fmt: skip
    warn_if_nothing_eight_bit(config.zero, plan, env)
    ds_config = None
    if plan.zero_stage == 3:
        ds_config = facts.deepspeed_config(
            profile, micro_batch_size=1, dtype=DTYPE_NAMES[dtype], secondary_group=plan.secondary_group
        )
    options = BackboneOptions(
        packed=plan.packed,
        liger=use.fused_kernels == "liger",
        quantization=quantization,
        ds_config=ds_config,
        shard_group=plan.shard_group,
        eight_bit=plan.eight_bit,
    )
    backbone = load_backbone(spec, options, dtype=dtype, env=env)
    bank = AdapterBank(
        saved.layout, scale=saved.alpha / saved.rank, dtype=dtype, device=env.device,
        scalars=0, importance=False,
    )  # fmt: skip
    bank.master.copy_(process_group.broadcast_(saved.values.to(env.device)))
    bank.refresh()
    model = AdaptedModel(
        backbone, bank, pooling=saved.card.pooling, dropout=0.0, shared_inputs=spec.shared_inputs
    )
    return Predictor(
        model,
        tokenize=make_tokenize(task.tokens, tokenizer, vocabulary=spec.embedding_shape[0]),
        task=task,
        causal=spec.causal,
        plan=plan,
        env=env,
        average_strands=saved.card.average_strands,
    )


def _require_no_columns(task: Task, folder: Path) -> None:
    """Sequences to predict come alone, without the columns that a template may read."""
    if columns := make_prompt(task.template, domain=task.domain).columns:
        rule = f"was trained with a template that reads columns of the data ({', '.join(columns)})"
        raise UserError(Mistake("--adapter", folder, rule, "train one whose data.prefix names no column"))
