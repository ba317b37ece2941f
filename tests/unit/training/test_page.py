"""`report.html` of real small runs: what it says of each kind of task, and of runs that did not go well."""

import errno
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from lingo_ds.commands.cli import main
from lingo_ds.commands.train import train
from lingo_ds.distributed.process_group import DistEnv
from lingo_ds.evaluation.bootstrap import bootstrap
from lingo_ds.monitor import html_report
from lingo_ds.monitor.baselines import ModelResult, write_baselines
from tests.unit.kinds_of_task import LABELS, ROWS, TASKS, VALUES, config_of, write_data
from tests.unit.monitor.browser import needs_browser, open_page
from tests.unit.monitor.test_html_report import Elements, require_self_contained
from tests.unit.running import at_step, crash, ctrl_c, report_of

ALONE = DistEnv(0, 0, 1, 1, torch.device("cpu"))
SHORT = {"train": {"max_steps": 6, "eval_steps": 3, "learning_rate": 2e-2}}
SAMPLED = {"rank_sampling": {"mode": "exact", "target_rank": 2, "interval": 1, "t_init": 1, "t_final": 3}}


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Callable[[str], Path]:
    """The folder of the run of a kind, trained once."""
    known = {}

    def train_kind(kind: str) -> Path:
        if kind not in known:
            folder = tmp_path_factory.mktemp(kind)
            data = write_data(folder / "data", kind)
            train(config_of(kind, data, folder / "run", **SHORT, **SAMPLED), ALONE)
            known[kind] = folder / "run"
        return known[kind]

    return train_kind


@pytest.fixture
def copied(trained, tmp_path) -> Callable[[str], Path]:
    """A copy of such a folder, whose files may be changed."""
    return lambda kind: Path(shutil.copytree(trained(kind), tmp_path / "copy"))


def words_of(page: Path) -> str:
    """All that a page shows, with the words of its pictures, as one line."""
    text = page.read_text()
    require_self_contained(text)
    found = Elements(re.sub("(?s)<(style|script)>.*?</(style|script)>", "", text))
    return " ".join(
        " ".join([*found.texts, *(a["alt"] or "" for tag, a in found.tags if tag == "img")]).split()
    )


def made_anew(folder: Path, capsys: pytest.CaptureFixture) -> str:
    """What the page shows that `lingo-ds report` writes."""
    assert main(["report", str(folder)]) == 0
    assert capsys.readouterr().out.strip() == f"report: {folder / 'report.html'}"
    return words_of(folder / "report.html")


def refused(folder: Path, capsys: pytest.CaptureFixture) -> str:
    assert main(["report", str(folder)]) == 2
    return capsys.readouterr().err


PICTURES = {
    "binary": ["ROC curve", "Precision over recall", "Calibration curve"],
    "multiclass": ["ROC curve", "Precision over recall", "Calibration curve"],
    "multilabel": ["ROC curve", "Precision over recall", "Calibration curve"],
    "regression": [f"Predicted over measured {name}" for name in VALUES],
}
COURSE = [
    "Training loss over steps",
    "on dev over steps",
    "Learning rate over",
    "Map of the rank",
    "Budget of ranks",
]


@pytest.mark.parametrize("kind", list(TASKS))
def test_each_kind_of_task_has_its_numbers_and_pictures(trained, kind):
    folder = trained(kind)
    shown, report = words_of(folder / "report.html"), report_of(folder)
    for words in [*PICTURES[kind], *COURSE]:
        assert words in shown, words
    assert f"On {ROWS['test']} test sequences" in shown
    for value in report["metrics"]["test"].values():
        assert value is None or f"{value:.3f}" in shown or f"{value:.4g}" in shown or f"{value:,.0f}" in shown
    names = {"multilabel": LABELS, "regression": VALUES, "binary": ["rest", "rich"]}.get(
        kind, ["0", "1", "2"]
    )
    assert all(name in shown for name in names)
    assert ("Confusion matrix" in shown) == (kind in ("binary", "multiclass"))
    assert (
        "1,000 resamples" in shown
        and "lingo-ds train --config" in shown
        and report["versions"]["torch"] in shown
    )


