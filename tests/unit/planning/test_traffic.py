"""What a step sends, worked out by hand for a model of three layers."""

import pytest

from lingo_ds.distributed.traffic import Link, sent_bytes
from lingo_ds.models.backbone.gathers import GatherState
from lingo_ds.models.backbone.weight_sizes import Weight, Weights
from lingo_ds.planning.traffic import Collective, Sharding, by_link, gathered_bytes, step_traffic

MODEL = Weights(
    runs=((3, (Weight(10, is_map=True), Weight(7))),), embeddings=(Weight(9),), others=(Weight(5),)
)


def sharding(world, local, group, **more):
    return Sharding(
        world_size=world, local_world_size=local, zero_stage=3, shard_group=group, entry_bytes=4, **more
    )


def step(over, **more):
    traffic = step_traffic(MODEL, over, **{"micro_batches": 1, "reduce_buffer": 400, **more})
    return {one.what: one for one in traffic}


def test_weights_are_padded_one_by_one():
    padded = 3 * (10 + 8) + 10 + 6  # to pairs
    assert step(sharding(2, 2, 2))["forward"].payload == 4 * padded
    assert gathered_bytes([Weight(10), Weight(7)], sharding(4, 4, 4), above=0) == 4 * (12 + 8)


def test_the_last_two_layers_are_not_gathered_again():
    assert step(sharding(2, 2, 2))["backward"].payload == 4 * (10 + 8)


def test_every_micro_batch_gathers_again_and_the_bank_is_reduced_once():
    one, three = step(sharding(2, 2, 2)), step(sharding(2, 2, 2), micro_batches=3)
    assert three["forward"].sent == 3 * one["forward"].sent
    assert three["bank"] == one["bank"] == Collective("all_reduce", "bank", 2, 1, 400)


def test_small_weights_are_gathered_once_and_stay():
    kept = sharding(2, 2, 2, persistent=7)
    assert step(kept)["forward"].payload == 4 * (3 * 10 + 10)
    assert step(kept)["backward"].payload == 4 * 10
    filling = step(kept, start=GatherState.FILLING, micro_batches=2)
    assert filling["forward"].payload == 4 * (3 * (10 + 8) + 10 + 6) + 4 * (3 * 10 + 10)
    assert filling["backward"].payload == 2 * 4 * 10


def test_the_first_pass_of_a_run_gathers_all_it_uses():
    kept = sharding(2, 2, 2, persistent=7)
    everything, used = 4 * (3 * 18 + 10 + 6), 4 * (3 * 18 + 6)  # no gradient comes to the embedding's 9
    first = step(kept, start=GatherState.RECORDING)
    assert (first["forward"].payload, first["backward"].payload) == (everything, used)
    two = step(kept, start=GatherState.RECORDING, micro_batches=2)
    assert (two["forward"].payload, two["backward"].payload) == (2 * everything, used + 4 * 10)


def test_a_head_alone_gathers_for_the_forward_pass_and_keeps_nothing():
    alone = step(sharding(2, 2, 2, persistent=7), learns_inside=False)
    assert set(alone) == {"forward", "bank"}
    assert alone["forward"].payload == 4 * (3 * (10 + 8) + 10 + 6)


@pytest.mark.parametrize("how", [sharding(4, 2, 2), sharding(4, 2, 4, secondary_group=2)])
def test_with_groups_inside_hosts_only_the_bank_crosses(how):
    crossing = [name for name, one in step(how).items() if one.link is Link.BETWEEN]
    assert crossing == ["bank"]


def test_a_group_over_two_hosts_sends_weights_between_them():
    links = by_link(step(sharding(4, 2, 4)).values())
    assert links["inside"] == 0 and links["between"] > 600
    assert step(sharding(2, 1, 2))["forward"].hosts == 2


def test_one_cable_carries_a_ring_once():
    flat = step_traffic(MODEL, sharding(16, 8, 8), micro_batches=1, reduce_buffer=400)
    assert sum(one.inter_host for one in flat) == 2 * 15 * 400 // 16


def test_whole_copies_send_nothing_but_the_bank():
    assert set(step(sharding(4, 2, 1))) == {"bank"}
    assert step(sharding(1, 1, 1)) == {}


@pytest.mark.parametrize(("name", "sent"), [("all_gather", 300), ("all_reduce", 600), ("broadcast", 400)])
def test_a_ring_of_four(name, sent):
    assert sent_bytes(name, 400, 4) == sent
    assert sent_bytes(name, 400, 1) == 0
