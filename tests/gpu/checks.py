"""What is checked on a card: functions that tests call there, and `tests/pretend` on a pretend one."""

import contextlib
import json
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from transformers import PreTrainedConfig

from benchmarks.make_backbone import config_of, make
from lingo_ds.data.batches import attention_mask
from lingo_ds.models.backbone.backbone import BackboneOptions
from lingo_ds.models.backbone.flash_support import is_flash
from lingo_ds.training.trainer import Hook, StepInfo, Trainer
from lingo_ds.utils.transfer import to_device
from tests.pretend.runs import train
from tests.pretend.test_families import (
    LENGTHS,
    Case,
    adapted_model,
    distances,
    logits_and_gradients,
    some_pack,
    write_model,
)

CPU, CARD = torch.device("cpu"), torch.device("cuda", 0)


class FamilySeen(NamedTuple):
    """Relative distances from packs in fp32 on the CPU.

    Attributes:
        packed: of a pack's logits, and of the gradients of all adapters, in bf16 on the card.
        padded: of the padded batch's logits in bf16 on the card.
        of_cpu: as `packed`, in bf16 on the CPU.
    """

    packed: tuple[float, float]
    padded: float
    of_cpu: tuple[float, float]


def packed_beside_padded(configs: Mapping[str, PreTrainedConfig], folder: Path) -> dict[str, FamilySeen]:
    """Every family by flash attention over a pack, and by transformers' own over a padded batch."""
    seen = {}
    for name, config in configs.items():
        path, case = write_model(config, folder / name), Case("last", 9, False)
        exact = logits_and_gradients(path, CPU, torch.float32, case)
        packed = logits_and_gradients(path, CARD, torch.bfloat16, case)
        of_cpu = logits_and_gradients(path, CPU, torch.bfloat16, case)
        model = adapted_model(path, CARD, torch.bfloat16, BackboneOptions(), pooling=case.pooling)
        ids, prefix = some_pack(path, case)
        rows = [torch.cat([ids[:prefix], own]) for own in ids[prefix:].split(LENGTHS)]
        lengths = torch.tensor([len(row) for row in rows])
        batch = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        inputs = (batch, attention_mask(lengths, batch.shape[1]), lengths)
        with torch.no_grad():
            logits = model.padded_logits(*to_device(inputs, CARD)).float().cpu()
        padded = float((logits - exact[0]).norm() / exact[0].norm())
        seen[name] = FamilySeen(distances(packed, exact), padded, distances(of_cpu, exact))
    return seen


def flash_takes(head_size: int) -> bool:
    """Whether packs of bf16 with heads of that size are computed by flash attention here."""
    return is_flash(torch.bfloat16, head_size, CARD)


class WaitsSeen(NamedTuple):
    """Of one step: waits that torch warned of, and packs."""

    waits: list[str]
    packs: int


@contextlib.contextmanager
def around_steps(before: Callable[[int], None], after: Callable[[StepInfo], None]) -> Iterator[None]:
    """Inside, `before` and `after` are called next to every training step, before all other observers."""
    steps = Trainer.steps

    def observed(self: Trainer, *args: Any, **how: Any) -> Any:
        self.hooks.insert(0, Hook(after, before=before))
        return steps(self, *args, **how)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "steps", observed)
        yield


def waits_of_steps(data: Path, out: Path, *settings: str) -> list[WaitsSeen]:
    """Trains under `torch.cuda.set_sync_debug_mode("warn")`: one entry for each step but the first two."""
    seen: list[WaitsSeen] = []

    def before(step: int) -> None:
        if step > 2:  # the first ones allocate, and set up what later ones use again
            caught.clear()
            torch.cuda.set_sync_debug_mode("warn")

    def after(info: StepInfo) -> None:
        torch.cuda.set_sync_debug_mode("default")
        if info.step > 2:
            waits = [f"{one.filename}:{one.lineno}" for one in caught if "synchroniz" in str(one.message)]
            seen.append(WaitsSeen(waits, info.micro_batches))

    with warnings.catch_warnings(record=True) as caught, around_steps(before, after):
        warnings.simplefilter("always")
        train(data, out, "rank_sampling.mode=off", *settings)
    return seen


class MemorySeen(NamedTuple):
    """Most bytes beyond those that stay, of all steps but the first, and bytes of one layer."""

    beyond: int
    layer: int


def memory_of_gathers(
    data: Path, out: Path, *settings: str, hidden: int = 1024, layers: int = 16
) -> MemorySeen:
    """Trains with weights on the host, recomputing: what the card then holds are gathered layers."""
    shape = {
        "model_type": "llama",
        "vocab_size": 128,
        "hidden_size": hidden,
        "intermediate_size": 3 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": hidden // 64,
        "num_key_value_heads": hidden // 64,
        "max_position_embeddings": 1024,
    }
    out.mkdir()
    (out / "config.json").write_text(json.dumps(shape))
    config = config_of(str(out / "config.json"))
    make(out / "backbone", config, dtype=torch.bfloat16, shard_bytes=10**9, seed=0)
    beyond, start = [], [0]

    def before(step: int) -> None:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        start[0] = torch.cuda.memory_allocated()

    def after(info: StepInfo) -> None:
        torch.cuda.synchronize()
        if info.step > 1:
            beyond.append(torch.cuda.max_memory_allocated() - start[0])

    sharded = ["zero.stage=3", "zero.profile=zero3_offload", "backbone.activation_checkpointing=true"]
    with around_steps(before, after):
        train(data, out / "run", f"backbone.path={out / 'backbone'}", *sharded, *settings)
    return MemorySeen(max(beyond), 2 * (4 * hidden**2 + 9 * hidden**2))


def train_twice(data: Path, out: Path, *settings: str) -> list[tuple[list[float], bytes]]:
    """Losses and the saved adapter of two runs that are alike."""
    both = []
    for turn in ("first", "second"):
        losses = train(data, out / turn, *settings)["losses"]
        both.append((losses, (out / turn / "adapter" / "adapter_model.safetensors").read_bytes()))
    return both
