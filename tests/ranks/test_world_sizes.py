"""World size 1 is the oracle for world size N: the same config gives the same masks, adapter and metrics."""

import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from lingo_ds.commands.train import train as train_run
from lingo_ds.config.run_config import RunConfig
from lingo_ds.distributed.process_group import DistEnv
from tests.first_rows import first_rows
from tests.ranks.spawn import run_ranks

STEPS, INTERVAL = 24, 3
ROWS = {"train": 201, "dev": 61, "test": 59}  # shared evenly by no number of processes


class Run(NamedTuple):
    """What is left of a run, and the report as each process returned it."""

    folder: Path
    reports: list[dict[str, Any]]

    @property
    def report(self) -> dict[str, Any]:
        return self.reports[0]

    @property
    def adapter(self) -> dict[str, torch.Tensor]:
        return load_file(self.folder / "adapter" / "adapter_model.safetensors")


@pytest.fixture(scope="module")
def data(shared, tmp_path_factory) -> Path:
    """The first rows of real promoters, cut to lengths that differ."""
    folder = tmp_path_factory.mktemp("data")
    for split, rows in ROWS.items():
        lines = (shared / "data" / "gue" / "prom_core_tata" / f"{split}.csv").read_text().splitlines()
        cut = [lines[0]]
        for number, line in enumerate(lines[1 : rows + 1]):
            sequence, label = line.split(",")
            cut.append(f"{sequence[: 20 + 7 * number % 51]},{label}")
        (folder / f"{split}.csv").write_text("\n".join(cut) + "\n")
    return folder


@pytest.fixture(scope="module")
def settings(shared, data, tmp_path_factory) -> dict[str, Any]:
    """The one config; only its output folder differs between the runs."""
    return {
        "name": "worlds",
        "seed": 3,
        "backbone": {"path": str(shared / "backbones" / "stories260k"), "dtype": "fp32"},
        "data": {
            "path": str(data),
            "cache_dir": str(tmp_path_factory.mktemp("cache")),
            "prefix": "Domain: {domain}\nSequence: {sequence}\nAnnotation:",
            "domain": "human promoters",
        },
        "adapter": {"rank": 4, "dropout": 0.0},
        "rank_sampling": {
            "mode": "exact",
            "target_rank": 2,
            "interval": INTERVAL,
            "rho": 0.3,
            "orthogonality": 0.1,
            "audit_interval": 5,
        },
        "train": {"global_batch_size": 11, "max_steps": STEPS, "eval_steps": 6},
    }


def train(rank: int, world_size: int, settings: dict[str, Any]) -> dict[str, Any]:
    config = RunConfig.model_validate(settings)
    return train_run(config, DistEnv(rank, rank, world_size, world_size, torch.device("cpu")))


def train_on(processes: int, settings: dict[str, Any], folder: Path, stage: int, **train_settings) -> Run:
    settings = {
        **settings,
        "output_dir": str(folder),
        "zero": {"stage": stage},
        "train": {**settings["train"], **train_settings},
    }
    return Run(folder, run_ranks(train, processes, settings, timeout=400))


def one_and_two(shared: Path, folder: Path, **sections: dict[str, Any]) -> list[Run]:
    """A shorter run, with `sections` of its config, on one process and on two."""
    rows = {"train": 101, "dev": 31, "test": 29}
    settings = {
        "name": "short",
        "backbone": {"path": str(shared / "backbones/stories260k")} | sections.pop("backbone", {}),
        "data": {
            "path": str(first_rows(shared / "data/gue/prom_core_tata", folder / "data", rows)),
            "cache_dir": str(folder / "cache"),
        },
        "adapter": {"rank": 4},
        "rank_sampling": {"target_rank": 2, "interval": 3, "audit_interval": 5},
        "train": {"global_batch_size": 11, "max_steps": 12, "eval_steps": 6},
        **sections,
    }
    runs = []
    for processes in (1, 2):
        output = folder / f"on_{processes}"
        reports = run_ranks(train, processes, settings | {"output_dir": str(output)}, timeout=400)
        runs.append(Run(output, reports))
    return runs


@pytest.fixture(scope="module")
def one(settings, tmp_path_factory) -> Run:
    """One process with a whole copy of the backbone."""
    return train_on(1, settings, tmp_path_factory.mktemp("one"), 0)


@pytest.fixture(scope="module")
def two(settings, tmp_path_factory, one) -> Run:
    """Two processes that share one copy."""
    return train_on(2, settings, tmp_path_factory.mktemp("two"), 3)


