"""What a person reads while a run trains."""

from types import SimpleNamespace

from lingo_ds.training.callbacks import Watcher


def step(number: int, loss: float, dev: dict | None = None) -> SimpleNamespace:
    """A finished step, as far as the progress bar looks at it."""
    stats = SimpleNamespace(loss=loss)
    return SimpleNamespace(step=number, stats=stats, evaluation=dev and SimpleNamespace(metrics=dev))


def test_the_bar_shows_loss_speed_and_the_last_dev_metric_that_was_measured():
    plan = SimpleNamespace(schedule=None)
    watcher = Watcher(None, None, plan=plan, sampler=None, audit=None, metric="mcc", pictures=None)
    watcher.throughput.step(examples=1, real_tokens=24_691, total_tokens=30_000, seconds=2.0)
    shown = [
        watcher._details(info)
        for info in (step(1, 1.0), step(2, 0.5, {"mcc": 0.625}), step(3, 0.25), step(4, 0.2, {"mcc": None}))
    ]
    assert shown == [
        "loss 1.0000  dev mcc -  12,346 tokens/s",
        "loss 0.5000  dev mcc 0.625  12,346 tokens/s",
        "loss 0.2500  dev mcc 0.625  12,346 tokens/s",
        "loss 0.2000  dev mcc 0.625  12,346 tokens/s",
    ]
