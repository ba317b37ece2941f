"""Curves read back are what was recorded, also after a run was killed and resumed."""

import json
import logging
import math

from lingo_ds.monitor.metrics_log import MetricsLog, read_metrics
from lingo_ds.monitor.tensorboard import Tracker


def test_a_resumed_run_replaces_what_it_repeats(tmp_path):
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path, first_step=1)
    for step in (1, 2, 3):
        log.write(step, {"train/loss": 1 / step})
    log.write(3, {"dev/mcc": 0.5})
    log.close()
    with path.open("a") as file:
        file.write('{"step": 4, "train/lo')  # killed while it wrote
    log = MetricsLog(path, first_step=3)
    log.write(3, {"train/loss": math.nan})
    log.write(4, {"train/loss": 0.1})
    log.close()
    assert read_metrics(path) == {"train/loss": ([1, 2, 4], [1.0, 0.5, 0.1])}
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(line["step"], line["train/loss"]) for line in lines] == [(1, 1.0), (2, 0.5), (3, None), (4, 0.1)]
    assert read_metrics(tmp_path / "none") == {}


def test_a_file_that_cannot_be_written_is_one_warning(tmp_path, caplog):
    (tmp_path / "full").write_text("")
    with caplog.at_level(logging.WARNING):
        tracker = Tracker(None, lines=tmp_path / "full" / "metrics.jsonl")
        tracker.scalars(1, {"train/loss": 1.0})
        tracker.close()
    assert len(caplog.records) == 1 and "metrics.jsonl" in caplog.text
