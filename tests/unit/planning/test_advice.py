"""Which other way to run a job is advised, and when."""

from lingo_ds.planning.cost.advice import WORTH, Alternative, advise
from lingo_ds.planning.cost.elsewhere import Cluster
from lingo_ds.planning.cost.machine import gpu_machine
from lingo_ds.planning.cost.show import advice_table


def best(rows: list[Alternative]) -> str:
    """The setting of the one alternative that is marked."""
    (only,) = (one.setting for one in rows if one.best)
    return only


def row(rows: list[Alternative], setting: str) -> Alternative:
    (only,) = (one for one in rows if one.setting == setting)
    return only


def saved(rows: list[Alternative], setting: str) -> float:
    """Share of a step that a setting saves."""
    return 1 - row(rows, setting).seconds / rows[0].seconds


def test_a_copy_that_needs_a_group_keeps_it(plan):
    rows = advise(*plan("70B", gpu="h100"))
    assert rows[0].setting == "as planned (zero.stage=3 zero.shard_group=4)"
    assert not row(rows, "zero.stage=0").fits
    assert "shard_group" in best(rows)
    assert any(one.setting.startswith("backbone.activation_checkpointing") for one in rows)


def test_a_plan_that_is_the_fastest_is_kept(plan):
    rows = advise(*plan("7B"))
    assert best(rows) == rows[0].setting == "as planned (zero.stage=0)"
    assert row(rows, "backbone.activation_checkpointing=true").seconds > rows[0].seconds


def test_a_slow_network_shows(plan):
    slow, fast = (advise(*plan("7B", hosts=8, **there))[0] for there in ({"link": "1Gb", "tokens": 1024}, {}))
    assert slow.exposed > 0.05 * slow.seconds
    assert fast.exposed < 0.05 * fast.seconds


def test_where_a_copy_reaches_over_hosts_a_second_copy_is_weighed(plan):
    zero = {"stage": 3, "shard_group": 32}
    without = advise(*plan("7B", hosts=4, zero=zero | {"hpz": "off"}))
    assert saved(without, "zero.hpz=8") > WORTH
    assert best(without) == "zero.stage=0"
    with_it = advise(*plan("7B", hosts=4, zero=zero))
    assert with_it[0].setting.endswith("zero.hpz=8)")
    assert saved(with_it, "zero.hpz=off") < -WORTH
    alone = advise(*plan("7B", hosts=4, gpus=1, zero={"stage": 3, "shard_group": 4}))
    assert not any(one.setting.startswith("zero.hpz") for one in alone)


def test_plain_zero_3_over_all_processes_is_shown(plan):
    rows = advise(*plan("7B", hosts=2))
    assert saved(rows, "zero.stage=3 zero.shard_group=16 zero.hpz=off") < -WORTH


def test_8_bits_follow_the_network(plan):
    zero = {"stage": 3, "shard_group": 64, "hpz": "off"}

    def there(link: str, on: bool) -> list[Alternative]:
        return advise(*plan("7B", hosts=8, link=link, zero=zero | {"quantized_weights": on}))

    assert saved(there("10Gb", False), "zero.quantized_weights=true") > WORTH
    assert saved(there("10Gb", True), "zero.quantized_weights=false") < -WORTH
    assert saved(there("64x400Gb", False), "zero.quantized_weights=true") < WORTH
    assert saved(there("64x400Gb", True), "zero.quantized_weights=false") > -WORTH
    whole = advise(*plan("7B", zero={"quantized_weights": True}))
    assert not any("quantized_weights" in one.setting for one in whole)


def test_rounded_weights_must_save_something(plan):
    """Inside a host gathers hide behind computing, so there is nothing for 8 bits to save."""
    zero = {"stage": 3, "shard_group": 8}
    assert (
        best(advise(*plan("70B", zero=zero | {"quantized_weights": True}))) == "zero.quantized_weights=false"
    )
    assert "quantized_weights" not in best(advise(*plan("70B", zero=zero)))


def test_needless_checkpointing_is_advised_against(plan):
    rows = advise(*plan("7B", backbone={"activation_checkpointing": True}))
    assert best(rows) == "backbone.activation_checkpointing=false"


def test_offload_is_the_last_resort(plan):
    """70B over all of one host's small GPUs, where the user insists on sharding what does not fit."""
    rows = advise(*plan("70B", gpu="l4", gpus=4, zero={"stage": 3}))
    offload = row(rows, "zero.stage=3 zero.profile=zero3_offload")
    assert not rows[0].fits and offload.seconds is None
    assert offload.bytes_per_process < rows[0].bytes_per_process
    fits = advise(*plan("7B"))
    assert not any("offload" in one.setting for one in fits)


def test_the_table_marks_the_best_and_says_where_nothing_fits(plan):
    cluster = Cluster(hosts=1, per_host=8, machine=gpu_machine("h200"))
    rows = advise(*plan("7B"))
    table = advice_table(rows, cluster)
    assert table.row_count == len(rows) and table.caption is None
    assert [cell == "*" for cell in table.columns[0].cells] == [one.best for one in rows]
    nothing = [one._replace(fits=False, best=False) for one in rows]
    assert "add processes" in advice_table(nothing, cluster).caption
