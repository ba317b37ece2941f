"""Successive halving: who goes on, who is chosen, how much is trained, and that a stop changes nothing."""

import json
import math
import random
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lingo_ds.config.run_config import RunConfig
from lingo_ds.config.suite_config import Member, SearchConfig
from lingo_ds.training.search import Job, Search

RUN = RunConfig.model_validate(
    {"name": "r", "backbone": {"path": "builtin:tiny"}, "data": {"path": "builtin:promoters"}}
)
HALVING = SearchConfig(method="halving", keep=1 / 3, at=(0.2, 0.5))

Score = Callable[[Job], float | None]


def take(search: Search) -> Job | None:
    """Starts the next job that may start; None: the others wait for jobs that are running, or all is done."""
    job = next(iter(search.ready()), None)
    if job is not None:
        search.start(job)
    return job


def members_of(tasks: int, settings: int, seeds: int) -> list[Member]:
    return [
        Member(f"t{task}", seed, RUN, {"adapter.rank": setting}, f"rank={setting}")
        for task in range(tasks)
        for setting in range(settings)
        for seed in range(seeds)
    ]


def run(search: Search, score: Score, order: random.Random | None = None, *, at_once: int = 1) -> list[Job]:
    """Runs a search to its end, some jobs at once that end in any order; returns the jobs as they ended."""
    running: list[Job] = []
    ended = []
    while not search.done:
        while len(running) < at_once and (job := take(search)):
            running.append(job)
        job = running.pop(order.randrange(len(running)) if order else 0)
        search.finished(job, score(job))
        ended.append(job)
    assert take(search) is None and not running
    return ended


def trained(jobs: Sequence[Job]) -> float:
    """Work of jobs, each of which goes on where the run's last one paused."""
    reached: dict[int, float] = {}
    work = 0.0
    for job in jobs:
        before = reached.get(job.member, 0.0)
        assert job.until > before, "a run goes on, it does not begin anew"
        work += job.until - before
        reached[job.member] = job.until
    return work


def table(search: Search, task: str = "t0") -> list[tuple]:
    return [(one.setting, list(one.scores), one.dropped, one.chosen) for one in search.history()[task]]


# -- by hand


def test_nine_settings_cost_three_trainings():
    search = Search(members_of(1, 9, 1), HALVING)
    jobs = run(search, lambda job: job.member / 10)
    assert [sum(job.until == until for job in jobs) for until in (0.2, 0.5, 1.0)] == [9, 3, 1]
    assert search.work() == pytest.approx(3.2) and trained(jobs) == pytest.approx(3.2)
    assert search.chosen() == {"t0": "rank=8"}
    everything = Search(members_of(1, 9, 1), SearchConfig())
    assert trained(run(everything, lambda job: 0.0)) == everything.work() == 9


def test_the_history_says_what_was_tried_and_when_it_was_dropped():
    dev = {0: (0.1, 0.4), 1: (0.3, 0.5), 2: (0.2, 0.6)}
    search = Search(members_of(1, 3, 1), SearchConfig(method="halving", keep=0.6, at=(0.5,)))
    run(search, lambda job: dev[job.member][job.until == 1.0])
    assert table(search) == [
        ("rank=0", [(0.5, 0.1)], 0.5, False),
        ("rank=1", [(0.5, 0.3), (1.0, 0.5)], 1.0, False),
        ("rank=2", [(0.5, 0.2), (1.0, 0.6)], None, True),
    ]


def test_a_setting_is_judged_by_the_mean_of_its_seeds():
    dev = [0.9, 0.1, 0.6, 0.5]
    search = Search(members_of(1, 2, 2), SearchConfig())
    run(search, lambda job: dev[job.member])
    assert search.chosen() == {"t0": "rank=1"}
    assert [one[1] for one in table(search)] == [[(1.0, 0.5)], [(1.0, 0.55)]]


def test_tasks_do_not_wait_for_each_other():
    search = Search(members_of(2, 2, 1), SearchConfig(method="halving", keep=0.5, at=(0.5,)))
    jobs = [take(search) for _ in range(4)]
    assert jobs == [(member, 0.5) for member in range(4)] and take(search) is None
    search.finished(jobs[0], 0.1)
    assert take(search) is None, "the first task's other setting has not reached 0.5 yet"
    search.finished(jobs[1], 0.2)
    assert take(search) == (1, 1.0) and take(search) is None
    assert search.chosen() == {"t0": "rank=1"} and not search.done


def test_without_a_grid_each_task_has_its_one_setting_from_the_start():
    members = [Member(task, seed, RUN, {}, "") for task in ("a", "b") for seed in (0, 1)]
    for config in (SearchConfig(), HALVING):
        search = Search(members, config)
        assert search.chosen() == {"a": "", "b": ""}
        assert run(search, lambda job: None) == [(member, 1.0) for member in range(4)]


@pytest.mark.parametrize(
    "scores, chosen",
    [
        ([0.5, 0.5, 0.5], "rank=0"),
        ([None, -1.0, None], "rank=1"),
        ([math.nan, -1.0, 0.0], "rank=2"),
        ([None, math.nan, None], "rank=0"),
    ],
)
def test_of_equal_settings_the_first_is_chosen_and_no_score_is_the_worst(scores, chosen):
    search = Search(members_of(1, 3, 1), SearchConfig())
    run(search, lambda job: scores[job.member])
    assert search.chosen() == {"t0": chosen}