def assert_same_run(many: Run, one: Run) -> None:
    """Masks and steps alike to the letter, weights and metrics but for the order of sums."""
    ours, theirs = many.report, one.report
    for key in (
        "selected_step",
        "selected_at_budget",
        "steps",
        "skipped_steps",
        "seed",
        "data",
        "task",
        "outcome",
    ):
        assert ours[key] == theirs[key], key
    sampled, expected = (dict(side["rank_sampling"]) for side in (ours, theirs))
    scores, expected_scores = sampled.pop("scores"), expected.pop("scores")
    assert sampled == expected
    assert scores["edges"] == pytest.approx(expected_scores["edges"], rel=0.02)
    assert [sum(scores[name]) for name in ("kept", "pruned")] == [
        sum(expected_scores[name]) for name in ("kept", "pruned")
    ]
    assert many.adapter.keys() == one.adapter.keys()
    for name, tensor in one.adapter.items():
        torch.testing.assert_close(
            many.adapter[name], tensor, rtol=1e-3, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}"
        )
    whole, other = (torch.cat([t.flatten() for t in side.adapter.values()]) for side in (one, many))
    assert (whole - other).norm() < 1e-5 * whole.norm()
    for split in ("dev", "test"):
        assert ours["metrics"][split] == pytest.approx(theirs["metrics"][split], rel=1e-6, abs=1e-6)


def assert_well_kept(seen: Run, processes: int) -> None:
    """What the report of several processes must say."""
    report = seen.report
    assert report["world_size"] == processes
    assert report["sync"] == {"audits": STEPS // 5 + 2, "divergences": 0, "repairs": 0}
    for peaks in report["memory"].values():
        assert len(peaks) == processes
    assert all(peak > 50 * 2**20 for peak in report["memory"]["peak_host_bytes"])
    assert json.loads((seen.folder / "report.json").read_text()) == report
    for other in seen.reports[1:]:
        assert {**other, "throughput": None} == {**report, "throughput": None}  # seconds are each one's own


def test_the_oracle_itself_samples_ranks_and_trains(one):
    sampling = one.report["rank_sampling"]
    ranks = set(sampling["ranks"].values())
    assert sampling["kept_triplets"] == sum(sampling["ranks"].values()) == sampling["target_triplets"]
    assert len(ranks) > 1
    assert sampling["mask_events"] > 3
    assert sampling["returned_triplets"] > 0
    assert one.report["selected_at_budget"]
    assert one.report["outcome"] == "finished"
    assert_well_kept(one, 1)


def test_two_processes_do_what_one_does(one, two):
    assert two.report["zero"] == {"stage": 3, "shard_group": 2, "hpz": 1, "quantized_weights": False}
    assert_same_run(two, one)


def test_report_of_two_processes(two):
    assert_well_kept(two, 2)


def test_saved_test_predictions_are_in_file_order(one, two):
    first, second = (
        pq.read_table(seen.folder / "predictions" / "test.parquet").to_pydict() for seen in (one, two)
    )
    assert first["row"] == second["row"] == list(range(ROWS["test"]))
    assert first["label"] == second["label"]
    assert first["probability_1"] == pytest.approx(second["probability_1"], abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "stage"), [(3, 3), (4, 3), (2, 0)])
def test_more_processes_do_what_one_does(one, settings, tmp_path, processes, stage):
    many = train_on(processes, settings, tmp_path, stage)
    assert many.report["zero"]["stage"] == stage
    assert_same_run(many, one)
    assert_well_kept(many, processes)


@pytest.mark.slow
@pytest.mark.parametrize("micro_batch_size", [1, 2])
def test_small_micro_batches_do_what_a_whole_batch_does(one, settings, tmp_path, micro_batch_size):
    many = train_on(2, settings, tmp_path, 3, micro_batch_size=micro_batch_size)
    assert_same_run(many, one)


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), [(2, 3), (3, 2), (1, 4), (4, 1)])
def test_a_stopped_run_goes_on_with_other_processes(one, settings, tmp_path, before, after):
    """The first half's checkpoint is all that the second run has of the first."""
    with_checkpoints = {**settings, "checkpoint": {"every": 9, "keep_last": 9}}
    train_on(before, with_checkpoints, tmp_path / "first", 3)
    checkpoint = tmp_path / "first" / "checkpoints" / "step-00000009"
    assert checkpoint.is_dir()
    resumed = {**settings, "checkpoint": {"resume": str(checkpoint)}}
    (tmp_path / "second").mkdir()
    shutil.copytree(tmp_path / "first" / "adapter", tmp_path / "second" / "adapter")
    many = train_on(after, resumed, tmp_path / "second", 3)
    assert_same_run(many, one)
