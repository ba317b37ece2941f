"""Bytes and seconds of a step: the formula's bytes, a ring by hand, and what communication costs."""

from dataclasses import replace

import pytest

from lingo_ds.planning.cost.estimate import estimate_step, ring_seconds
from lingo_ds.planning.cost.machine import Wire, gpu_machine
from lingo_ds.planning.traffic import Collective, step_traffic


def test_bytes_are_those_of_the_formula(plan):
    _, scenario, _ = plan("7B", hosts=2, zero={"stage": 3, "shard_group": 8})
    reduce_buffer = 4 * (scenario.plan.facts.bank_parameters + 6)
    expected = step_traffic(
        scenario.weights,
        scenario.sharding,
        micro_batches=scenario.plan.accumulation,
        reduce_buffer=reduce_buffer,
    )
    assert tuple(one.collective for one in estimate_step(scenario).sent) == expected


def test_seconds_of_a_ring_by_hand():
    machine = replace(
        gpu_machine("h100"), inside=Wire(100e9, 1e-6, 1.0), between=Wire(10e9, 10e-6, 1.0), trees=False
    )
    gather = Collective("all_gather", "forward", 8, 1, 8 * 10**9)
    assert ring_seconds(machine, gather, calls=32) == pytest.approx(7e9 / 100e9 + 32 * 7e-6)
    wide = replace(gather, group=16, hosts=2)
    assert ring_seconds(machine, wide, calls=1) == pytest.approx(7.5e9 / 10e9 + 14e-6 + 10e-6)
    reduce = Collective("all_reduce", "bank", 16, 2, 16 * 10**6)
    assert ring_seconds(machine, reduce, calls=1) == pytest.approx(30e6 / 10e9 + 28e-6 + 20e-6)
    trees = replace(machine, trees=True)
    many = Collective("all_reduce", "bank", 512, 64, 512)
    assert ring_seconds(trees, many, calls=1) < ring_seconds(machine, many, calls=1) / 5


def test_copies_inside_hosts_scale_where_one_over_all_does_not(plan):
    def rate(hosts, **zero):
        return estimate_step(plan("7B", hosts=hosts, zero=zero)[1]).tokens_per_second / hosts

    assert rate(64) >= 0.95 * rate(1)
    assert rate(64, stage=3, shard_group=512, hpz="off") < 0.9 * rate(1, stage=3, shard_group=8)


def test_gathers_hide_behind_computing_as_far_as_it_lasts(plan):
    _, scenario, _ = plan("70B", hosts=2, zero={"stage": 3, "shard_group": 16, "hpz": "off"})
    fast, slow = (
        estimate_step(replace(scenario, machine=replace(scenario.machine, between=Wire(rate, 1e-6, 1.0))))
        for rate in (1e12, 1e9)
    )
    assert fast.exposed < 0.03 * fast.compute
    gathers = [one for one in slow.sent if one.collective.name == "all_gather"]
    total = sum(one.seconds for one in gathers)
    assert sum(one.exposed for one in gathers) == pytest.approx(total - slow.compute, rel=0.05)
