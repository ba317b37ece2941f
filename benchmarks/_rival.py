"""The rival of `train_throughput`: Hugging Face's Trainer with PEFT's LoRA, under DeepSpeed ZeRO-3 or alone.

`deepspeed --num_accelerators N benchmarks/_rival.py SETTINGS.json`; every process writes what it saw to
`process-K.json` beside the settings.

Set so that it does the same work as fast as it can: tokenised before, nothing logged, saved or evaluated,
batches made in the process itself (a worker would compete for the same cores), DeepSpeed's own large buckets
and its threshold below which weights stay whole, and one gather per decoder layer instead of one per map.
"""

import json
import os
import sys
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from deepspeed.utils import set_z3_leaf_modules
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    get_linear_schedule_with_warmup,
    set_seed,
)
from transformers.trainer_pt_utils import get_length_grouped_indices

from lingo_ds.distributed import process_group
from lingo_ds.monitor.throughput import peak_device_bytes, peak_host_bytes

GROUPED_BATCHES = 50
"""Batches that grouping by length sorts together: transformers' value, which it lowers for a short epoch."""


class StepEnds(TrainerCallback):
    """Notes the wall time at the end of every step; a GPU is waited for where timing begins and ends."""

    def __init__(self, timed: Collection[int]):
        self.stamps: list[float] = []
        self._timed = timed

    def on_step_end(self, args, state, control, **kwargs) -> None:
        if torch.cuda.is_available() and state.global_step in self._timed:
            torch.cuda.synchronize()
        self.stamps.append(time.time())


class Rival(Trainer):
    """Takes the examples in a given order and keeps each step's loss and learning rate."""

    def __init__(self, *args: Any, order: list[int], steps: int, warmup: int, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._order, self._steps, self._warmup = order, steps, warmup
        self.losses: list[Tensor] = []
        self.rates: list[float] = []

    def _get_train_sampler(self, train_dataset=None) -> list[int]:
        return self._order

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None):
        self.lr_scheduler = schedule(optimizer or self.optimizer, warmup=self._warmup, steps=self._steps)
        return self.lr_scheduler

    def compute_loss(self, model: nn.Module, inputs: dict[str, Tensor], **kwargs: Any) -> Tensor:
        self.rates.append(self.lr_scheduler.get_last_lr()[0])
        loss = super().compute_loss(model, inputs, **kwargs)
        self.losses.append(loss.detach())
        return loss


def schedule(optimizer: torch.optim.Optimizer, *, warmup: int, steps: int) -> LambdaLR:
    """The usual linear one from its second value on: as ours, it gives no step a rate of 0."""
    made = get_linear_schedule_with_warmup(optimizer, warmup, steps + 1)
    made.step()
    return made


def join_job(device: str) -> None:
    """Makes accelerate see DeepSpeed on gloo or nccl, and ours and the rival start alike.

    Without this, accelerate either leaves DeepSpeed out (`use_cpu`) or takes each process for the only one.
    """
    process_group.start(process_group.detect())
    os.environ["ACCELERATE_USE_DEEPSPEED"] = "true"
    PartialState(backend="gloo" if device == "cpu" else "nccl")


def training_arguments(settings: dict[str, Any], folder: Path) -> TrainingArguments:
    """The settings in the Trainer's words."""
    on_cpu = settings["device"] == "cpu"
    deepspeed = {
        "train_micro_batch_size_per_gpu": "auto",
        "train_batch_size": "auto",
        "bf16": {"enabled": "auto"},
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "zero_optimization": {"stage": 3, "overlap_comm": False},
    }
    return TrainingArguments(
        output_dir=str(folder / "trainer"),
        deepspeed=deepspeed if settings["deepspeed"] else None,
        accelerator_config={"use_configured_state": settings["deepspeed"]},
        per_device_train_batch_size=settings["batch"],
        max_steps=settings["steps"],
        learning_rate=settings["learning_rate"],
        max_grad_norm=1.0,
        weight_decay=0.0,
        optim="adamw_torch_fused",
        use_cpu=on_cpu,
        bf16=settings["dtype"] == "bf16",
        seed=settings["seed"],
        average_tokens_across_devices=False,  # else the loss is multiplied by the number of processes
        dataloader_num_workers=0,
        dataloader_pin_memory=not on_cpu,
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )


