"""TensorBoard reads back what was recorded, and no failure to record stops a run."""

import io
import logging
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lingo_ds.monitor.tensorboard import Tracker

pytestmark = pytest.mark.filterwarnings("error")


def read(folder) -> EventAccumulator:
    return EventAccumulator(str(folder)).Reload()


def test_tensorboard_reads_back_what_was_recorded(tmp_path):
    tracker = Tracker(tmp_path)
    tracker.scalars(1, {"train/loss": 0.7, "rank/kept": 40})
    tracker.scalars(2, {"train/loss": np.float32(0.5)})
    picture = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
    tracker.image(2, "rank/map", picture)
    tracker.histogram(2, "rank/importance", np.array([[1.0, 2.0], [3.0, np.nan]]))
    tracker.text(0, "run/config", "name: tata")
    tracker.close()
    events = read(tmp_path)
    assert [(e.step, round(e.value, 4)) for e in events.Scalars("train/loss")] == [(1, 0.7), (2, 0.5)]
    assert events.Scalars("rank/kept")[0].value == 40
    image = events.Images("rank/map")[0]
    assert (image.step, image.height, image.width) == (2, 4, 6)
    assert (np.asarray(Image.open(io.BytesIO(image.encoded_image_string))) == picture).all()
    histogram = events.Histograms("rank/importance")[0].histogram_value
    assert (histogram.num, histogram.min, histogram.max) == (3, 1, 3)
    assert b"name: tata" in events.Tensors("run/config/text_summary")[0].tensor_proto.string_val[0]


def test_resumed_run_hides_what_it_records_again(tmp_path):
    first = Tracker(tmp_path)
    for step in (1, 2, 3):
        first.scalars(step, {"train/loss": 1.0})
    first.close()
    time.sleep(1.1)  # event files are read in the order of the second in their names
    again = Tracker(tmp_path, purge_from=3)
    again.scalars(3, {"train/loss": 0.25})
    again.close()
    assert [(e.step, e.value) for e in read(tmp_path).Scalars("train/loss")] == [(1, 1), (2, 1), (3, 0.25)]


def test_folder_deleted_while_running_is_one_warning(tmp_path, caplog):
    folder = tmp_path / "tensorboard"
    tracker = Tracker(folder)
    tracker.scalars(1, {"train/loss": 1.0})
    while "train/loss" not in read(folder).Tags()["scalars"]:
        time.sleep(0.01)
    shutil.rmtree(folder)
    for step in range(2, 30):
        tracker.scalars(step, {"train/loss": 1.0, "train/lr": 0.1})
        tracker.image(step, "rank/map", np.zeros((2, 2, 3), np.uint8))
    tracker.close()
    warnings = [r for r in caplog.records if r.levelno >= logging.WARNING]
    assert len(warnings) == 1
    assert str(folder) in warnings[0].getMessage()
    assert "training goes on" in warnings[0].getMessage()


def test_disk_full_does_not_stop_training(tmp_path):
    code = f"""
import logging, pathlib, resource, sys, time
from lingo_ds.monitor.tensorboard import Tracker
logging.basicConfig(stream=sys.stdout)
tracker = Tracker(pathlib.Path({str(tmp_path)!r}))
resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))  # a write past it fails, as on a full disk
for step in range(300):
    tracker.scalars(step, {{"train/loss": 1.0}})
    time.sleep(0.001)
tracker.close()
logging.getLogger().warning("trained to the end")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split(":")[1] for line in lines] == ["lingo_ds.monitor.tensorboard", "root"]
    assert "File too large" in lines[0]


def test_unwritable_folder_is_a_warning_and_null_is_silent(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    Tracker(tmp_path / "file" / "tensorboard").scalars(1, {"train/loss": 1.0})
    assert len(caplog.records) == 1
    caplog.clear()
    silent = Tracker.null()
    silent.scalars(1, {"train/loss": 1.0})
    silent.image(1, "rank/map", np.zeros((2, 2, 3), np.uint8))
    silent.histogram(1, "rank/importance", np.ones(3))
    silent.text(1, "run/config", "x")
    silent.close()
    assert not caplog.records
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
