"""The benchmark of collapses: what it counts as one, and that it repeats no run."""

import json
import sys
from pathlib import Path

import pytest

from benchmarks import collapse


@pytest.mark.parametrize(
    ("losses", "found"),
    [
        ([0.69] * 200, "stuck"),
        ([0.69] * 60 + [0.60] * 140, "learned"),
        ([0.69] * 60 + [0.60] * 60 + [0.69] * 60, "collapsed"),
        ([0.69] * 60 + [0.60] * 60 + [0.69] * 40, "learned"),
        ([0.9] * 200, "stuck"),
    ],
    ids=["at chance", "learned", "back", "a spike", "above chance"],
)
def test_a_run_has_collapsed_once_fifty_steps_are_back_at_chance(losses, found):
    assert collapse.outcome(losses) == found


def test_a_second_call_trains_only_what_is_new(monkeypatch, tmp_path: Path, capsys):
    def call(*rates: str) -> list[dict]:
        given = ["--steps", "40", "--until", "4", "--seeds", "1", "--batch", "4", "--rates", *rates]
        given += ["--methods", "LoRA", "three factors, alpha 8", "--runs", str(tmp_path / "runs")]
        monkeypatch.setattr(sys, "argv", ["collapse", *given, "--results", str(tmp_path / "found.json")])
        collapse.main()
        return json.loads((tmp_path / "found.json").read_text())["runs"]

    first = call("1e-3")
    second = call("1e-3", "4e-3")
    assert "2 runs to do, 2 known" in capsys.readouterr().err
    assert second[:2] == first and len(second) == 4
    assert [run["learning_rate"] for run in second] == [1e-3, 1e-3, 4e-3, 4e-3]
    assert collapse.table(second) == [
        {"backbone": "builtin:tiny", "set": "builtin:promoters", "adapter": name}
        | dict.fromkeys(("0.001", "0.004"), "0 + 1 / 1")
        for name in ("LoRA", "three factors, alpha 8")
    ]