def test_a_failed_run_is_not_trained_on_but_one_without_a_score_is():
    members = members_of(1, 3, 2)
    search = Search(members, SearchConfig(method="halving", keep=0.5, at=(0.5,)))
    no_score = {0: None, 2: math.nan, 4: None, 5: None}  # members 1 and 3 have one
    jobs = run(search, lambda job: no_score.get(job.member, 0.1 * job.member))
    assert [job.member for job in jobs if job.until == 1.0] == [1, 2, 3]
    assert [one.failed for one in search.history()["t0"]] == [1, 0, 2]
    assert search.history()["t0"][2].dropped == 0.5 and search.chosen() == {"t0": "rank=1"}


def test_where_all_runs_fail_the_search_ends():
    search = Search(members_of(2, 4, 2), HALVING)
    assert len(run(search, lambda job: None)) == 16


def test_a_share_is_taken_as_it_is_written():
    search = Search(members_of(1, 25, 1), SearchConfig(method="halving", keep=0.28, at=(0.5,)))
    jobs = run(search, lambda job: 0.0)
    assert sum(job.until == 1.0 for job in jobs) == 7  # in floats 0.28 * 25 is more than 7


# -- in general

searches = st.builds(
    lambda tasks, settings, seeds, keep, at: (
        members_of(tasks, settings, seeds),
        SearchConfig(method="halving", keep=keep / 100, at=tuple(one / 100 for one in sorted(at))),
    ),
    st.integers(1, 3),
    st.integers(1, 10),
    st.integers(1, 3),
    st.integers(1, 99),
    st.sets(st.integers(1, 99), min_size=1, max_size=4),
)


def random_scores(seed: int) -> Score:
    """Scores that depend on the job alone: some equal, some not defined, some runs failed."""

    def score(job: Job) -> float | None:
        return random.Random(f"{seed} {job}").choice([0.1, 0.2, 0.3, 0.4, 0.5, 0.5, math.nan, None])

    return score


@settings(deadline=None)
@given(searches, st.integers())
def test_every_rung_keeps_its_share_of_the_best(case, seed):
    members, config = case
    search = Search(members, config)
    run(search, lambda job: random.Random(f"{seed} {job}").random())
    for results in search.history().values():
        assert [one.chosen for one in results].count(True) == 1
        left = results
        for at in config.at:
            compared = [one for one in left if at in dict(one.scores)]
            assert compared in ([], left), "all that are left are compared, or nobody is"
            if compared:
                left = [one for one in compared if one.dropped != at]
                assert len(left) == math.ceil(round(config.keep * len(compared), 9)) < len(compared)
                worst = min(dict(one.scores)[at] for one in left)
                assert all(dict(one.scores)[at] <= worst for one in compared if one.dropped == at)
        assert max(left, key=lambda one: dict(one.scores)[1.0]).chosen


@settings(deadline=None)
@given(searches)
def test_the_work_that_is_announced_is_done(case):
    search = Search(*case)
    assert trained(run(search, lambda job: job.member)) == pytest.approx(search.work())


@settings(deadline=None)
@given(searches, st.integers(), st.randoms(use_true_random=False), st.integers(1, 40))
def test_the_order_in_which_runs_end_changes_nothing(case, seed, order, at_once):
    one, other = Search(*case), Search(*case)
    jobs = run(one, random_scores(seed)), run(other, random_scores(seed), order, at_once=at_once)
    assert sorted(jobs[0]) == sorted(jobs[1])
    assert one.history() == other.history() and one.chosen() == other.chosen()


@settings(deadline=None)
@given(searches, st.integers(), st.randoms(use_true_random=False), st.integers(0, 60))
def test_a_killed_search_goes_on_as_if_it_had_not_been(case, seed, order, stop):
    whole, killed, score = Search(*case), Search(*case), random_scores(seed)
    jobs = run(whole, score)
    running: list[Job] = []
    before = []
    for _ in range(stop):
        while len(running) < 3 and (job := take(killed)):
            running.append(job)
        if running:
            before.append(running.pop(order.randrange(len(running))))
            killed.finished(before[-1], score(before[-1]))
    again = Search(*case)
    again.load_state_dict(json.loads(json.dumps(killed.state_dict(), allow_nan=False)))
    after = run(again, score, order, at_once=4)
    assert sorted([*before, *after]) == sorted(jobs), "what was running is given out again, nothing else"
    assert again.history() == whole.history() and again.state_dict().keys() == whole.state_dict().keys()


# -- states that do not fit


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda state: state.pop("runs"), "runs"),
        (lambda state: state["runs"].pop(), "another search"),
        (lambda state: state["search"].update(keep=0.5), "another search"),
        (lambda state: state["finished"][0].update(until=0.5), "not due"),
        (lambda state: state["finished"][0].update(member=99), "not due"),
        (lambda state: state["finished"][0].update(score="high"), "finished.0.score"),
        (lambda state: state["finished"].append(state["finished"][0]), "not due"),
    ],
)
def test_the_state_of_another_search_is_refused(change, message):
    search = Search(members_of(2, 3, 1), HALVING)
    job = take(search)
    search.finished(job, 0.5)
    state = json.loads(json.dumps(search.state_dict()))
    change(state)
    with pytest.raises(ValueError, match=message):
        Search(members_of(2, 3, 1), HALVING).load_state_dict(state)
