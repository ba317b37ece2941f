"""However many processes share a copy of the backbone, the bank is the same, and what travels is foreseen."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from lingo_ds.commands.train import train_one
from lingo_ds.config.run_config import RunConfig
from lingo_ds.distributed.job import job
from lingo_ds.distributed.process_group import DistEnv
from tests.first_rows import first_rows
from tests.ranks.spawn import run_ranks

STEPS = 6


class Run(NamedTuple):
    """What a run left: the report of every process, the saved adapter, its folder."""

    reports: list[dict[str, Any]]
    adapter: dict[str, Tensor]
    folder: Path


Settings = dict[str, Any]


@pytest.fixture(scope="module")
def settings(shared, tmp_path_factory) -> Settings:
    """One config for all: steps of two micro-batches and more, changing masks, an evaluation in between."""
    rows = {"train": 60, "dev": 16, "test": 16}
    folder = tmp_path_factory.mktemp("data")
    return {
        "name": "groups",
        "backbone": {"path": str(shared / "backbones" / "stories260k"), "dtype": "fp32"},
        "data": {
            "path": str(first_rows(shared / "data" / "gue" / "prom_core_tata", folder, rows)),
            "cache_dir": str(tmp_path_factory.mktemp("cache")),
        },
        "adapter": {"rank": 4, "dropout": 0.0},
        "rank_sampling": {"mode": "exact", "target_rank": 2, "interval": 2, "audit_interval": 3},
        "train": {"global_batch_size": 12, "max_steps": STEPS, "eval_steps": 4, "micro_batch_size": 2},
    }


def in_groups(group: int, **zero: Any) -> Settings:
    """Settings of a run in which so many processes share a copy of the backbone."""
    return {"zero": {"stage": 0 if group == 1 else 3, "shard_group": group, **zero}}


def train_each(rank: int, world_size: int, runs: list[Settings], local: int) -> list[dict[str, Any]]:
    """One run after the other, as one of `world_size` processes on hosts of `local` processes."""
    env = DistEnv(rank, rank % local, world_size, local, torch.device("cpu"))
    configs = [RunConfig.model_validate(one) for one in runs]
    with job(configs[0].to_yaml(), env, output=configs[0].run_dir):
        return [train_one(config, env) for config in configs]


def train(settings: Settings, folder: Path, processes: int, *changes: Settings, local: int = 0) -> list[Run]:
    """Several runs in the same processes: importing the libraries takes longer than all else."""
    folders = [folder / str(number) for number in range(len(changes))]
    runs = [
        {**settings, **change, "output_dir": str(one)} for change, one in zip(changes, folders, strict=True)
    ]
    reports = run_ranks(train_each, processes, runs, local or processes, timeout=500)
    return [
        Run(list(ours), load_file(one / "adapter" / "adapter_model.safetensors"), one)
        for ours, one in zip(zip(*reports, strict=True), folders, strict=True)
    ]


@pytest.fixture(scope="module")
def alone(settings, tmp_path_factory) -> Run:
    return train(settings, tmp_path_factory.mktemp("alone"), 1, in_groups(1))[0]


def require_same_bank(run: Run, alone: Run) -> None:
    assert run.adapter.keys() == alone.adapter.keys()
    for name, value in alone.adapter.items():
        torch.testing.assert_close(run.adapter[name], value, rtol=1e-5, atol=1e-5, msg=name)
    assert run.reports[0]["rank_sampling"]["ranks"] == alone.reports[0]["rank_sampling"]["ranks"]


def require_foreseen(run: Run) -> dict[str, int]:
    """Checks that every byte of every step was foreseen; returns what went over each link in all steps.

    DeepSpeed compares the order of its modules between processes in the first two passes of a run; how many
    numbers that takes is its own affair, so these few bytes are none of the formula's.
    """
    for report in run.reports:
        traffic = report["traffic"]
        assert traffic["steps"] == STEPS
        sums = {link: sent["expected"] for link, sent in traffic["sent"].items()}
        for kind in traffic["collectives"]:
            if kind["what"] == "order":
                assert kind["sent"] < 10_000
            else:
                sums[kind["link"]] -= kind["sent"]
            assert kind["what"] != "other"
        assert set(sums.values()) == {0}, traffic
    return {link: sent["counted"] for link, sent in run.reports[0]["traffic"]["sent"].items()}


def last_values(folder: Path) -> dict[str, float]:
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    tags = {tag: events.Scalars(tag)[-1] for tag in events.Tags()["scalars"]}
    return {tag: event.value for tag, event in tags.items() if event.step == STEPS}


def test_one_process_sends_nothing(alone):
    assert alone.reports[0]["traffic"]["collectives"] == []
    assert require_foreseen(alone) == {"inside": 0, "between": 0}


@pytest.mark.parametrize(("processes", "groups"), [(2, (1, 2)), (4, (1, 2, 4))])
def test_the_bank_is_the_same_and_every_byte_foreseen(settings, alone, tmp_path, processes, groups):
    runs = train(settings, tmp_path, processes, *map(in_groups, groups))
    for group, many in zip(groups, runs, strict=True):
        assert many.reports[0]["zero"]["shard_group"] == group
        require_same_bank(many, alone)
        links = require_foreseen(many)
        assert links["inside"] > 0 and links["between"] == 0
        kinds = many.reports[0]["traffic"]["collectives"]
        assert [kind["group"] for kind in kinds if kind["what"] == "weights"] == [group] * (group > 1)
        tags = last_values(many.folder)
        assert tags["traffic/unforeseen_bytes"] == 0
        parts = ("weights", "bank", "audit")
        assert tags["traffic/inside_bytes"] == sum(
            tags.get(f"traffic/inside_{what}_bytes", 0) for what in parts
        )


def test_between_hosts_goes_the_bank_alone_where_a_copy_fits_a_host(settings, alone, tmp_path):
    """Two hosts of two processes, as far as the counter knows."""
    changes = in_groups(2), in_groups(4, hpz="off"), in_groups(4, hpz=2)
    inside, across, twice = train(settings, tmp_path, 4, *changes, local=2)
    for many in (inside, across, twice):
        require_same_bank(many, alone)
        require_foreseen(many)
    kinds = inside.reports[0]["traffic"]["collectives"]
    banks = [(kind["name"], kind["link"]) for kind in kinds if kind["what"] == "bank"]
    assert banks == [("all_reduce", "between")]
    crossed = {kind["what"] for kind in kinds if kind["hosts"] > 1}
    assert crossed == {"bank", "masks", "audit", "order"}
    gathers = [kind for kind in across.reports[0]["traffic"]["collectives"] if kind["what"] == "weights"]
    assert {kind["link"] for kind in gathers} == {"between"}
    assert twice.reports[0]["zero"] == {"stage": 3, "shard_group": 4, "hpz": 2, "quantized_weights": False}
    assert require_foreseen(twice)["between"] == require_foreseen(inside)["between"]


def test_weights_that_stay_checkpointing_and_a_head_alone_are_foreseen(settings, alone, tmp_path):
    """Small weights, with a profile as on GPUs, are not gathered until an evaluation gives them back."""
    profile = tmp_path / "profile.json"
    profile.write_text(
        json.dumps(
            {
                "train_micro_batch_size_per_gpu": "auto",
                "zero_optimization": {
                    "stage": 3,
                    "overlap_comm": True,
                    "stage3_param_persistence_threshold": 100,
                    "stage3_prefetch_bucket_size": "auto",
                    "stage3_max_live_parameters": "auto",
                    "stage3_max_reuse_distance": "auto",
                },
            }
        )
    )
    head = {"adapter": {"method": "none"}, "rank_sampling": {"mode": "off"}}
    small = in_groups(2, profile=str(profile))
    again = {"backbone": {**settings["backbone"], "activation_checkpointing": True}}
    kept, recomputed, plain = train(settings, tmp_path, 2, small, small | again, small | head)
    require_same_bank(kept, alone)
    require_same_bank(recomputed, alone)
    assert require_foreseen(recomputed) == require_foreseen(kept)
    require_foreseen(plain)