def test_intervals_are_of_the_kept_answers_of_both_splits(trained):
    folder = trained("binary")
    shown, report = words_of(folder / "report.html"), report_of(folder)
    (threshold,) = report["task"]["thresholds"]
    for split in ("dev", "test"):
        table = pq.read_table(folder / f"predictions/{split}.parquet")
        answers = np.stack([table["probability_rest"], table["probability_rich"]], axis=1)
        labels, predicted = table["label"].to_numpy(), table["predicted"].to_numpy()
        assert report["metrics"][split]["accuracy"] == pytest.approx(np.mean(labels == predicted))
        found = bootstrap(answers, labels, kind="binary", thresholds=[threshold])
        for name in ("mcc", "auroc"):
            low, high = found.by_metric[name]
            assert f"{report['metrics'][split][name]:.3f} {low:.3f} to {high:.3f}" in shown, (split, name)


def test_the_most_wrong_are_shown_with_their_sequences(trained):
    folder = trained("binary")
    shown, table = words_of(folder / "report.html"), pq.read_table(folder / "predictions/test.parquet")
    wrong = json.loads((folder / "predictions/most_wrong.json").read_text())
    lines = (folder.parent / "data/test.csv").read_text().splitlines()[1:]
    labels, predicted = table["label"].to_numpy(), table["predicted"].to_numpy()
    differs = np.flatnonzero(labels != predicted)
    assert {one["row"] for one in wrong} <= set(differs.tolist()) and len(wrong) == min(20, len(differs))
    for one in wrong:
        sequence, label = lines[one["row"]].split(",")
        assert (one["sequence"], one["truth"]) == (sequence, int(label)) and sequence in shown
    of_truth = np.stack([table["probability_rest"], table["probability_rich"]], axis=1)[range(80), labels]
    assert wrong[0]["answer"] == pytest.approx(of_truth[differs].min())


def test_report_makes_the_same_page_anew_also_of_fewer_files(copied, capsys):
    folder = copied("binary")
    before = words_of(folder / "report.html")
    again = made_anew(folder, capsys)
    cut = before.index("lingo-ds train --config")  # from there on the folder is named
    assert again[:cut] == before[:cut] and "Written by lingo_ds" in again
    for name in ("metrics.jsonl", "plan.json", "predictions/most_wrong.json", "predictions/dev.parquet"):
        (folder / name).unlink()
    shown = made_anew(folder, capsys)
    assert "has recorded no curves" in shown and "ROC curve" in shown and "not kept" in shown
    shutil.rmtree(folder / "predictions")
    shown = made_anew(folder, capsys)
    assert "There are no intervals" in shown and "ROC curve" not in shown


def test_answers_of_another_step_and_baselines(copied, capsys):
    folder = copied("multilabel")
    path = folder / "predictions/dev.parquet"
    table = pq.read_table(path)
    assert table.schema.metadata[b"step"] == str(report_of(folder)["selected_step"]).encode()
    pq.write_table(table.replace_schema_metadata({"step": "1"}), path)
    metrics = {"test": {"macro_auroc": 0.12345, "micro_f1": None}, "dev": {}}
    write_baselines(folder, {"logistic": ModelResult(title="", parameters=1, seconds=1, metrics=metrics)})
    shown, report = made_anew(folder, capsys), report_of(folder)
    assert "logistic (test)" in shown and "0.123" in shown and "undefined" in shown
    dev = f"{report['metrics']['dev']['macro_auroc']:.3f}"
    assert re.search(rf"macro AUROC [\d.]+ [\d.]+ to [\d.]+ {dev} 0\.123", shown), "dev has no interval"


def test_names_from_outside_are_only_text(tmp_path):
    data = write_data(tmp_path / "data", "binary")
    hostile = "</td><script>alert(1)</script>"
    more = {"task": {"labels": [hostile, "$x_1$"]}, "data": {"domain": "<b>&"}, "train": {"max_steps": 2}}
    train(config_of("binary", data, tmp_path / "run", **more), ALONE)
    text = (tmp_path / "run/report.html").read_text()
    assert text.count("<script>") == 1
    assert hostile in words_of(tmp_path / "run/report.html")


