"""What a user sees of a run: TensorBoard, pictures, rates, the progress display and the report."""

import contextlib
import io
import json
import logging
import os
import pty
import shutil
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import torch
from PIL import Image
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lingo_ds.monitor import progress as progress_module
from lingo_ds.monitor.progress import Progress
from lingo_ds.monitor.rank_plots import draw_budget, draw_rank_map, draw_scores, draw_shares
from lingo_ds.monitor.rank_statistics import score_histogram
from lingo_ds.monitor.report import summary_table, what_to_open, write_report
from lingo_ds.monitor.tensorboard import Tracker
from lingo_ds.monitor.throughput import Throughput, device_peak_flops, peak_device_bytes, peak_host_bytes
from lingo_ds.utils.versions import versions

pytestmark = pytest.mark.filterwarnings("error")

KINDS = ("self_attn.q_proj", "self_attn.k_proj", "mlp.up_proj")


def read(folder) -> EventAccumulator:
    return EventAccumulator(str(folder)).Reload()


def sites(layers: int, rank: int) -> dict[str, int]:
    return {f"layers.{layer}.{kind}": rank for layer in range(layers) for kind in KINDS}


# -- tracker


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


# -- pictures


def test_rank_map_is_a_picture_that_shows_the_ranks():
    full = draw_rank_map(sites(5, 8), initial_rank=8, title="step 1")
    assert full.dtype == np.uint8
    assert full.ndim == 3
    assert full.shape[2] == 3
    assert full.shape[0] > 150
    assert full.shape[1] > 300
    half = draw_rank_map(sites(5, 4), initial_rank=8, title="step 1")
    none = draw_rank_map(sites(5, 0), initial_rank=8, title="step 1")
    assert full.mean() + 20 < half.mean() < none.mean() - 20  # more kept, darker
    assert (full == draw_rank_map(sites(5, 8), initial_rank=8, title="step 1")).all()


def test_rank_map_puts_one_site_in_one_cell():
    plain = draw_rank_map(sites(4, 0), initial_rank=8, title="")
    changed = {}
    for name in sites(4, 0):
        rows, columns = np.nonzero(
            (plain != draw_rank_map(sites(4, 0) | {name: 8}, initial_rank=8, title="")).any(2)
        )
        assert np.ptp(rows) < plain.shape[0] / 3, name
        assert np.ptp(columns) < plain.shape[1] / 4, name
        changed[name] = (rows.mean(), columns.mean())
    for kind in KINDS:  # layers run to the right
        across = [changed[f"layers.{layer}.{kind}"][1] for layer in range(4)]
        assert across == sorted(across)
    for layer in range(4):  # kinds run down, in the order they came
        down = [changed[f"layers.{layer}.{kind}"][0] for kind in KINDS]
        assert down == sorted(down)


