"""How long and how fast a run learns, and what it can be resumed from: the sections `train`, `checkpoint`."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from lingo_ds.config.fields import BelowOne, Duration, Epochs, PathText, PositiveInt, Section, rule_error


class TrainConfig(Section):
    """Batches, length of the run, and the optimizer."""

    global_batch_size: PositiveInt = Field(32, description="Examples per optimizer step, over all processes.")
    micro_batch_size: PositiveInt | None = Field(
        None,
        description="Most examples per forward pass on one process. "
        "null: as many as the plan's memory estimate allows.",
    )
    micro_batch_tokens: PositiveInt | None = Field(
        None,
        description="Most tokens per forward pass on one process, with packing; a longer example has a pack "
        "to itself. null: as many as the plan's memory estimate allows.",
    )
    num_epochs: Epochs = Field(4, description="Passes over the training split.")
    max_steps: PositiveInt | None = Field(
        None, description="Length of the run in steps. null: as num_epochs says, which it overrides."
    )
    learning_rate: Annotated[float, Field(gt=0)] | Literal["auto"] = Field(
        "auto",
        description="Peak learning rate of AdamW. auto: by the backbone's hidden size and adapter.alpha, as "
        "the plan says.",
    )
    lr_schedule: Literal["linear", "cosine", "constant"] = Field(
        "linear", description="Shape of the learning rate's decay after the warm-up."
    )
    warmup: Duration = Field(
        0.05,
        description="Part of the run in which the learning rate rises linearly, in steps or as a fraction.",
    )
    weight_decay: Annotated[float, Field(ge=0)] = Field(0.0, description="Decoupled weight decay of AdamW.")
    adam_betas: tuple[BelowOne, BelowOne] = Field(
        (0.9, 0.999), description="Decay of AdamW's averages of the gradient and of its square, per step."
    )
    adam_eps: Annotated[float, Field(gt=0)] = Field(1e-8, description="Epsilon in AdamW's denominator.")
    max_grad_norm: Annotated[float, Field(gt=0)] | None = Field(
        1.0, description="Norm to which a larger gradient is clipped. null: no clipping."
    )
    max_skipped: PositiveInt = Field(
        20,
        description="Number of steps in a row with a gradient that is not finite, after which the run ends.",
    )
    on_collapse: Literal["warn", "restart"] = Field(
        "warn",
        description="Reaction to a loss that is back at chance after the run had learned. warn: say so once; "
        "restart: go back to the best checkpoint, or to the start, with half the learning rate, three times "
        "at most.",
    )
    deterministic: bool = Field(
        False,
        description="Whether the same run gives the same bits each time on a GPU too, where sums are else "
        "added in any order. It takes slower forms of some operations.",
    )
    timeout: Annotated[float, Field(gt=0)] = Field(
        900,
        description="Seconds without progress of any process, after which the job ends and names the process "
        "that hangs.",
    )
    eval_steps: PositiveInt | None = Field(
        None, description="Steps between two evaluations on dev. null: as eval_epochs says."
    )
    eval_epochs: Epochs | None = Field(
        None,
        description="Epochs between two evaluations on dev. null: as eval_steps says, or each epoch where "
        "neither is set.",
    )
    early_stopping: PositiveInt | None = Field(
        None,
        description="Number of evaluations in a row without a better dev metric, after which the run ends. "
        "null: never.",
    )

    @model_validator(mode="after")
    def _one_rhythm(self) -> Self:
        if self.eval_steps is not None and self.eval_epochs is not None:
            raise rule_error(
                "cannot be combined with train.eval_epochs",
                "set only one",
                field="train.eval_steps",
                value=self.eval_steps,
            )
        return self


class CheckpointConfig(Section):
    """What a stopped run is resumed from."""

    every: PositiveInt | None = Field(
        None, description="Steps between two checkpoints. null: none are written."
    )
    keep_last: PositiveInt = Field(2, description="Number of newest checkpoints that stay on disk.")
    keep_best: bool = Field(
        True,
        description="Whether, with `every`, one is written at each new best step on dev too, of which the "
        "last is kept.",
    )
    resume: PathText = Field(
        "auto",
        description="auto: resume from the newest checkpoint of an unfinished run; never: start anew; or the "
        "folder of a checkpoint.",
    )
