"""Which evaluation's adapter is kept, and when training gives up."""

import json
import math
from typing import Any

import pytest

from lingo_ds.training.selection import Best, Selection


def follow(
    evaluations, *, patience=None, metric="mcc", after_final_mask=True
) -> tuple[Selection, list[int], int | None]:
    """Considers (step, mcc, at_budget) in turn; returns the selection, the steps saved, where it stopped."""
    saved: list[Best] = []
    selection = Selection(metric, after_final_mask=after_final_mask, patience=patience, save=saved.append)
    stopped = None
    for step, mcc, at_budget in evaluations:
        if selection.consider(step, {"mcc": mcc, "accuracy": 1 - (mcc or 0)}, at_budget=at_budget):
            stopped = step
            break
    return selection, [best.step for best in saved], stopped


def test_the_best_is_kept_and_the_first_of_equals():
    selection, saved, _ = follow([(5, 0.2, True), (10, 0.6, True), (15, 0.6, True), (20, 0.4, True)])
    assert saved == [5, 10]
    assert selection.best.step == 10 and selection.best.metrics["mcc"] == 0.6


def test_the_metric_is_the_one_asked_for():
    selection, *_ = follow([(5, 0.2, True), (10, 0.6, True)], metric="accuracy")
    assert selection.best.step == 5


def test_at_budget_is_preferred_to_any_better_one_before():
    evaluations = [(5, 0.9, False), (10, 0.1, True), (15, 0.3, True), (20, 0.2, True)]
    selection, saved, _ = follow(evaluations)
    assert saved == [5, 10, 15]
    assert selection.best.step == 15 and selection.best.at_budget
    free, *_ = follow(evaluations, after_final_mask=False)
    assert free.best.step == 5 and not free.best.at_budget


def test_before_the_budget_the_best_is_kept_nonetheless():
    selection, saved, _ = follow([(5, -0.1, False), (10, 0.5, False), (15, 0.4, False)])
    assert saved == [5, 10] and not selection.best.at_budget


def test_patience_counts_evaluations_at_budget_that_were_no_better():
    worse = [(step, 0.5, True) for step in range(10, 60, 10)]
    assert follow(worse, patience=2)[2] == 30
    assert follow(worse, patience=None)[2] is None
    recovered = [(10, 0.5, True), (20, 0.4, True), (30, 0.6, True), (40, 0.1, True), (50, 0.1, True)]
    assert follow(recovered, patience=2)[2] == 50
    assert follow(recovered, patience=3)[2] is None


def test_patience_does_not_run_out_before_the_final_mask():
    early = [(step, 0.9 - step / 100, False) for step in range(1, 20)]
    assert follow(early, patience=2)[2] is None
    selection, _, stopped = follow([*early, (30, 0.1, True), (31, 0.0, True), (32, 0.0, True)], patience=2)
    assert stopped == 32 and selection.best.step == 30
    assert follow(early, patience=2, after_final_mask=False)[2] == 3


def test_an_undefined_metric_is_worse_than_any_number():
    selection, saved, _ = follow([(5, None, True), (10, -1.0, True), (15, None, True)])
    assert saved == [5, 10] and selection.best.step == 10
    only, saved, stopped = follow([(5, None, True), (10, None, True), (15, None, True)], patience=2)
    assert (only.best.step, saved, stopped) == (5, [5], 15)


@pytest.mark.parametrize("cut", range(1, 6))
def test_resuming_from_a_checkpoint_changes_nothing(cut):
    evaluations = [
        (5, 0.9, False),
        (10, 0.3, True),
        (15, 0.2, True),
        (20, 0.4, True),
        (25, None, True),
        (30, 0.1, True),
    ]
    whole, _, stopped = follow(evaluations, patience=2)
    first, *_ = follow(evaluations[:cut], patience=2)
    second = Selection("mcc", after_final_mask=True, patience=2, save=lambda best: None)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    ends = [
        step
        for step, mcc, at_budget in evaluations[cut:]
        if second.consider(step, {"mcc": mcc, "accuracy": math.pi}, at_budget=at_budget)
    ]
    assert ends == [stopped] == [30]
    assert (second.best.step, second.best.stale) == (whole.best.step, whole.best.stale) == (20, 2)


STATE = {"step": 20, "metrics": {"mcc": 0.4, "auroc": None}, "at_budget": True, "stale": 2}


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"step": "20"}, "step"),
        ({"step": -1}, "step"),
        ({"step": 2**80}, "step"),
        ({"stale": 1.5}, "stale"),
        ({"at_budget": 1}, "at_budget"),
        ({"metrics": [0.4]}, "metrics"),
        ({"metrics": {"mcc": math.nan}}, "mcc"),
        ({"code": "import os"}, "code"),
    ],
    ids=str,
)
def test_any_other_state_is_refused_by_name(change: dict[str, Any], names: str):
    selection, *_ = follow([])
    with pytest.raises(ValueError, match=names):
        selection.load_state_dict({**STATE, **change})
    assert selection.best == Best()


@pytest.mark.parametrize("key", STATE)
def test_a_missing_key_is_refused_by_name(key: str):
    selection, *_ = follow([])
    with pytest.raises(ValueError, match=f"{key}: Field required"):
        selection.load_state_dict({name: value for name, value in STATE.items() if name != key})