def test_rank_map_sorts_layers_by_number_and_takes_any_names():
    few = draw_rank_map({"layers.10.q": 8, "layers.9.q": 0}, initial_rank=8, title="")
    left, right = few[:, : few.shape[1] // 2], few[:, few.shape[1] // 2 : int(few.shape[1] * 0.8)]
    assert left.mean() > right.mean()
    odd = {"encoder.layers.0.q": 1, "decoder.layers.0.q": 2, "lm_head": 3, "h.1.mlp.experts.4.up": 4}
    for kept in (odd, {}, sites(90, 3)):
        assert draw_rank_map(kept, initial_rank=4, title="odd").shape[2] == 3


def test_budget_plot_shows_budget_kept_and_returned():
    history = [(10, 40, 40, 0), (20, 30, 29, 3), (30, 20, 20, 2)]
    plain = draw_budget(history)
    assert (plain.dtype, plain.shape[2]) == (np.uint8, 3)
    for changed in ((20, 35, 29, 3), (20, 30, 20, 3), (20, 30, 29, 1)):
        assert (plain != draw_budget([history[0], changed, history[2]])).any()
    assert draw_budget([]).shape == draw_budget(history[:1]).shape == plain.shape


def test_shares_follow_the_budget():
    even = draw_shares(sites(5, 4))
    assert (even.dtype, even.shape[2]) == (np.uint8, 3)
    changed = {}
    for layer in (0, 4):
        kept = {name: 8 if name.startswith(f"layers.{layer}.") else 1 for name in sites(5, 4)}
        left = draw_shares(kept)[:, : even.shape[1] // 2]
        changed[layer] = np.nonzero((left < 100).any(2))[1].mean()  # where the ink is
    assert changed[0] < changed[4]
    for kept in ({}, sites(5, 0), sites(90, 3), {"lm_head": 3}):
        assert draw_shares(kept).ndim == 3


def test_scores_of_kept_and_pruned_differ_in_colour():
    scores = np.geomspace(1e-9, 1e-3, 50)
    half = draw_scores(score_histogram(scores, scores > 1e-6, step=3))
    everything = draw_scores(score_histogram(scores, scores > 0, step=3))

    def blue(picture: np.ndarray) -> int:
        red, blue = picture[..., 0].astype(int), picture[..., 2].astype(int)
        return int((blue - red > 80).sum())

    assert 0.35 < blue(half) / blue(everything) < 0.65
    assert draw_scores(score_histogram(np.zeros(4), np.ones(4, bool), step=1)).ndim == 3


# -- throughput


def test_throughput_arithmetic():
    rates = Throughput()
    assert (rates.tokens_per_second, rates.padding_fraction, rates.mfu(1.0, 1.0)) == (0, 0, None)
    rates.step(examples=8, real_tokens=300, total_tokens=400, seconds=2.0)
    rates.step(examples=8, real_tokens=500, total_tokens=600, seconds=2.0)
    assert rates.seconds == 4
    assert rates.examples_per_second == 4
    assert rates.tokens_per_second == rates.recent_tokens_per_second == 200
    assert rates.padding_fraction == pytest.approx(0.2)
    assert rates.mfu(6e9, 4e12) == pytest.approx(0.3)
    assert rates.mfu(6e9, None) is None


def test_what_packs_save_is_no_padding_and_no_work():
    """8 examples of 100 tokens, 40 of them a prefix that is computed once; nothing is padded."""
    rates = Throughput()
    rates.step(
        examples=8, real_tokens=800, total_tokens=520, shared_tokens=280, seconds=2.0, input_seconds=0.5
    )
    assert rates.tokens_per_second == 400
    assert rates.padding_fraction == 0
    assert rates.shared_prefix_fraction == pytest.approx(0.35)
    assert rates.input_wait_fraction == pytest.approx(0.25)
    assert rates.mfu(1.0, 1000.0) == pytest.approx(0.26)  # of the computed 520 tokens


def test_recent_rate_forgets_slow_early_steps():
    rates = Throughput()
    rates.step(examples=1, real_tokens=10, total_tokens=10, seconds=100.0)
    for _ in range(20):
        rates.step(examples=1, real_tokens=10, total_tokens=10, seconds=0.1)
    assert rates.recent_tokens_per_second == pytest.approx(100)
    assert rates.tokens_per_second < 3


def test_memory_and_peak():
    resident = psutil.Process().memory_info().rss
    assert 0.9 * resident < peak_host_bytes() < 100 * resident  # bytes, not KiB
    if not torch.cuda.is_available():
        assert peak_device_bytes() is None
        assert device_peak_flops() is None


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("Tesla P4", None),
    ],
)
def test_device_peaks_by_name(name, peak):
    assert device_peak_flops(name) == peak


# -- progress