def adapted_model(settings: dict[str, Any], pad_token_id: int) -> nn.Module:
    """PEFT's LoRA on a sequence classifier, sharded while it loads."""
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[settings["dtype"]]
    model = AutoModelForSequenceClassification.from_pretrained(
        settings["backbone"], num_labels=2, dtype=dtype, attn_implementation="sdpa"
    )
    model.config.pad_token_id, model.config.use_cache = pad_token_id, False
    if settings["deepspeed"]:
        set_z3_leaf_modules(model, list(model._no_split_modules))
        model.enable_input_require_grads()  # else the first layer's weights go before its backward pass
    config = LoraConfig(
        task_type="SEQ_CLS",
        r=settings["rank"],
        lora_alpha=settings["alpha"],
        lora_dropout=0.0,
        target_modules=settings["targets"],
    )
    # ZeRO-3 wants one dtype; alone the rival keeps its adapters in fp32, as ours does.
    return get_peft_model(model, config, autocast_adapter_dtype=not settings["deepspeed"])


def order_of_rows(settings: dict[str, Any], lengths: list[int]) -> list[int]:
    """As they come, or the timed ones grouped by length, as `train_sampling_strategy` groups a long epoch."""
    first, last = settings["timed_rows"]
    rows = list(range(len(lengths)))
    if settings["grouped"]:
        generator = torch.Generator().manual_seed(settings["seed"])
        grouped = get_length_grouped_indices(
            lengths[first:last], settings["batch"], mega_batch_mult=GROUPED_BATCHES, generator=generator
        )
        rows[first:last] = [first + k for k in grouped]
    return rows


def held_share(model: nn.Module) -> float:
    """Entries of the frozen weights that this process keeps between steps, over all of them."""
    frozen = [p for p in model.parameters() if not p.requires_grad]
    if not hasattr(frozen[0], "ds_numel"):
        return 1.0
    held = sum(p.ds_numel if p.ds_persist else p.ds_tensor.numel() for p in frozen)
    return held / sum(p.ds_numel for p in frozen)


def main(path: Path) -> None:
    settings = json.loads(path.read_text())
    if settings["deepspeed"]:
        join_job(settings["device"])
    set_seed(settings["seed"])
    tokenizer = AutoTokenizer.from_pretrained(settings["backbone"])
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    rows = json.loads(Path(settings["rows"]).read_text())
    args, ends = training_arguments(settings, path.parent), StepEnds(settings["timed_steps"])
    trainer = Rival(
        model=adapted_model(settings, tokenizer.pad_token_id),
        args=args,
        train_dataset=rows,
        data_collator=DataCollatorWithPadding(tokenizer),
        callbacks=[ends],
        order=order_of_rows(settings, [len(row["input_ids"]) for row in rows]),
        steps=settings["steps"],
        warmup=settings["warmup"],
    )
    trainer.train()
    trained = [p for p in trainer.model.parameters() if p.requires_grad]
    seen = {
        "stamps": ends.stamps,
        "losses": torch.stack(trainer.losses).tolist(),
        "rates": trainer.rates,
        "trainable": sum(getattr(p, "ds_numel", p.numel()) for p in trained),
        "held": held_share(trainer.model),
        "peak_host_bytes": peak_host_bytes(),
        "peak_device_bytes": peak_device_bytes(),
    }
    (path.parent / f"process-{args.process_index}.json").write_text(json.dumps(seen))
    process_group.stop()


if __name__ == "__main__":
    main(Path(next(arg for arg in sys.argv[1:] if arg.endswith(".json"))))
