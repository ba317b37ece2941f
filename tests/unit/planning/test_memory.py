"""How the backbone is sharded, and what is refused because it does not fit."""

from dataclasses import replace

import pytest

from lingo_ds.planning.plan import make_plan
from tests.unit.planning.facts import LLAMA_7B, LLAMA_70B, SMALL, config, on, refused


@pytest.mark.parametrize(
    "facts, stage, group",
    [
        (on(SMALL, 1), 0, 1),
        (on(SMALL, 16, per_host=8), 0, 1),
        (on(LLAMA_7B, 8, memory=80), 0, 1),  # 12.3 GiB of weights
        (on(LLAMA_7B, 1, memory=24), 0, 1),
        (on(LLAMA_7B, 8, memory=14), 3, 2),  # 11.2 GiB usable: not whole, but half and three layers
        (on(LLAMA_7B, 6, per_host=3, memory=14), 3, 3),  # two of three on a host would reach into the next
        (on(LLAMA_70B, 8, memory=80), 3, 4),  # 128 GiB of weights, 64 usable: halves leave nothing
        (on(LLAMA_70B, 64, per_host=8, memory=80), 3, 4),
        (on(LLAMA_70B, 12, per_host=6, memory=65), 3, 6),  # four of six would reach into the next host
        (on(LLAMA_70B, 16, per_host=8, memory=30), 3, 16),  # an eighth and the rest are 28 of 24 GiB usable
    ],
)
def test_a_copy_is_whole_where_it_fits_else_in_the_smallest_group_inside_a_host(facts, stage, group):
    plan = make_plan(config(train__global_batch_size=64), facts)
    assert (plan.zero_stage, plan.shard_group) == (stage, group)
    assert sum(plan.bytes_per_process.values()) <= 0.8 * facts.memory_bytes
    assert plan.bytes_per_process["backbone"] * group >= facts.backbone_parameters * facts.compute_bytes


@pytest.mark.parametrize(
    "fields, world, stage, group",
    [
        ({"zero__stage": 0}, 8, 0, 1),
        ({"zero__stage": 3}, 8, 3, 2),
        ({"zero__stage": 3}, 1, 3, 1),
        ({"zero__stage": 3, "zero__shard_group": 8}, 8, 3, 8),
        ({"zero__stage": 3, "zero__shard_group": 4}, 8, 3, 4),
        ({"zero__shard_group": 4}, 8, 3, 4),
        ({"zero__shard_group": 1}, 8, 0, 1),
    ],
)
def test_the_users_word_on_spreading_holds(fields, world, stage, group):
    plan = make_plan(config(**fields), on(SMALL, world))
    assert (plan.zero_stage, plan.shard_group) == (stage, group)


@pytest.mark.parametrize("group", [3, 5, 16])
def test_group_must_divide_the_processes(group):
    (mistake,) = refused(config(zero__shard_group=group), on(SMALL, 8))
    assert (mistake.where, mistake.value) == ("zero.shard_group", group)
    assert "does not divide the 8 processes" in mistake.rule


@pytest.mark.parametrize(
    "fields, memory, hpz",
    [
        ({"zero__shard_group": 16}, 80, 8),  # 8 GiB of 16 and 16 of 8 in 64 usable
        ({"zero__shard_group": 16}, 30, 1),
        ({"zero__shard_group": 16, "zero__hpz": "off"}, 80, 1),
        ({"zero__shard_group": 16, "zero__hpz": 4}, 80, 4),
        ({"zero__shard_group": 8}, 80, 1),  # inside a host already
        ({}, 80, 1),
    ],
)
def test_a_second_copy_keeps_gathers_inside_a_host_where_there_is_room(fields, memory, hpz):
    plan = make_plan(
        config(**fields, train__global_batch_size=64), on(LLAMA_70B, 16, per_host=8, memory=memory)
    )
    assert plan.secondary_group == hpz
    filled = plan.deepspeed_config({"zero_optimization": {"stage": 3}}, dtype="bf16")["zero_optimization"]
    assert filled.get("zero_hpz_partition_size", 1) == hpz
    if hpz > 1:
        assert plan.bytes_per_process["second copy"] * hpz == plan.bytes_per_process["backbone"] * 16
        assert sum(plan.bytes_per_process.values()) <= 0.8 * plan.facts.memory_bytes
        assert any(f"again over every {hpz}" in line for line in plan.equations())


@pytest.mark.parametrize("fields", [{"hpz": 3}, {"hpz": 16}, {"hpz": 2, "stage": 0}])
def test_a_second_copy_that_cannot_be_is_refused(fields):
    fields = {f"zero__{name}": value for name, value in {"shard_group": 16, **fields}.items()}
    facts = on(LLAMA_70B, 32, per_host=8, memory=80)
    (mistake,) = refused(config(**fields, train__global_batch_size=64), facts)
    assert mistake.where == "zero.hpz" and mistake.fix == "choose auto or off"


def test_what_is_advised_where_nothing_fits_is_not_set_already():
    small_gpus, advised = on(LLAMA_70B, 8, memory=16), "zero.quantized_weights=true"
    assert advised in refused(config(), small_gpus)[0].fix
    packed = replace(small_gpus, eight_bit_parameters=small_gpus.backbone_parameters)
    (mistake,) = refused(config(zero__quantized_weights=True), packed)
    assert advised not in mistake.fix and "zero3_offload" not in mistake.fix
    assert "backbone.quantization=nf4" in mistake.fix and mistake.fix.endswith(" or bf16")


def test_maps_in_8_bits_fit_where_they_would_not():
    """128 GiB over eight of 32 GiB, of which 25 are usable: with three layers whole only in 8 bits."""
    small_gpus = on(LLAMA_70B, 8, memory=32)
    assert refused(config(), small_gpus)
    packed = replace(small_gpus, eight_bit_parameters=small_gpus.backbone_parameters)
    plan = make_plan(config(zero__quantized_weights=True), packed)
    assert plan.eight_bit and (plan.zero_stage, plan.shard_group) == (3, 8)


def test_backbone_that_fits_nowhere_is_refused_unless_the_user_insists():
    small_gpus = on(LLAMA_70B, 8, memory=24)
    (mistake,) = refused(config(), small_gpus)
    assert (
        mistake.where == "backbone.path" and "8 processes" in mistake.rule and "zero3_offload" in mistake.fix
    )
    assert "backbone.path" in refused(config(), on(LLAMA_7B, 1, memory=8))[0].where
    for insisting in ({"zero__profile": "zero3_offload"}, {"zero__stage": 3}):
        plan = make_plan(config(**insisting), small_gpus)
        assert (plan.zero_stage, plan.shard_group) == (3, 8)
