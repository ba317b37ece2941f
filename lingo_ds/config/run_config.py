"""RunConfig: a run's settings, typed and documented. Reading it touches no network and only its own file."""

import re
import warnings
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from lingo_ds.config.data_config import DataConfig, PackingMode
from lingo_ds.config.fields import MAX_COUNT, BelowOne, Duration, Epochs, PositiveInt, Section, rule_error
from lingo_ds.config.task_config import METRICS, SelectionConfig, TaskConfig, check_fits


class BackboneUse(Section):
    """The frozen language model, as far as an adapter that knows its own needs it."""

    path: str | None = Field(None, description="Folder or hub id. null: where the adapter was trained on it.")
    revision: str | None = Field(None, description="Branch, tag or commit of a hub id.")
    dtype: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto",
        description="Compute type of backbone and adapters. "
        "auto: bf16 on GPUs that have it, else fp16; fp32 on CPU.",
    )
    fused_kernels: Literal["off", "liger"] = Field(
        "off",
        description="Norms, rotary positions and gates. off: transformers' own; "
        "liger: liger-kernel's, on a GPU.",
    )
    quantization: Literal["auto", "none", "int8", "nf4"] = Field(
        "auto", description="As `backbone.quantization` of a run. auto: as the adapter was trained."
    )
    trust_remote_code: bool = Field(False, description="Run model code that comes with the backbone's files.")


class BackboneConfig(BackboneUse):
    """The frozen language model."""

    path: str = Field(description="Local Hugging Face folder, hub id, or `builtin:english`.")
    quantization: Literal["none", "int8", "nf4"] = Field(
        "none",
        description="Of the frozen maps inside the layers, by bitsandbytes; in whole copies (ZeRO stage 0). "
        "int8: by rows (arXiv 2208.07339); nf4: 4 bits, double quantisation (QLoRA, arXiv 2305.14314).",
    )
    activation_checkpointing: bool = Field(
        False,
        description="Recompute a decoder layer in the backward pass instead of keeping its activations.",
    )


class AdapterConfig(Section):
    """The low-rank adapters."""

    method: Literal["svd", "lora", "none"] = Field(
        "svd",
        description="svd: P diag(lam) Q of AdaLoRA (arXiv 2303.10512); lora: P Q of LoRA (arXiv 2106.09685), "
        "without rank sampling; none: the head alone learns (a linear probe).",
    )
    init: Literal["lora", "adalora"] = Field(
        "lora",
        description="Start of new adapters, the identity either way. lora: P = 0, lam = 1, Q uniform: every "
        "triplet learns from the first step; adalora: lam = 0, P and Q ~ N(0, 0.02^2).",
    )
    rank: PositiveInt = Field(8, description="Initial rank r0 of every site.")
    alpha: Annotated[float, Field(gt=0)] = Field(
        16.0, description="The adapter's output is scaled by alpha / r0."
    )
    dropout: BelowOne = Field(0.0, description="Dropout on the adapter's input.")
    targets: str | list[str] = Field(
        "all-linear",
        description="`all-linear` (the family's maps), a list of names, or one regex on full names.",
    )

    @field_validator("targets")
    @classmethod
    def _targets(cls, value: str | list[str]) -> str | list[str]:
        if not value:
            raise rule_error("names no map", "write all-linear, a list of names or a regex")
        if isinstance(value, str) and value != "all-linear":
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("error")  # of what a later Python will read otherwise
                    re.compile(value)
            except (re.error, OverflowError, RecursionError, Warning) as error:
                raise rule_error(
                    f"is not a regular expression ({error})", "correct it, or write a list"
                ) from None
        return value


class HeadConfig(Section):
    """The classifier on top, trained with the adapters."""

    pooling: Literal["last", "mean", "first"] = Field(
        "last",
        description="Which hidden state is classified: the last real token, the mean, or the first token.",
    )


