"""How many runs advance together, how many tokens their passes hold, and which groups share runs out."""

from types import SimpleNamespace

import pytest

from lingo_ds.planning.fleet import ENOUGH_TOKENS, GroupPlan, facts_of_group, plan_fleet
from lingo_ds.planning.memory import USABLE_MEMORY
from lingo_ds.planning.plan import make_plan
from lingo_ds.utils.errors import UserError
from tests.unit.planning.facts import LLAMA_7B, SMALL, config, on

MIB = 1024**2


def plan(
    tokens: int, *, bank: int = MIB, backbone: int = 100 * MIB, by_token: int = 1000, stage: int = 0
) -> SimpleNamespace:
    """A run of so many tokens a forward, in a process of 1 GiB."""
    parts = {"backbone": backbone, "bank": bank, "activations": tokens * by_token}
    return SimpleNamespace(
        bytes_per_process=parts,
        forward_tokens=tokens,
        zero_stage=stage,
        facts=SimpleNamespace(memory_bytes=1024 * MIB),
    )


def test_auto_takes_as_many_runs_as_fill_a_pass():
    tokens = ENOUGH_TOKENS["cpu"] // 4
    fleet = plan_fleet([plan(tokens)], concurrent="auto", runs=42, device="cpu")
    assert (fleet.runs, fleet.tokens) == (4, 4 * tokens)
    assert plan_fleet([plan(tokens)], concurrent="auto", runs=2, device="cpu").runs == 2
    assert plan_fleet([plan(10**5)], concurrent="auto", runs=42, device="cpu").runs == 1


def test_auto_takes_more_where_each_run_more_makes_gathers_cheaper():
    tokens = ENOUGH_TOKENS["cpu"] // 4
    runs = plan_fleet([plan(tokens, stage=3)], concurrent="auto", runs=42, device="cpu").runs
    assert runs == ENOUGH_TOKENS["sharded"] // tokens


def test_auto_takes_no_more_than_memory_holds():
    """Banks of 300 MiB: two of them and the backbone leave room, three do not."""
    fleet = plan_fleet([plan(100, bank=300 * MIB)], concurrent="auto", runs=42, device="cpu")
    assert fleet.runs == 2
    assert fleet.shared_bytes + 2 * fleet.run_bytes + fleet.pass_bytes <= USABLE_MEMORY * fleet.memory_bytes


def test_the_largest_run_counts():
    fleet = plan_fleet([plan(100), plan(400, bank=5 * MIB)], concurrent=2, runs=42, device="cpu")
    assert (fleet.tokens, fleet.run_bytes) == (800, 5 * MIB)


def test_a_pass_is_split_where_its_activations_do_not_fit():
    fleet = plan_fleet([plan(100_000, by_token=4000)], concurrent=4, runs=42, device="cpu")
    assert fleet.runs == 4 and 100_000 <= fleet.tokens < 400_000


def test_more_banks_than_fit_are_refused():
    with pytest.raises(UserError, match=r"concurrent: '10': runs at once need 2\.93 GiB for their banks"):
        plan_fleet([plan(100, bank=300 * MIB)], concurrent=10, runs=42, device="cpu")


def test_the_arithmetic_is_told():
    first, second = plan_fleet([plan(100)], concurrent=3, runs=3, device="cpu").equations()
    assert first == "together   3 runs, 300 tokens a pass at most"
    sharded, _ = plan_fleet([plan(100, stage=3)], concurrent=3, runs=3, device="cpu").equations()
    assert sharded.endswith("the backbone gathered once for all in place of 3 times")
    assert "3 x 1.0 MiB of a bank + 100.0 MiB shared" in second


# -- groups


@pytest.mark.parametrize(
    "fields, facts, size",
    [
        ({}, on(SMALL, 64, per_host=8), 1),
        ({}, on(LLAMA_7B, 64, per_host=8, memory=14), 2),  # see test_memory
        ({}, on(LLAMA_7B, 6, per_host=3, memory=14), 3),
        ({"zero__stage": 3}, on(SMALL, 8), 2),
        ({"zero__shard_group": 4}, on(SMALL, 8), 4),
        ({"zero__stage": 0, "zero__shard_group": 8}, on(SMALL, 8), 8),  # whole copies share a batch
    ],
)
def test_a_group_is_as_small_as_the_backbone_and_the_user_allow(fields, facts, size):
    run = config(train__global_batch_size=32, **fields)
    plan = make_plan(run, facts_of_group(run, facts, "auto"))
    assert plan.facts.world_size == size
    assert plan.shard_group == (1 if plan.zero_stage == 0 else size)


def test_a_batch_must_only_reach_the_processes_of_a_group():
    run, facts = config(train__global_batch_size=4), on(SMALL, 64, per_host=8)
    with pytest.raises(UserError, match="is below the 64 processes"):
        make_plan(run, facts)
    assert make_plan(run, facts_of_group(run, facts, 4)).accumulation == 1


@pytest.mark.parametrize("size", [3, 16])
def test_groups_must_divide_the_processes(size):
    with pytest.raises(UserError) as caught:
        facts_of_group(config(zero__shard_group=size), on(SMALL, 8), "auto")
    (mistake,) = caught.value.mistakes
    assert (mistake.where, mistake.value) == ("zero.shard_group", size)
    assert "does not divide the 8 processes into groups" in mistake.rule


@pytest.mark.parametrize("groups, share, idle", [(1, 42, 0), (16, 3, 0), (64, 1, 22)])
def test_no_group_takes_more_than_its_share_and_idle_ones_are_told(groups, share, idle):
    plan = GroupPlan(groups, 2, 42)
    lines = "\n".join(plan.equations())
    assert plan.share == share
    assert (f"groups     {groups} of 2 processes" in lines) == (groups > 1)
    assert (f"idle       {idle} groups: start fewer processes" in lines) == (idle > 0)
