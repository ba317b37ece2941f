"""FLOPs of a step, by hand."""

import pytest

from lingo_ds.config.run_config import RunConfig
from lingo_ds.distributed.process_group import detect
from lingo_ds.planning.cost.elsewhere import Cluster, Lengths, make_scenario, read_shapes
from lingo_ds.planning.cost.machine import gpu_machine
from lingo_ds.planning.cost.work import pass_work


def test_frozen_maps_cost_four_flops_an_entry_and_token(plan):
    _, scenario, _ = plan("7B")
    flops = pass_work(scenario).flops["frozen maps"]
    entries = 32 * (4 * 4096**2 + 3 * 4096 * 11008)
    assert flops == pytest.approx(4 * entries * scenario.tokens, rel=0.03)  # the last layer is cut
    assert flops < 4 * entries * scenario.tokens
    _, again, _ = plan("7B", backbone={"activation_checkpointing": True})
    assert pass_work(again).flops["computed again"] == pytest.approx(flops / 2, rel=0.03)


def test_shared_prefix_is_computed_once_a_pack(folders):
    config = RunConfig(
        name="x",
        backbone={"path": str(folders["7B"])},
        data={"path": "absent"},
        train={"global_batch_size": 64, "max_steps": 1000},
    )
    place = Cluster(hosts=1, per_host=1, machine=gpu_machine("h200"))
    shared = Lengths(rows=1000, tokens=128, shared=100)
    scenario = make_scenario(config, read_shapes(config, detect(), shared), place)
    assert scenario.tokens == 64 * 28 + 100 * scenario.plan.accumulation