class RankSamplingConfig(Section):
    """Adaptive rank sampling (arXiv 2402.08075): a shrinking triplet budget, some given back by chance."""

    mode: Literal["exact", "bernoulli", "deterministic", "reference", "off"] = Field(
        "exact",
        description="exact: budget met at every mask; bernoulli: the paper's draw, met on average; "
        "deterministic: the best by score; reference: the published code; off: no masks.",
    )
    target_rank: PositiveInt = Field(4, description="Average rank per site after the final mask.")
    min_rank: Annotated[int, Field(ge=0, le=MAX_COUNT)] = Field(
        0, description="Triplets that every site keeps at least."
    )
    rho: BelowOne = Field(0.1, description="Probability that a kept triplet leaves.")
    rho_final: BelowOne | None = Field(
        0.0, description="rho decays linearly to this at the final mask. null: constant."
    )
    reintroduction: Literal["uniform", "score"] = Field(
        "score",
        description="How the triplets that come back are drawn: alike, or in proportion to the score.",
    )
    interval: PositiveInt = Field(20, description="Steps between masks.")
    t_init: Duration = Field(
        0.1, description="Warm-up with all triplets, in steps or as a fraction of the run."
    )
    t_final: Duration = Field(
        0.5, description="Last steps at the target, in steps or as a fraction of the run."
    )
    pruned_value: Literal["hold", "zero"] = Field(
        "hold",
        description="hold: a pruned triplet keeps its values; "
        "zero: lam is set to 0 and may regrow (AdaLoRA).",
    )
    orthogonality: Annotated[float, Field(ge=0)] = Field(
        0.0, description="Weight gamma of the penalty on ||P^T P - I|| and ||Q Q^T - I||."
    )
    beta1: Annotated[float, Field(gt=0, lt=1)] = Field(0.85, description="Average of the sensitivity.")
    beta2: Annotated[float, Field(gt=0, lt=1)] = Field(0.85, description="Average of the uncertainty.")
    audit_interval: PositiveInt = Field(100, description="Steps between comparisons of all processes' banks.")
    on_divergence: Literal["repair", "raise"] = Field(
        "repair",
        description="What an audit that finds a difference does: broadcast from global rank 0, or stop.",
    )


class TrainConfig(Section):
    """Batch, length, optimizer."""

    global_batch_size: PositiveInt = Field(32, description="Examples per optimizer step, over all processes.")
    micro_batch_size: PositiveInt | None = Field(
        None,
        description="Examples per forward on one process at most. "
        "null: as many as the plan's memory estimate allows.",
    )
    micro_batch_tokens: PositiveInt | None = Field(
        None,
        description="Tokens per forward on one process, with packing; a longer example has a pack to itself. "
        "null: the most that the plan's memory estimate allows.",
    )
    num_epochs: Epochs = Field(4, description="Passes over the training split.")
    max_steps: PositiveInt | None = Field(
        None, description="Length of the run in steps; overrides num_epochs."
    )
    learning_rate: Annotated[float, Field(gt=0)] = Field(3e-3, description="Peak learning rate of AdamW.")
    lr_schedule: Literal["linear", "cosine", "constant"] = Field(
        "linear", description="Decay after the warm-up."
    )
    warmup: Duration = Field(
        0.05, description="Steps, or fraction of the run, in which the rate rises linearly."
    )
    weight_decay: Annotated[float, Field(ge=0)] = Field(0.0, description="AdamW's decoupled weight decay.")
    adam_betas: tuple[BelowOne, BelowOne] = Field((0.9, 0.999), description="AdamW's averages.")
    adam_eps: Annotated[float, Field(gt=0)] = Field(1e-8, description="AdamW's epsilon.")
    max_grad_norm: Annotated[float, Field(gt=0)] | None = Field(
        1.0, description="Clip to this norm. null: no clipping."
    )
    max_skipped: PositiveInt = Field(
        20, description="Steps in a row whose gradient is not finite after which the run ends."
    )
    timeout: Annotated[float, Field(gt=0)] = Field(
        900,
        description="Seconds in which no process gets on, after which the job ends and says who hangs.",
    )
    eval_steps: PositiveInt | None = Field(None, description="Evaluate on dev every so many steps.")
    eval_epochs: Epochs | None = Field(
        None, description="Evaluate on dev every so many epochs. Neither set: every epoch."
    )
    early_stopping: PositiveInt | None = Field(
        None, description="Stop after so many evaluations in a row without a better dev metric. null: never."
    )

    @model_validator(mode="after")
    def _one_rhythm(self) -> Self:
        if self.eval_steps is not None and self.eval_epochs is not None:
            raise rule_error(
                "stands beside train.eval_epochs",
                "keep one of them",
                field="train.eval_steps",
                value=self.eval_steps,
            )
        return self


