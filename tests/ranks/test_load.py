"""The benchmark of loading, from files made on the spot to the rows that are printed."""

import json
import os
import subprocess
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import load
from benchmarks.make_backbone import config_of, make
from tests.ranks.spawn import run_ranks

CHECKOUT = Path(__file__).resolve().parents[2]


def check_rows(rows: list[dict[str, Any]]) -> None:
    assert [row["process"] for row in rows] == [0, 1]
    for row in rows:
        assert row["broadcasts"] == 0
        assert row["ours"] > 0 and row["rival"] > 0
        assert row["peak GiB"] >= row["half GiB"] > 0


def load_in_rank(rank: int, world_size: int, words: list[str]) -> int:
    sys.argv = ["load", *words]
    load.main()
    return os.getpid()


def test_rows_of_two_processes(tmp_path, monkeypatch):
    """The launcher is left out, and with it the peak that it watches from outside."""
    backbone = tmp_path / "tiny"
    make(backbone, config_of("tiny"), dtype=torch.bfloat16, shard_bytes=10**9, seed=0)

    def launch(arguments: Sequence[str], folder: Path) -> dict[int, int]:
        assert arguments[:2] == ["-m", "benchmarks.load"]
        return dict.fromkeys(run_ranks(load_in_rank, 2, list(arguments[2:])), 10**9)

    monkeypatch.setattr(load, "launch", launch)
    args = Namespace(
        backbone=backbone, dtype="bf16", profile="zero3_cpu", eight_bit=False, warm=False, repeats=1
    )
    check_rows(list(load.measure_load(args, tmp_path)))


def test_peak_of_a_process_is_watched_from_outside():
    code = "import time; held = b'x' * int(5e7); time.sleep(0.5)"
    job = subprocess.Popen([sys.executable, "-c", code])
    assert load.watch(job).keys() == set()  # of its children: the launcher itself is of no interest
    shell = subprocess.Popen(["sh", "-c", f'{sys.executable} -c "$0"; true', code])
    (peak,) = load.watch(shell).values()
    assert 50_000_000 < peak < 70_000_000


@pytest.mark.slow  # the same through DeepSpeed's launcher
def test_command(tmp_path):
    found = tmp_path / "found.json"
    words = ["--quick", "--parts", "load", "--json", str(found)]
    subprocess.run([sys.executable, "-m", "benchmarks.load", *words], cwd=CHECKOUT, check=True, timeout=200)
    check_rows(json.loads(found.read_text())["rows"])
