"""The written report, the closing table, and the lines that name what to open."""

import io
import json
import os

import pytest
from rich.console import Console

from lingo_ds.monitor.report import summary_table, what_to_open, write_report

pytestmark = pytest.mark.filterwarnings("error")

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
