"""The budget over a run: golden numbers, mask steps by hand, what is refused, what holds for any schedule."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from lingo_ds.config.run_config import RunConfig
from lingo_ds.rank_sampling.schedule import BudgetSchedule
from lingo_ds.utils.errors import UserError

pytestmark = pytest.mark.filterwarnings("error")


def schedule_of(**changes: int) -> BudgetSchedule:
    """30 steps, masks at 6, 12, 18 and, finally, 23."""
    settings = {"initial": 24, "target": 8, "t_init": 5, "t_final": 7, "total": 30, "interval": 6}
    return BudgetSchedule(**settings | changes)


def golden_schedule(numbers: dict, *, interval: int) -> BudgetSchedule:
    return BudgetSchedule(
        initial=numbers["b0"],
        target=numbers["b_final"],
        t_init=numbers["t_init"],
        t_final=numbers["t_final"],
        total=numbers["total"],
        interval=interval,
    )


def test_short_golden_budget(golden: dict):
    schedule = golden_schedule(golden["schedule"], interval=1)
    assert len(golden["steps"]) == 12
    assert [schedule.budget_at(step["step"]) for step in golden["steps"]] == [
        step["budget"] for step in golden["steps"]
    ]


def test_long_golden_budget(golden: dict):
    schedule = golden_schedule(golden["long_schedule"], interval=10)
    expected = {int(step): budget for step, budget in golden["long_schedule"]["budget_at"].items()}
    assert len(expected) > 5
    assert {step: schedule.budget_at(step) for step in expected} == expected


def test_budget_by_hand():
    # The middle phase is 18 steps long; after a third of it (2/3)^3 of the 16 surplus triplets are left.
    budgets = [schedule_of().budget_at(step) for step in (1, 5, 11, 14, 17, 23, 24, 30)]
    assert budgets == [24, 24, int(16 * 8 / 27 + 8), int(16 / 8 + 8), int(16 / 27 + 8), 8, 8, 8]


def test_mask_steps_of_a_run_without_end_are_not_counted_one_by_one():
    schedule = BudgetSchedule(initial=8, target=4, t_init=3, t_final=5, total=2**31, interval=1)
    assert len(schedule.mask_steps()) == 2**31 - 9


@pytest.mark.parametrize(
    ("changes", "middle", "final"),
    [
        ({}, [6, 12, 18], 23),
        ({"t_final": 6}, [6, 12, 18], 24),  # the final mask is a multiple of the interval, and counts once
        ({"t_init": 6}, [12, 18], 23),  # at the last step of the warm-up nothing is masked
        ({"interval": 18}, [18], 23),
        ({"t_init": 0, "interval": 1, "total": 4, "t_final": 1}, [1, 2], 3),
        ({"t_final": 0}, [6, 12, 18, 24], 30),
    ],
)
def test_mask_steps(changes: dict[str, int], middle: list[int], final: int):
    schedule = schedule_of(**changes)
    assert list(schedule.mask_steps()) == middle
    assert schedule.final_step == final
    steps = range(schedule.total + 1)
    assert [step for step in steps if schedule.is_mask_step(step)] == [*middle, final]


@pytest.mark.parametrize(
    ("changes", "fields"),
    [
        ({"t_init": 23}, ["rank_sampling.t_init + rank_sampling.t_final"]),  # 23 + 7 = 30 steps: no middle
        ({"t_init": 40}, ["rank_sampling.t_init + rank_sampling.t_final"]),
        ({"interval": 23}, ["rank_sampling.interval"]),  # the first multiple is the final mask itself
        ({"interval": 1000}, ["rank_sampling.interval"]),  # PITFALLS: one mask event in a whole run
        ({"target": 25}, ["rank_sampling.target_rank"]),
        ({"target": 25, "interval": 1000}, ["rank_sampling.interval", "rank_sampling.target_rank"]),
    ],
)
def test_impossible_schedules_are_refused(changes: dict[str, int], fields: list[str]):
    with pytest.raises(UserError) as caught:
        schedule_of(**changes)
    assert [mistake.where for mistake in caught.value.mistakes] == fields


@pytest.mark.parametrize(
    "sampling",
    [
        {"interval": 0},
        {"interval": -1},
        {"target_rank": 0},
        {"target_rank": 9},  # of adapter.rank 8
        {"rho": -0.1},
        {"rho": 1.0},
        {"rho_final": 1.0},
        {"t_init": -1},
        {"t_final": -0.1},
    ],
)
def test_impossible_settings_are_refused(sampling: dict[str, float]):
    base = {"name": "t", "backbone": {"path": "b"}, "data": {"path": "d"}, "adapter": {"rank": 8}}
    RunConfig.model_validate(base | {"rank_sampling": {"interval": 1}})
    with pytest.raises(ValidationError) as caught:
        RunConfig.model_validate(base | {"rank_sampling": sampling})
    error, *others = caught.value.errors()
    assert [other["type"] for other in others] in ([], ["literal_error"])  # nor is it `auto`
    named = [*error["loc"], *error.get("ctx", {}).get("field", "").split(".")]
    assert next(iter(sampling)) in named


def test_rho_is_constant_or_decays_to_the_final_mask():
    schedule = schedule_of()  # middle phase 5 .. 23
    assert {schedule.rho_at(step, rho=0.1, rho_final=None) for step in (1, 6, 18, 23)} == {0.1}
    decayed = [schedule.rho_at(step, rho=0.2, rho_final=0.0) for step in (1, 5, 14, 17, 23, 30)]
    assert decayed == pytest.approx([0.2, 0.2, 0.1, 0.2 / 3, 0.0, 0.0])
    rising = [schedule.rho_at(step, rho=0.1, rho_final=0.5) for step in (5, 14, 23)]
    assert rising == pytest.approx([0.1, 0.3, 0.5])


@st.composite
def schedules(draw: st.DrawFn) -> BudgetSchedule:
    initial = draw(st.integers(1, 5000))
    t_init, t_final = draw(st.integers(0, 60)), draw(st.integers(0, 60))
    first = t_init + 1  # with an interval that divides some step of the middle phase
    middle = draw(st.integers(2, 120))
    step = draw(st.integers(first, t_init + middle - 1))
    interval = draw(st.sampled_from([d for d in range(1, step + 1) if step % d == 0]))
    return BudgetSchedule(
        initial=initial,
        target=draw(st.integers(0, initial)),
        t_init=t_init,
        t_final=t_final,
        total=t_init + middle + t_final,
        interval=interval,
    )


@settings(max_examples=100, deadline=None, derandomize=True)
@given(schedules())
def test_any_budget_falls_from_all_to_the_target(schedule: BudgetSchedule):
    budgets = [schedule.budget_at(step) for step in range(schedule.total + 1)]
    assert all(later <= earlier for earlier, later in pairwise(budgets))
    assert all(schedule.target <= budget <= schedule.initial for budget in budgets)
    assert set(budgets[: schedule.t_init + 1]) == {schedule.initial}
    assert set(budgets[schedule.final_step :]) == {schedule.target}


@settings(max_examples=100, deadline=None, derandomize=True)
@given(schedules())
def test_any_schedule_masks_at_multiples_inside_and_once_at_the_end(schedule: BudgetSchedule):
    steps = [step for step in range(schedule.total + 1) if schedule.is_mask_step(step)]
    assert steps == [*schedule.mask_steps(), schedule.total - schedule.t_final]
    assert len(steps) >= 2
    for step in steps[:-1]:
        assert step % schedule.interval == 0
        assert schedule.t_init < step < schedule.final_step
