"""Two processes train labels and values, some of them unknown, as one does."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lingo_ds.commands.train import train as train_run
from lingo_ds.distributed.process_group import DistEnv
from tests.ranks.spawn import run_ranks
from tests.unit.kinds_of_task import config_of, write_data

SHORT = {"global_batch_size": 11, "max_steps": 5, "eval_steps": 5}


def train(rank: int, world_size: int, kind: str, data: Path, out: Path) -> dict[str, Any]:
    return train_run(
        config_of(kind, data, out, train=SHORT),
        DistEnv(rank, rank, world_size, world_size, torch.device("cpu")),
    )


@pytest.mark.parametrize("kind", ["multilabel", "regression"])
def test_two_processes_are_one(tmp_path, kind):
    data = write_data(tmp_path / "data", kind)
    (one,) = run_ranks(train, 1, kind, data, tmp_path / "1")
    two, other = run_ranks(train, 2, kind, data, tmp_path / "2")
    assert two["metrics"] == other["metrics"] and two["task"] == other["task"]
    for split in ("dev", "test"):
        assert two["metrics"][split] == pytest.approx(one["metrics"][split], rel=1e-3, abs=1e-4)
    assert (two["task"]["mean"], two["task"]["scale"]) == (one["task"]["mean"], one["task"]["scale"])
    adapters = [load_file(tmp_path / name / "adapter/adapter_model.safetensors") for name in ("1", "2")]
    for name, value in adapters[0].items():
        torch.testing.assert_close(adapters[1][name], value, rtol=1e-3, atol=1e-5)
