"""One-hot baselines: what they read, that they learn, and the files they leave for docs/results.md."""

import json
import sys

import pytest
import torch

from benchmarks import baselines
from benchmarks._results import Run
from benchmarks.baselines import CNN, LOGISTIC, Point, measure, read_splits
from lingo_ds.data.synthetic_promoters import write_promoters
from scripts.results_page import read_results, result_lines


@pytest.mark.parametrize(("setting", "point"), [(LOGISTIC, Point(256, None)), (CNN, Point(0, 4e-3))])
def test_a_baseline_learns_promoters_and_says_what_it_took(tmp_path, setting, point):
    write_promoters(tmp_path, train=400, dev=200, test=200)
    first, again = (measure(tmp_path, setting, point, 0) for _ in range(2))
    assert first["metrics"]["test"]["mcc"] > 0.5
    assert first["metrics"] == again["metrics"]
    assert 0 < first["selected_step"] <= first["steps"]
    assert first["parameters"]["trainable"] > 4 * 70


def test_bases_are_one_hot_and_what_is_none_is_zero(tmp_path):
    (tmp_path / "train.csv").write_text("sequence,label\nACgN,1\nTT,0\n")
    (tmp_path / "dev.csv").write_text("sequence,label\nC,0\n")
    splits = read_splits(tmp_path, "train", "dev")
    expected = torch.zeros(2, 4, 4)
    for row, base, place in ((0, 0, 0), (0, 1, 1), (0, 2, 2), (1, 3, 0), (1, 3, 1)):
        expected[row, base, place] = 1
    assert splits["train"].bases.equal(expected) and splits["train"].labels.tolist() == [1, 0]
    assert splits["dev"].bases.shape == (1, 4, 4)


def test_a_run_is_one_file_that_a_second_call_keeps_and_the_page_shows(tmp_path, monkeypatch):
    given = [
        "--quick",
        "--settings",
        LOGISTIC,
        "--runs",
        str(tmp_path),
        "--json",
        str(tmp_path / "rows.json"),
    ]
    monkeypatch.setattr(sys, "argv", ["baselines", *given])
    baselines.main()
    (file,) = (tmp_path / "results").iterdir()
    written = file.stat().st_mtime_ns
    baselines.main()
    assert file.stat().st_mtime_ns == written
    (result,) = read_results(file.parent)
    tried = {point["l2"]: point["dev_mcc"] for point in result["grid"]}
    assert list(tried) == [point.l2 for point in baselines.GRIDS[LOGISTIC]]
    assert tried[result["l2"]] == max(tried.values()) == result["metrics"]["dev"]["mcc"]
    row = list(result_lines([result]))[4]
    assert row.startswith("| one-hot bases | logistic regression | 0 |")
    assert f"| {result['metrics']['test']['mcc']:.3f} |" in row
    assert len(json.loads((tmp_path / "rows.json").read_text())["rows"]) == 1


def test_a_file_is_named_by_all_that_decides_its_run():
    run = Run("one-hot", "tf_0", 4000, "CNN", 3, 32, 1e-3, 0, False)
    others = ("minilm_l6", "mouse_0", None, LOGISTIC, None, None, None, 1, True)
    changed = [run._replace(**{field: other}) for field, other in zip(Run._fields, others, strict=True)]
    assert len({run.name, *(other.name for other in changed)}) == 1 + len(Run._fields)
    assert run.name == "one-hot-tf_0-4000-CNN-3ep-b32-lr0.001-seed0"


def test_sets_without_their_folder_are_refused(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["baselines", "--sets", "tf_0"])
    with pytest.raises(SystemExit, match="2"):
        baselines.main()
    assert "--gue must say" in capsys.readouterr().err