class ZeroConfig(Section):
    """How the frozen weights are spread."""

    stage: Literal["auto", 0, 3] = Field(
        "auto",
        description="3: sharded by DeepSpeed ZeRO-3; 0: a copy on every process; auto: 0 where a copy fits.",
    )
    shard_group: Literal["auto"] | PositiveInt = Field(
        "auto", description="Processes that share one copy. auto: the smallest group whose memory holds it."
    )
    hpz: Literal["auto", "off"] | PositiveInt = Field(
        "auto",
        description="Where a shard group reaches over hosts: processes of one host that hold a second copy, "
        "from which weights are gathered. auto: where memory has room for it.",
    )
    quantized_weights: bool = Field(
        False,
        description="Where the backbone is sharded, its maps are held and gathered in 8 bits; they are a "
        "little different for it.",
    )
    profile: str | None = Field(
        None,
        description="DeepSpeed JSON: a name in ds_configs or a path. null: zero3 on GPUs, zero3_cpu on CPU.",
    )
    nvme_path: Path | None = Field(
        None, description="Folder on a local disk, for the weights of a profile that offloads to NVMe."
    )

    @field_validator("stage", mode="before")
    @classmethod
    def _stage(cls, value: Any) -> Any:
        return int(value) if value in ("0", "3") else value


class CheckpointConfig(Section):
    """What a stopped run goes on from."""

    every: PositiveInt | None = Field(None, description="Steps between checkpoints. null: none are written.")
    keep_last: PositiveInt = Field(2, description="Newest checkpoints that stay on disk.")
    keep_best: bool = Field(
        True,
        description="With `every`: write one at each new best step on dev too, and keep the last of these.",
    )
    resume: str = Field(
        "auto", description="auto: from the newest of an unfinished run; never; or a checkpoint folder."
    )


class RunConfig(Section):
    """All settings of one run."""

    name: Annotated[str, Field(pattern=r"^\w[\w.-]*$")] = Field(description="Names the run and its folder.")
    seed: Annotated[int, Field(ge=0, lt=2**63)] = Field(
        0, description="Of initial values, order and rank sampling."
    )
    output_dir: Path | None = Field(None, description="Everything the run writes. null: runs/<name>.")
    backbone: BackboneConfig
    data: DataConfig
    task: TaskConfig = TaskConfig()
    adapter: AdapterConfig = AdapterConfig()
    head: HeadConfig = HeadConfig()
    rank_sampling: RankSamplingConfig = RankSamplingConfig()
    train: TrainConfig = TrainConfig()
    selection: SelectionConfig = SelectionConfig()
    zero: ZeroConfig = ZeroConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()

    @model_validator(mode="after")
    def _method(self) -> Self:
        if self.adapter.method == "svd":
            return self
        if self.adapter.init != "lora":
            raise rule_error(
                f"needs adapter.method svd, not {self.adapter.method}",
                "set adapter.init=lora",
                field="adapter.init",
                value=self.adapter.init,
            )
        for name, allowed in (("mode", "off"), ("orthogonality", 0.0)):
            if (value := getattr(self.rank_sampling, name)) != allowed:
                raise rule_error(
                    f"needs adapter.method svd, not {self.adapter.method}",
                    f"set rank_sampling.{name}={allowed}",
                    field=f"rank_sampling.{name}",
                    value=value,
                )
        return self

    @model_validator(mode="after")
    def _ranks(self) -> Self:
        if self.rank_sampling.mode != "off" and self.rank_sampling.target_rank > self.adapter.rank:
            raise rule_error(
                f"is above adapter.rank {self.adapter.rank}",
                "lower it, raise adapter.rank, or set rank_sampling.mode=off",
                field="rank_sampling.target_rank",
                value=self.rank_sampling.target_rank,
            )
        if self.rank_sampling.min_rank > self.rank_sampling.target_rank:
            raise rule_error(
                f"is above rank_sampling.target_rank {self.rank_sampling.target_rank}",
                "lower it or raise target_rank",
                field="rank_sampling.min_rank",
                value=self.rank_sampling.min_rank,
            )
        return self

    @model_validator(mode="after")
    def _task(self) -> Self:
        check_fits(self.task, self.selection, self.data.label_column)
        return self

    @property
    def metric(self) -> str:
        """The dev metric by which the adapter is selected."""
        metric = self.selection.metric
        return METRICS[self.task.family][0] if metric == "auto" else metric

    @property
    def run_dir(self) -> Path:
        """Folder of everything the run writes."""
        return self.output_dir or Path("runs") / self.name


class PredictConfig(Section):
    """The settings of `predict`: how the adapter is computed; all else is the adapter's own."""

    backbone: BackboneUse = BackboneUse()
    zero: ZeroConfig = ZeroConfig()
    packing: PackingMode = "auto"
    batch_tokens: PositiveInt | None = Field(
        None,
        description="Tokens per forward on one process; a longer sequence has one to itself. null: what "
        "memory allows, at most 4096 on CPU and 65536 on a GPU.",
    )
