"""The plan's arithmetic against numbers worked out by hand, and what must hold for any job."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lingo_ds.commands.plan import plan as plan_run
from lingo_ds.config.run_config import RunConfig
from lingo_ds.config.suite_config import Suite, load_runs
from lingo_ds.distributed.process_group import detect
from lingo_ds.planning.plan import RunPlan, make_plan
from lingo_ds.planning.plan_inputs import Facts
from lingo_ds.utils.errors import UserError
from lingo_ds.utils.resources import list_resources, resource_path
from lingo_ds.utils.units import GIB
from tests.unit.planning.facts import LLAMA_7B, SMALL, config, on, refused

# -- batch, epochs, steps


@pytest.mark.parametrize(
    "world, batch, asked, micro, accumulation",
    [
        (1, 32, None, 32, 1),
        (2, 32, None, 16, 1),
        (2, 33, None, 17, 1),
        (3, 32, None, 11, 1),
        (1, 32, 5, 5, 7),
        (2, 32, 5, 5, 4),
        (4, 32, 8, 8, 1),
        (8, 100, 4, 4, 4),
        (8, 8, 1, 1, 1),
    ],
)
def test_batch_is_shared_by_processes_and_micro_batches(world, batch, asked, micro, accumulation):
    fields = {"train__global_batch_size": batch, "train__micro_batch_size": asked}
    plan = make_plan(config(**fields), on(SMALL, world))
    assert (plan.global_batch_size, plan.micro_batch_size, plan.accumulation) == (batch, micro, accumulation)


@given(
    world=st.integers(1, 16),
    batch=st.integers(1, 300),
    asked=st.none() | st.integers(1, 64),
    fitting=st.integers(1, 40),
)
@settings(deadline=None)
def test_micro_batches_hold_the_batch_and_none_is_superfluous(world, batch, asked, fitting):
    batch = max(batch, world)
    run = config(train__global_batch_size=batch, train__micro_batch_size=asked, zero__stage=0)
    roomy = make_plan(run, on(SMALL, world))
    fixed = sum(size for part, size in roomy.bytes_per_process.items() if part != "activations")
    example = roomy.bytes_per_process["activations"] // roomy.micro_batch_size
    plan = make_plan(run, on(SMALL, world, memory=(fixed + (fitting + 0.5) * example) / 0.8 / GIB))
    share = math.ceil(batch / world)
    assert world * plan.accumulation * plan.micro_batch_size >= batch
    assert (plan.accumulation - 1) * plan.micro_batch_size < share
    if asked is None:
        assert plan.micro_batch_size <= min(fitting, share)
        assert plan.accumulation == math.ceil(share / min(fitting, share))
        assert sum(plan.bytes_per_process.values()) <= 0.8 * plan.facts.memory_bytes
    else:
        assert min(asked, share) <= plan.micro_batch_size <= asked


def test_batch_below_the_number_of_processes_is_refused():
    (mistake,) = refused(config(train__global_batch_size=7), on(SMALL, 8))
    assert (mistake.where, mistake.value) == ("train.global_batch_size", 7)
    assert "8 processes" in mistake.rule


@pytest.mark.parametrize(
    "fields, steps, eval_interval",
    [
        ({"train__num_epochs": 6}, 924, 154),  # ceil(4904 / 32) = 154 steps an epoch
        ({"train__num_epochs": 0.5}, 77, 154),
        ({"train__num_epochs": 0.001, "rank_sampling__mode": "off"}, 1, 154),
        ({"train__num_epochs": 6, "train__max_steps": 100}, 100, 154),
        ({"train__num_epochs": 6, "train__eval_epochs": 0.5}, 924, 77),
        ({"train__num_epochs": 6, "train__eval_epochs": 1e-9}, 924, 1),
        ({"train__num_epochs": 6, "train__eval_steps": 50}, 924, 50),
        ({"train__num_epochs": 1, "train__global_batch_size": 4904, "rank_sampling__mode": "off"}, 1, 1),
        ({"train__num_epochs": 1, "train__global_batch_size": 9999, "rank_sampling__mode": "off"}, 1, 1),
    ],
)
def test_steps_and_rhythm_of_evaluation(fields, steps, eval_interval):
    plan = make_plan(config(**fields), SMALL)
    assert (plan.steps, plan.eval_interval) == (steps, eval_interval)


def test_the_plan_is_told_as_equations_and_as_json():
    plan = make_plan(config(train__num_epochs=6), on(SMALL, 2))
    told = "\n".join(plan.equations())
    for words in (
        "32 examples <= 2 processes x 1 accumulation x 16 micro-batch",
        "ceil(4904 rows / 32) = 154 steps",
        "924 steps = 6.00 epochs; 46 warm-up; dev every 154",
        "46,648 trainable / 260,032 backbone = 17.94%",
        "280 -> 140 triplets",
        "rate       0.0014 (auto: 0.0005 x (2000 / 64 hidden)^0.3 x 16 / 16 alpha)",
    ):
        assert words in told
    written = json.loads(json.dumps(plan.to_dict(), allow_nan=False))
    assert (written["steps"], written["facts"]["sites"], written["schedule"]["target"]) == (924, 35, 140)


# -- what learns


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


TINY_MAPS = {  # (d_out, d_in) in each of builtin:tiny's 3 layers, hidden size 64
    "q_proj": (64, 64),
    "k_proj": (64, 64),
    "v_proj": (64, 64),
    "o_proj": (64, 64),
    "gate_proj": (176, 64),
    "up_proj": (176, 64),
    "down_proj": (64, 176),
}


@pytest.mark.parametrize("method, lam", [("svd", 1), ("lora", 0)])
@pytest.mark.parametrize(
    "rank, targets", [(8, list(TINY_MAPS)), (5, ["k_proj", "down_proj"])], ids=["all", "two"]
)
def test_parameters_of_low_rank_adapters_by_hand(cache, method, lam, rank, targets):
    adapter = {"method": method, "rank": rank, "targets": targets}
    of_a_layer = sum(rank * (d_out + d_in + lam) for d_out, d_in in (TINY_MAPS[name] for name in targets))
    has_learning_parameters(cache, adapter, sites=3 * len(targets), trainable=3 * of_a_layer + 2 * 64)


@pytest.mark.parametrize("rank", [1, 8])
def test_parameters_of_a_head_alone_by_hand(cache, rank):
    """2 classes of 64 numbers, whatever the settings of adapters that are not there."""
    adapter = {"method": "none", "rank": rank}
    has_learning_parameters(cache, adapter, sites=0, trainable=2 * 64)


def has_learning_parameters(cache: Path, adapter: dict[str, Any], *, sites: int, trainable: int) -> None:
    """As `lingo-ds plan` says of the embedded backbone and data."""
    values = {
        "name": "x",
        "backbone": {"path": "builtin:tiny"},
        "data": {"path": "builtin:promoters", "cache_dir": cache},
        "adapter": adapter,
        "rank_sampling": {"mode": "off"},
    }
    plan = plan_run(RunConfig.model_validate(values), detect())
    facts = plan.facts
    assert (facts.sites, facts.bank_parameters, facts.head_parameters) == (sites, trainable, 2 * 64)
    assert plan.fraction == pytest.approx(trainable / 157_440)
    assert plan.to_dict()["fraction"] == plan.fraction
    assert plan.schedule is None
    told = f"{trainable:,} trainable / 157,440 backbone = {trainable / 157_440:.2%} ({sites} sites, head 128)"
    assert told in "\n".join(plan.equations())


# -- budget


def test_budget_of_a_plan():
    fields = {"adapter__rank": 8, "rank_sampling__target_rank": 3, "train__max_steps": 200}
    schedule = make_plan(config(**fields), SMALL).schedule
    assert (schedule.initial, schedule.target) == (35 * 8, 35 * 3)
    assert (schedule.t_init, schedule.t_final, schedule.final_step) == (20, 100, 100)  # .1 and .5 of the run
    assert list(schedule.mask_steps()) == list(range(24, 100, 4))  # with the final one 20 changes
    in_steps = make_plan(config(**fields, rank_sampling__t_init=20, rank_sampling__t_final=100), SMALL)
    assert in_steps.schedule == schedule
    every_20 = make_plan(config(**fields, rank_sampling__interval=20), SMALL).schedule
    assert list(every_20.mask_steps()) == [40, 60, 80]
    assert make_plan(config(rank_sampling__mode="off"), SMALL).schedule is None


@pytest.mark.parametrize(
    "fields, where",
    [
        ({"t_init": 0.5, "t_final": 0.5}, "rank_sampling.t_init + rank_sampling.t_final"),
        ({"t_init": 70, "t_final": 30}, "rank_sampling.t_init + rank_sampling.t_final"),
        ({"t_init": 200}, "rank_sampling.t_init + rank_sampling.t_final"),
        ({"interval": 70}, "rank_sampling.interval"),
        ({"t_init": 0.1, "t_final": 0.89, "interval": 20}, "rank_sampling.interval"),
    ],
)
def test_schedule_that_cannot_work_is_refused(fields, where):
    sampling = {f"rank_sampling__{name}": value for name, value in fields.items()}
    (mistake,) = refused(config(train__max_steps=100, **sampling))
    assert mistake.where == where and mistake.rule and mistake.fix
    make_plan(config(train__max_steps=100, rank_sampling__mode="off"), SMALL)


def test_run_too_short_for_a_mask_is_refused_where_the_interval_was_set():
    assert "rank_sampling" in refused(config(train__max_steps=3, rank_sampling__interval=1))[0].where
    assert make_plan(config(train__max_steps=3), SMALL).schedule is None


# -- learning rate


@pytest.mark.parametrize("warmup, steps", [(0, 0), (0.05, 5), (10, 10), (1000, 100)])
def test_warmup_in_steps_or_as_a_fraction(warmup, steps):
    assert make_plan(config(train__max_steps=100, train__warmup=warmup), SMALL).warmup_steps == steps


@given(steps=st.integers(1, 400), warmup=st.floats(0, 0.99) | st.integers(1, 500))
@settings(deadline=None)
def test_warmup_ends_within_the_run(steps, warmup):
    plan = make_plan(config(train__max_steps=steps, train__warmup=warmup, rank_sampling__mode="off"), SMALL)
    assert 0 <= plan.warmup_steps <= steps


# -- DeepSpeed's settings


def leaves(value: Any) -> list[Any]:
    if not isinstance(value, dict):
        return [value]
    return [leaf for inner in value.values() for leaf in leaves(inner)]


def keys(value: Any, above: str = "") -> set[str]:
    if not isinstance(value, dict):
        return {above}
    return {key for name, inner in value.items() for key in keys(inner, f"{above}.{name}")}


@pytest.fixture
def sharded() -> RunPlan:
    return make_plan(config(zero__stage=3), on(LLAMA_7B, 4, memory=80))


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("name", list_resources("ds_configs"))
def test_every_profile_is_filled_in(sharded, name, dtype):
    profile = json.loads(resource_path("ds_configs", name).read_text())
    filled = sharded.deepspeed_config(profile, dtype=dtype)
    assert "auto" not in leaves(filled)
    assert keys(filled) == keys(profile)
    assert filled["zero_optimization"]["stage"] == 3
    assert filled["train_micro_batch_size_per_gpu"] == sharded.micro_batch_size
    assert filled["bf16"]["enabled"] is (dtype == "bf16")
    assert filled.get("fp16", {"enabled": False})["enabled"] is (dtype == "fp16" and "fp16" in profile)
    kept = filled["zero_optimization"]["stage3_max_live_parameters"]
    assert LLAMA_7B.layer_parameters < kept < LLAMA_7B.backbone_parameters / 2


def settings_of(profile: str, facts: Facts) -> tuple[bool, int, int]:
    """Whether weights come one by one, entries gathered ahead, and how far apart two uses may be."""
    filled = json.loads(resource_path("ds_configs", profile).read_text())
    plan = make_plan(config(zero__stage=3), facts)
    zero = plan.deepspeed_config(filled, dtype="bf16")["zero_optimization"]
    prefetch, kept = zero["stage3_prefetch_bucket_size"], zero["stage3_max_reuse_distance"]
    return zero.get("stage3_allgather_sequential", False), prefetch, kept


def test_on_the_cpu_a_large_layer_is_held_alone():
    large, small = LLAMA_7B.layer_parameters, SMALL.layer_parameters
    assert settings_of("zero3_cpu.json", on(LLAMA_7B, 4, memory=80)) == (True, 0, 0)
    assert settings_of("zero3_cpu.json", on(SMALL, 4, memory=80)) == (False, small, 2 * small)
    small_weights = 32 * LLAMA_7B.hidden_size
    assert settings_of("zero3.json", on(LLAMA_7B, 4, memory=80)) == (False, large - small_weights, 2 * large)


def test_what_a_profile_sets_itself_is_kept(sharded):
    profile = {"zero_optimization": {"stage": 3, "stage3_prefetch_bucket_size": 7, "deep": {"x": [1, None]}}}
    assert sharded.deepspeed_config(profile, dtype="fp32") == profile


def test_auto_that_the_plan_does_not_know_is_the_users_mistake(sharded):
    with pytest.raises(UserError) as caught:
        sharded.deepspeed_config({"zero_optimization": {"reduce_bucket_size": "auto"}}, dtype="fp32")
    (mistake,) = caught.value.mistakes
    assert mistake.where == "zero.profile" and mistake.value == "reduce_bucket_size: auto"


@pytest.mark.parametrize("world", [1, 2, 8])
@pytest.mark.parametrize("name", list_resources("recipes"))
def test_every_recipe_plans(name, world):
    runs = load_runs(resource_path("recipes", name))
    for run in [member.config for member in runs.members] if isinstance(runs, Suite) else [runs]:
        plan = make_plan(run, on(SMALL, world))
        assert plan.steps > 0 and plan.equations()