def test_log_lines_where_there_is_no_terminal(caplog, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")  # as in CI
    caplog.set_level(logging.INFO)
    stream = io.StringIO()
    with Progress(100, enabled=True, log_seconds=3600, console=Console(file=stream)) as progress:
        for step in range(1, 101):
            dev = 0.625 if step == 50 else None
            progress.update(step, loss=1 / step, dev_metric=dev, tokens_per_second=12345.6)
    assert stream.getvalue() == ""
    first, last = (record.getMessage() for record in caplog.records)
    assert first.startswith("step 1/100  loss 1.0000  dev mcc -  12,346 tokens/s")
    assert last.startswith("step 100/100  loss 0.0100  dev mcc 0.625")
    assert last.endswith("0:00:00 left")


@pytest.fixture
def clock(monkeypatch):
    """The progress display's clock, moved by hand."""
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(progress_module, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


def test_log_lines_come_every_ten_seconds(caplog, clock):
    caplog.set_level(logging.INFO)
    with Progress(1000, enabled=True, console=Console(file=io.StringIO())) as progress:
        for step in range(1, 31):
            clock.now += 2
            progress.update(step, loss=1.0, tokens_per_second=1.0)
    steps = [record.getMessage().split()[1] for record in caplog.records]
    assert steps == ["1/1000", "6/1000", "11/1000", "16/1000", "21/1000", "26/1000"]


def test_time_left_of_a_resumed_run_uses_its_own_steps(caplog, clock):
    caplog.set_level(logging.INFO)
    with Progress(1000, enabled=True, done=900, console=Console(file=io.StringIO())) as progress:
        clock.now += 100
        progress.update(910, loss=1.0, tokens_per_second=1.0)
    assert caplog.records[0].getMessage().endswith("0:01:40 passed, 0:15:00 left")  # 90 steps of 10 s


def test_a_bar_on_a_terminal_and_no_lines(caplog):
    caplog.set_level(logging.INFO)
    reader, writer = pty.openpty()
    with os.fdopen(writer, "w") as terminal:
        console = Console(file=terminal, width=160, force_terminal=True, _environ={"TERM": "xterm"})
        with Progress(10, enabled=True, console=console) as progress:
            for step in range(1, 11):
                progress.update(step, loss=0.5, dev_metric=0.75, tokens_per_second=2000.0)
    shown = b""
    with contextlib.suppress(OSError):  # how a terminal whose other end is closed says that this was all
        while part := os.read(reader, 4096):
            shown += part
    os.close(reader)
    for words in ("step 10/10", "loss 0.5000", "dev mcc 0.750", "2,000 tokens/s", "left"):
        assert words in shown.decode()
    assert not caplog.records


def test_other_processes_show_nothing(caplog):
    caplog.set_level(logging.INFO)
    stream = io.StringIO()
    with Progress(2, enabled=False, console=Console(file=stream)) as progress:
        progress.update(2, loss=1.0, tokens_per_second=1.0)
    assert stream.getvalue() == ""
    assert not caplog.records


# -- report

REPORT = {
    "task": {"name": "prom_core_tata"},
    "metrics": {
        "dev": {"mcc": 0.8125, "auroc": 0.9375, "accuracy": 0.90625, "macro_f1": 0.90},
        "test": {"mcc": 0.75, "auroc": None, "accuracy": 0.875, "macro_f1": 0.87},
    },
    "selected_step": 1200,
    "steps": 1500,
    "seed": 0,
    "rank_sampling": {
        "mode": "exact",
        "initial_triplets": 280,
        "target_triplets": 140,
        "kept_triplets": 140,
        "mask_events": 17,
        "returned_triplets": 93,
        "ranks": {"layers.0.self_attn.q_proj": 4},
    },
    "parameters": {"trainable": 65432, "backbone": 6_738_415_616, "fraction": 0.0125},
    "sync": {"audits": 15, "divergences": 2, "repairs": 2},
    "throughput": {"seconds": 61.5, "tokens_per_second": 43210.9},
}


def test_report_round_trip_leaves_no_other_file(tmp_path):
    path = tmp_path / "report.json"
    write_report(path, {"task": "old"})
    write_report(path, REPORT)
    assert json.loads(path.read_text()) == REPORT
    assert '\n  "steps": 1500' in path.read_text()
    assert [p.name for p in tmp_path.iterdir()] == ["report.json"]


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_report_refuses_numbers_json_has_not(tmp_path, number):
    path = tmp_path / "report.json"
    write_report(path, REPORT)
    with pytest.raises(ValueError, match=r"metrics\.test\.mcc: (nan|inf)"):
        write_report(path, REPORT | {"metrics": {"test": {"mcc": number}}})
    assert json.loads(path.read_text()) == REPORT


def test_a_write_cut_short_keeps_the_old_report(tmp_path, monkeypatch):
    path = tmp_path / "report.json"
    write_report(path, REPORT)

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_report(path, {"task": "new"})
    assert json.loads(path.read_text()) == REPORT
    assert [p.name for p in tmp_path.iterdir()] == ["report.json"]


def rendered(report: dict) -> list[str]:
    stream = io.StringIO()
    Console(file=stream, width=100).print(summary_table(report))
    return stream.getvalue().splitlines()


def test_summary_shows_what_matters():
    lines = rendered(REPORT)
    for words, value in (
        ("MCC, test / dev", "0.7500 / 0.8125"),
        ("AUROC", "- / 0.9375"),
        ("accuracy", "0.8750 / 0.9062"),
        ("macro F1", "0.8700 / 0.9000"),
        ("selected step", "1,200 / 1,500"),
        ("trainable parameters", "65,432"),
        ("share", "1.250%"),
        ("kept / target", "140 / 140"),
        ("mask events", "17"),
        ("returned", "93"),
        ("divergences", "2"),
        ("tokens/s", "43,211"),
        ("seconds", "61.5"),
    ):
        assert any(words in line and f" {value} " in line for line in lines), (words, lines)
    assert "prom_core_tata" in lines[0]


def test_summary_of_an_empty_report_is_dashes():
    assert any("MCC" in line and "- / -" in line for line in rendered({}))


def test_what_to_open_names_what_is_there(tmp_path):
    run = tmp_path / "my run"
    (run / "tensorboard").mkdir(parents=True)
    (run / "report.json").write_text("{}")
    words = what_to_open(run)
    assert f"tensorboard --logdir '{run}/tensorboard'" in words
    assert "report.json" in words
    assert "adapter" not in words
    (run / "adapter").mkdir()
    (run / "predictions").mkdir()
    (run / "predictions" / "test.parquet").touch()
    assert "adapter" in what_to_open(run)
    assert "test.parquet" in what_to_open(run)


def test_versions_are_those_installed():
    found = versions()
    assert set(found) == {
        "lingo_ds",
        "python",
        "torch",
        "deepspeed",
        "transformers",
        "datasets",
        "numpy",
        "bitsandbytes",
    }
    assert torch.__version__.startswith(found["torch"].split("+")[0])
    assert found["numpy"] == np.__version__
    assert all(found.values())
