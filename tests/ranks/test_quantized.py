"""A quantised backbone in a copy on each of two processes: the run of one process."""

from pathlib import Path

import pytest
import torch

from lingo_ds import run
from lingo_ds.config import RunConfig
from lingo_ds.distributed import DistEnv
from lingo_ds.export import read_card
from tests.first_rows import first_rows
from tests.ranks.spawn import run_ranks
from tests.ranks.test_world_sizes import Run, assert_same_run

pytest.importorskip("bitsandbytes", reason="needs pip install lingo_ds[quant]")

STEPS = 12


def train(rank: int, world_size: int, settings: dict) -> dict:
    config = RunConfig.model_validate(settings)
    return run.train(config, DistEnv(rank, rank, world_size, world_size, torch.device("cpu")))


@pytest.mark.parametrize("quantization", ["int8", "nf4"])
def test_two_copies_learn_what_one_learns(shared, tmp_path: Path, quantization: str):
    rows = {"train": 101, "dev": 31, "test": 29}  # shared evenly by no number of processes
    settings = {
        "name": "copies",
        "backbone": {"path": str(shared / "backbones/stories260k"), "quantization": quantization},
        "data": {
            "path": str(first_rows(shared / "data/gue/prom_core_tata", tmp_path / "data", rows)),
            "cache_dir": str(tmp_path / "cache"),
        },
        "adapter": {"rank": 4},
        "rank_sampling": {"target_rank": 2, "interval": 3, "audit_interval": 5},
        "train": {"global_batch_size": 11, "max_steps": STEPS, "eval_steps": 6},
    }
    runs = []
    for processes in (1, 2):
        folder = tmp_path / f"on_{processes}"
        reports = run_ranks(train, processes, settings | {"output_dir": str(folder)}, timeout=400)
        runs.append(Run(folder, reports))
    one, two = runs
    assert_same_run(two, one)
    assert two.report["zero"] == {"stage": 0, "shard_group": 1, "hpz": 1, "quantized_weights": False}
    assert two.report["sync"]["divergences"] == 0 and two.report["sync"]["audits"] > 0
    assert read_card(two.folder / "adapter").backbone.quantization == quantization
