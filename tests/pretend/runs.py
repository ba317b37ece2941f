"""Short training runs by the real command, on a pretend card or the CPU, and what they left."""

import contextlib
import csv
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from lingo_ds.commands.cli import main
from lingo_ds.training import joint_pass
from lingo_ds.training.joint_pass import Work
from lingo_ds.training.optimizer_step import OptimizerStep
from tests.first_rows import first_rows
from tests.unit.kinds_of_task import write_data
from tests.unit.running import command

STEPS = 6
CHECKOUT = Path(__file__).resolve().parents[2]
RECIPE = CHECKOUT / "recipes" / "quickstart.yaml"
SMALL = [
    "backbone.path=builtin:tiny",
    "data.prefix='Is {sequence} rich?'",
    "adapter.rank=4",
    "rank_sampling.target_rank=2",
    "rank_sampling.interval=2",
    "train.global_batch_size=8",
    "train.learning_rate=3e-3",
    f"train.max_steps={STEPS}",
    f"train.eval_steps={STEPS}",
    "zero.stage=0",
]
"""Settings of every run that does not say otherwise: masks change within its six steps."""


WAYS = {
    "plain": [],
    "sharded": ["zero.stage=3"],
    "eight bits": ["zero.stage=3", "zero.quantized_weights=true"],
    "offloaded": ["zero.stage=3", "zero.profile=zero3_offload"],
    "recomputed": ["backbone.activation_checkpointing=true"],
    "padded": ["data.packing=off"],
    "nucleotides": ["data.tokens=nucleotides"],
    "lora": ["adapter.method=lora", "rank_sampling.mode=off"],
    "fp16": ["backbone.dtype=fp16"],
    "deterministic": ["train.deterministic=true"],
}
OWN = ("plain", "nucleotides", "lora", "fp16")
"""Ways that compute something else than the first one; the others differ from it by rounding."""


def some_data(folder: Path) -> Path:
    """A few sequences of two classes for each split."""
    return first_rows(
        write_data(folder / "all", "binary"), folder / "data", {"train": 32, "dev": 8, "test": 8}
    )


def settings(data: Path, *more: str) -> list[str]:
    """Settings of a short run on this data."""
    given = {one.partition("=")[0] for one in more}
    small = [one for one in SMALL if one.partition("=")[0] not in given]
    return [f"data.path={data}", f"data.cache_dir={data.parent / 'cache'}", *small, *more]


@contextlib.contextmanager
def recorded() -> Iterator[dict[str, Any]]:
    """Inside, the losses of all steps are kept, and where the frozen weights are and in which type."""
    seen: dict[str, Any] = {"losses": [], "weights": set()}
    move, compute_gradients = OptimizerStep.move, joint_pass.compute_gradients

    def keep_loss(self: OptimizerStep, *measured: Any, **how: Any) -> Any:
        stats = move(self, *measured, **how)
        seen["losses"].append(stats.loss)
        return stats

    def keep_weights(works: Sequence[Work], **how: Any) -> None:
        compute_gradients(works, **how)
        for param in works[0].model.backbone.module.parameters():
            kept = getattr(param, "ds_tensor", param)
            words = [str(kept.device), str(kept.dtype).removeprefix("torch.")]
            words += ["pinned"] * (kept.device.type == "cpu" and kept.is_pinned())
            words += ["part"] * (kept is not param)
            seen["weights"].add(" ".join(words))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(OptimizerStep, "move", keep_loss)
        patch.setattr(joint_pass, "compute_gradients", keep_weights)
        yield seen


def train(data: Path, out: Path, *more: str) -> dict[str, Any]:
    """Losses and places of the weights of one run."""
    with recorded() as seen:
        status, shown = command("train", RECIPE, out, *settings(data, *more))
    assert status == 0, shown
    return {**seen, "shown": shown}


def losses_on_cpu(folder: Path, dtype: str) -> list[float]:
    """Losses of the same run on the CPU, by this process; `folder` has the data."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DS_ACCELERATOR", "cpu")
        return train(folder / "data", folder / "cpu", f"backbone.dtype={dtype}")["losses"]


def predict(adapter: Path, data: Path, answers: Path, *more: str) -> None:
    """Predicts the test sequences by the real command."""
    source = ["--input", str(data / "test.csv"), "--output", str(answers)]
    assert main(["predict", "--adapter", str(adapter), *source, *more]) == 0


def use(run: Path, data: Path, out: Path, *more: str) -> dict[str, Any]:
    """What the verbs that follow a training run say: metrics, probabilities, and a merged model's weights."""
    from safetensors.torch import load_file

    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    status, shown = command("evaluate", run / "config.yaml", run, *more)
    assert status == 0, shown
    answers, adapter = out / "answers.csv", run / "adapter"
    predict(adapter, data, answers, *more)
    merged = out / "merged"
    assert main(["export", "--adapter", str(adapter), "--to", "merged", "--output", str(merged)]) == 0
    with answers.open() as rows:
        probabilities = [[float(x) for x in list(row.values())[-2:]] for row in csv.DictReader(rows)]
    weights = {name: value.float() for name, value in load_file(merged / "model.safetensors").items()}
    return {"metrics": shown, "probabilities": torch.tensor(probabilities), "merged": weights}
