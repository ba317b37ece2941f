"""What later runs read of a report.json, and what they refuse."""

import json

import pytest

from lingo_ds.training.report import read_report
from lingo_ds.utils.errors import UserError

REPORT = {"outcome": "finished", "steps": 30, "metrics": {"dev": {"mcc": 0.5, "auroc": None}, "test": None}}


def test_a_report_is_read_whatever_else_is_in_it(tmp_path):
    path = tmp_path / "report.json"
    path.write_text(json.dumps({**REPORT, "seed": 3}))
    report = read_report(path)
    assert (report.outcome, report.steps) == ("finished", 30)
    assert report.metrics == REPORT["metrics"]


def test_no_report_is_none(tmp_path):
    assert read_report(tmp_path / "report.json") is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{",
        "7",
        "[" * 100_000,
        "\ud800",
        *(
            json.dumps({**REPORT, **change})
            for change in (
                {"outcome": 1},
                {"steps": "30"},
                {"steps": -1},
                {"steps": True},
                {"metrics": []},
                {"metrics": {"dev": {"mcc": "high"}}},
                {"metrics": {"dev": 0.5}},
            )
        ),
        json.dumps({key: value for key, value in REPORT.items() if key != "metrics"}),
    ],
)
def test_anything_else_is_refused_in_one_line(tmp_path, text):
    path = tmp_path / "report.json"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(UserError, match=r"output_dir: .* is no report of a run: remove it") as caught:
        read_report(path)
    assert len(str(caught.value).splitlines()) == 1
