"""Hooks of a run: when they are due, what they leave for others, and what a person reads meanwhile."""

from types import SimpleNamespace

import pytest

from lingo_ds.config.train_config import CheckpointConfig
from lingo_ds.training.callbacks import Watcher, checkpoints, dev_evaluation, loss_watch, traffic_count
from lingo_ds.training.selection import Selection


def step(number: int, loss: float, dev: dict | None = None, *, kept: int | None = None) -> SimpleNamespace:
    """A finished step, as far as the progress bar looks at it."""
    return SimpleNamespace(
        step=number,
        stats=SimpleNamespace(loss=loss),
        evaluation=dev and SimpleNamespace(metrics=dev),
        mask_event=kept and SimpleNamespace(kept=kept),
    )


def test_the_bar_shows_loss_speed_the_last_dev_metric_and_what_was_kept():
    plan = SimpleNamespace(schedule=None)
    watcher = Watcher(None, None, plan=plan, audit=None, metric="mcc")
    watcher.throughput.step(examples=1, real_tokens=24_691, total_tokens=30_000, seconds=2.0)
    shown = [
        watcher._details(info)
        for info in (
            step(1, 1.0),
            step(2, 0.5, {"mcc": 0.625}),
            step(3, 0.25, kept=1234),
            step(4, 0.2, {"mcc": None}),
        )
    ]
    assert shown == [
        "loss 1.0000  dev mcc -  12,346 tokens/s",
        "loss 0.5000  dev mcc 0.625  12,346 tokens/s",
        "loss 0.2500  dev mcc 0.625  kept 1,234  12,346 tokens/s",
        "loss 0.2000  dev mcc 0.625  kept 1,234  12,346 tokens/s",
    ]


PLAN = SimpleNamespace(steps=10, eval_interval=3, schedule=SimpleNamespace(initial=8, final_step=6))


def after(number: int, **found: object) -> SimpleNamespace:
    """What hooks are told after a step."""
    return SimpleNamespace(step=number, end=None, evaluation=None, traffic=None, **found)


def selection(patience: int | None = None) -> Selection:
    return Selection("mcc", after_final_mask=True, patience=patience, save=lambda best: None)


def test_dev_is_evaluated_as_planned_and_at_the_last_step():
    hook = dev_evaluation(PLAN, lambda: None, selection())
    assert [number for number in range(1, 11) if hook.due(after(number))] == [3, 6, 9, 10]


@pytest.mark.parametrize(("number", "due"), [(3, False), (10, True)])
def test_an_interrupted_run_is_evaluated_only_where_it_is_over(number: int, due: bool):
    info = after(number)
    info.end = "interrupted"
    assert dev_evaluation(PLAN, lambda: None, selection()).due(info) == due


def test_training_ends_where_dev_gets_no_better_and_an_interruption_stays_one():
    values = iter([0.5, 0.4, 0.3])
    best = selection(patience=1)
    hook = dev_evaluation(PLAN, lambda: SimpleNamespace(metrics={"mcc": next(values)}), best)
    infos = [after(number) for number in (6, 9, 10)]
    infos[2].end = "interrupted"
    for info in infos:
        hook.after(info)
    assert [info.end for info in infos] == [None, "early stopping", "interrupted"]
    assert [info.evaluation.metrics["mcc"] for info in infos] == [0.5, 0.4, 0.3]
    assert (best.best.step, best.best.at_budget) == (6, True)


def saved(best_step: int, **settings: object) -> list[int]:
    """Steps of a run after which a checkpoint is due."""
    steps, best = [], selection()
    best.best.step = best_step
    hook = checkpoints(CheckpointConfig.model_validate(settings), PLAN, best, steps.append)
    for number in range(1, 11):
        if hook.due(after(number)):
            hook.after(after(number))
    return steps


def test_checkpoints_are_saved_every_so_many_steps_at_the_best_and_at_the_last():
    assert saved(5, every=4) == [4, 5, 8, 10]
    assert saved(5, every=4, keep_best=False) == [4, 8, 10]
    assert saved(5) == []


def test_an_interrupted_run_saves_a_checkpoint_whatever_the_settings():
    info = after(7)
    info.end = "interrupted"
    assert checkpoints(CheckpointConfig(), PLAN, selection(), lambda step: None).due(info)


def test_traffic_is_counted_with_masks_and_audits_where_there_were_any():
    asked = []
    meter = SimpleNamespace(start=lambda: asked.append("start"), finish=lambda **sizes: asked.append(sizes))
    hook = traffic_count(meter, PLAN, SimpleNamespace(fingerprints=11))
    hook.before(1)
    hook.after(after(1, micro_batches=2, mask_event=None, audited=False))
    hook.after(after(2, micro_batches=3, mask_event="masks", audited=True))
    assert asked == [
        "start",
        {"micro_batches": 2, "masked": 0, "audited": 0},
        {"micro_batches": 3, "masked": 8, "audited": 11},
    ]


def losses_watched(caplog: pytest.LogCaptureFixture, losses: list[float]) -> list[str]:
    hook = loss_watch(0.5)
    for number, loss in enumerate(losses, 1):
        hook.after(step(number, loss))
    found = [record.getMessage() for record in caplog.records]
    caplog.clear()
    return found


def test_a_loss_that_explodes_is_said_once(caplog):
    falls = [0.7 - 0.01 * k for k in range(30)]
    assert losses_watched(caplog, falls) == []
    assert losses_watched(caplog, [5.0, 4.0, *falls, 2.0, *falls[20:]]) == [], "one odd step is none"
    (said,) = losses_watched(caplog, [*falls, *[9.0] * 20])
    assert (
        said.startswith("step 32: the loss rose from 0.455 to ")
        and "train.learning_rate, which is 0.5" in said
    )
    assert losses_watched(caplog, [0.01] * 20 + [0.3] * 20) == [], "small losses vary"
