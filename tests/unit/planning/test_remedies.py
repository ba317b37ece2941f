"""The setting that is named where memory runs out, with its present value."""

from dataclasses import replace

import pytest

from lingo_ds.config.backbone_config import ZeroConfig
from lingo_ds.planning.memory import plan_forward
from lingo_ds.planning.plan import make_plan
from lingo_ds.planning.remedies import remedy_of_loading, remedy_of_prediction, remedy_of_run
from tests.unit.planning.facts import LLAMA_7B, PACKED, SMALL, config, on


def of_run(facts, **settings):
    run = config(**settings)
    return remedy_of_run(run, make_plan(run, facts))


def test_half_a_pack_or_recomputed_layers():
    setting, value, fix = of_run(PACKED, train__micro_batch_tokens=1000)
    assert (setting, value) == ("train.micro_batch_tokens", 1000)
    assert fix == "set 500, or backbone.activation_checkpointing=true"


def test_half_a_padded_batch():
    found = of_run(SMALL, train__micro_batch_size=8, backbone__path="x")
    assert found == (
        "train.micro_batch_size",
        8,
        "set 4, or backbone.activation_checkpointing=true",
    )


def test_what_cannot_be_lower_is_cut():
    found = of_run(SMALL, train__micro_batch_size=1)
    assert found.fix.startswith("cut examples by data.max_length, 72 tokens at most now, or")
    assert of_run(replace(PACKED, longest=90), train__micro_batch_tokens=100).fix.startswith("set 90,")


def test_a_whole_copy_on_several_processes_can_be_sharded():
    assert of_run(on(SMALL, 2)).fix.endswith("zero.stage=3")
    assert "zero.stage" not in of_run(on(SMALL, 2), zero__stage=3).fix
    assert "zero.stage" not in of_run(SMALL).fix


@pytest.mark.parametrize(
    ("stage", "processes", "first"), [(0, 2, "set zero.stage=3"), (3, 2, "add"), (0, 1, "add")]
)
def test_loading(stage, processes, first):
    found = remedy_of_loading(ZeroConfig(), stage=stage, processes=processes)
    assert found[:2] == ("zero.stage", stage) and found.fix.startswith(first)
    assert "backbone.quantization=nf4" in found.fix


def test_prediction():
    how = {"packing": "auto", "longest": 128, "device": "cuda"}
    plan = plan_forward(on(LLAMA_7B, 1, memory=80), ZeroConfig(), tokens=4096, **how)
    assert remedy_of_prediction(plan) == ("batch_tokens", 4096, "set 2048")