def test_one_class_on_test_leaves_out_what_is_undefined(tmp_path):
    data = write_data(tmp_path / "data", "multiclass")
    rows = [line for line in (data / "test.csv").read_text().splitlines() if not line.endswith((",1", ",2"))]
    (data / "test.csv").write_text("\n".join(rows) + "\n")
    train(config_of("multiclass", data, tmp_path / "run", train={"max_steps": 2, "eval_steps": 2}), ALONE)
    shown = words_of(tmp_path / "run/report.html")
    assert "test holds only class 0" in shown and "AUROC undefined" in shown and "Calibration curve" in shown


def test_a_stopped_run_says_so_and_shows_dev(tmp_path, capsys):
    data = write_data(tmp_path / "data", "binary")
    config = config_of("binary", data, tmp_path / "run", train={"max_steps": 8, "eval_steps": 2})
    with at_step(2, ctrl_c):
        train(config, ALONE)
    assert "There is no result yet" in words_of(tmp_path / "run/report.html")
    with at_step(5, ctrl_c):
        assert train(config, ALONE)["outcome"] == "interrupted"
    shown = words_of(tmp_path / "run/report.html")
    assert "The run was interrupted" in shown and "Answers on dev" in shown and "Most wrong" not in shown
    assert re.search(r"MCC -?[\d.]+ \(95 % interval", shown), "dev has its interval"


def test_a_crashed_run_has_a_page_when_it_is_asked_for(tmp_path, capsys):
    data = write_data(tmp_path / "data", "regression")
    config = config_of("regression", data, tmp_path / "run", train={"max_steps": 8, "eval_steps": 2})
    with at_step(5, crash), pytest.raises(RuntimeError):
        train(config, ALONE)
    assert not (tmp_path / "run/report.html").exists()
    shown = made_anew(tmp_path / "run", capsys)
    assert "The run has not ended." in shown and "Training loss over steps" in shown
    assert "The last lines of its log" in shown and "step 1/8" in shown


def test_a_full_disk_is_a_warning_after_training_and_a_mistake_for_report(
    copied, trained, capsys, monkeypatch
):
    def full(path: Path, write: Callable[[Path], object]) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    folder = copied("binary")
    monkeypatch.setattr(html_report, "atomic_write", full)
    data = trained("binary").parent / "data"
    report = train(config_of("binary", data, folder / "again", train={"max_steps": 2}), ALONE)
    assert report["outcome"] == "finished" and not (folder / "again/report.html").exists()
    assert "No space left on device" in (folder / "again/train.log").read_text()
    assert "No space left on device': cannot be written: free some space" in refused(folder, capsys)


def test_a_folder_that_is_no_run_or_is_damaged_is_told(copied, tmp_path, capsys):
    assert "holds no run: there is no config.yaml in it" in refused(tmp_path, capsys)
    assert main(["report", str(tmp_path), "seed=1"]) == 2
    assert "'seed=1': is no option of report" in capsys.readouterr().err
    folder = copied("regression")
    for name, content in (
        ("report.json", b"{"),
        ("baselines.json", b"[1]"),
        ("predictions/most_wrong.json", b'[{"row": -1}]'),
        ("predictions/test.parquet", b"PAR1"),
        ("config.yaml", b"a: [\xff"),
    ):
        before = (folder / name).read_bytes() if (folder / name).exists() else None
        (folder / name).write_bytes(content)
        shown = refused(folder, capsys)
        assert shown.startswith("error: ") and name.split("/")[0] in shown and "Traceback" not in shown, shown
        (folder / name).unlink() if before is None else (folder / name).write_bytes(before)
    made_anew(folder, capsys)


@needs_browser
def test_a_browser_opens_the_page_of_a_run_without_complaint_and_alone(trained, tmp_path):
    found = open_page(trained("multilabel") / "report.html", tmp_path)
    assert (found.console, found.hosts) == ([], set())
    assert found.html.count("<img") == 8 and '<button type="button">' in found.html
