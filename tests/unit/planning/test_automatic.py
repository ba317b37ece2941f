"""What `auto` stands for: numbers by hand, and that a run of any length has a plan."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lingo_ds.config.run_config import RunConfig
from lingo_ds.planning.automatic import MASK_CHANGES, choose_schedule, remark_on_masks, with_numbers
from lingo_ds.planning.plan import make_plan
from tests.unit.planning.facts import LLAMA_7B, SMALL, config, on, refused

# -- learning rate


def rate(facts=SMALL, **fields: object) -> float:
    return make_plan(config(**fields), on(facts, 1, memory=80)).learning_rate


def test_rate_falls_with_the_width_and_with_alpha():
    assert rate() > rate(LLAMA_7B)
    assert rate(LLAMA_7B) == pytest.approx(5e-4 * (2000 / 4096) ** 0.3, rel=0.02)
    assert rate(adapter__alpha=32) == pytest.approx(rate(adapter__rank=16)) == pytest.approx(rate() / 2)
    assert rate(adapter__alpha=16, adapter__rank=4) == rate(adapter__alpha=16, adapter__rank=16)


def test_a_rate_that_was_set_is_taken_and_said():
    plan = make_plan(config(train__learning_rate=0.003), SMALL)
    assert plan.learning_rate == 0.003
    assert "rate       0.003 (as set)" in plan.equations()


def test_a_head_alone_has_a_rate_of_its_own_whatever_alpha_is():
    alone = {"adapter__method": "none", "rank_sampling__mode": "off"}
    assert rate(**alone) == rate(**alone, adapter__alpha=99) > 0
    told = make_plan(config(**alone), SMALL).equations()
    assert any(line.startswith("rate") and line.endswith("for a head alone)") for line in told)


def test_the_number_of_the_plan_can_be_set_and_gives_the_same_plan():
    asked = config()
    plan = make_plan(asked, SMALL)
    numbers = with_numbers(asked, learning_rate=plan.learning_rate, schedule=plan.schedule)
    again = make_plan(RunConfig.model_validate(numbers.model_dump()), SMALL)
    assert "auto" not in (numbers.train.learning_rate, numbers.adapter.alpha, numbers.rank_sampling.interval)
    assert (again.learning_rate, again.schedule) == (plan.learning_rate, plan.schedule)
    assert again.rate_origin == "as set"


# -- masks


@given(steps=st.integers(1, 100_000))
@settings(deadline=None)
def test_masks_change_about_twenty_times_in_any_run_with_room(steps):
    run = config()
    schedule = choose_schedule(run, sites=35, steps=steps)
    remark = remark_on_masks(run.rank_sampling, schedule, steps=steps)
    if steps < 4:
        assert schedule is None and "off" in remark
        return
    changes = len(schedule.mask_steps()) + 1
    assert changes <= 1.5 * MASK_CHANGES
    if steps >= 60:
        assert changes >= 0.65 * MASK_CHANGES
    assert ("chance" in remark) == (changes < MASK_CHANGES / 2)


@pytest.mark.parametrize("steps, masks, final", [(4, [1], 2), (10, [2, 3, 4], 5), (189, None, 95)])
def test_a_smoke_run_masks_as_often_as_it_can(steps, masks, final):
    schedule = make_plan(config(train__max_steps=steps), SMALL).schedule
    assert schedule.final_step == final
    assert masks is None or list(schedule.mask_steps()) == masks


def test_phases_that_were_set_in_steps_and_leave_no_room_are_refused():
    (mistake,) = refused(config(train__max_steps=4, rank_sampling__t_init=200))
    assert mistake.where == "rank_sampling.t_init + rank_sampling.t_final"


def test_nothing_is_said_where_no_masks_were_asked_for():
    off = config(rank_sampling__mode="off")
    assert remark_on_masks(off.rank_sampling, None, steps=1) == ""
    by_hand = config(rank_sampling__interval=3, train__max_steps=20)
    schedule = make_plan(by_hand, SMALL).schedule
    assert remark_on_masks(by_hand.rank_sampling, schedule, steps=20) == ""
