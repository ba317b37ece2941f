"""Whole runs for each kind of task: what they learn, write, predict and export, against sklearn and PEFT."""

import csv
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
import pytest
import sklearn.metrics
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoConfig

import lingo_ds
from lingo_ds.commands.cli import main
from lingo_ds.commands.evaluate import evaluate
from lingo_ds.commands.train import train
from lingo_ds.distributed.process_group import DistEnv
from lingo_ds.export.adapter_card import Card
from lingo_ds.monitor.report import summary_table
from lingo_ds.utils.errors import UserError
from tests.unit.commands.test_export import run_snippet
from tests.unit.kinds_of_task import LABELS, ROWS, TASKS, VALUES, config_of, write_data
from tests.unit.running import at_step, contents, ctrl_c

ALONE = DistEnv(0, 0, 1, 1, torch.device("cpu"))


class Run(NamedTuple):
    """A finished run: its config's parts, its report, and its predictions on test by column."""

    kind: str
    data: Path
    folder: Path
    report: dict[str, Any]
    table: dict[str, np.ndarray]

    @property
    def test(self) -> dict[str, float | None]:
        return self.report["metrics"]["test"]

    def sequences(self) -> list[str]:
        with (self.data / "test.csv").open() as file:
            return [row["sequence"] for row in csv.DictReader(file)]

    def card(self) -> Card:
        return Card.model_validate_json((self.folder / "adapter/task.json").read_text())


def table_of(path: Path) -> dict[str, np.ndarray]:
    """Columns; null becomes NaN."""
    return {name: column.to_numpy() for name, column in pq.read_table(path).to_pandas().items()}


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Callable[[str], Run]:
    """The run of a kind, trained once."""
    known = {}

    def train_kind(kind: str) -> Run:
        if kind not in known:
            folder = tmp_path_factory.mktemp(kind)
            data = write_data(folder / "data", kind)
            report = train(config_of(kind, data, folder / "run"), ALONE)
            table = table_of(folder / "run/predictions/test.parquet")
            known[kind] = Run(kind, data, folder / "run", report, table)
        return known[kind]

    return train_kind


kinds = pytest.mark.parametrize("kind", list(TASKS))


# -- learning


def test_regression_beats_a_constant(trained):
    """Whose R2 is 0, whose RMSE the standard deviation; the second value is 1000 give or take 0.002."""
    found, by_value = trained("regression"), trained("regression").report["metrics_by_output"]["test"]
    for name in VALUES:
        truth = found.table[f"label_{name}"]
        assert by_value[name]["r2"] > 0.9
        assert by_value[name]["rmse"] < 0.3 * np.nanstd(truth)
        assert abs(np.nanmean(found.table[f"value_{name}"] - truth)) < 0.2 * np.nanstd(truth)
    assert found.test["pearson"] > 0.95 and found.test["spearman"] > 0.95


def test_labels_are_learned_though_some_are_unknown(trained):
    found = trained("multilabel")
    by_label = found.report["metrics_by_output"]["test"]
    assert by_label["gc"]["auroc"] > 0.85 and by_label["purine"]["auroc"] > 0.85
    assert by_label["never"]["auroc"] is None and found.test["labels_left_out"] == 1
    assert found.test["micro_mcc"] > 0.5
    assert np.isnan(found.table["label_gc"]).sum() > 5
    assert found.report["data"]["unknown"]["test"] == sum(
        np.isnan(found.table[f"label_{n}"]).sum() for n in LABELS
    )


@pytest.mark.parametrize("kind", ["binary", "multiclass"])
def test_classes_are_learned_with_weights_and_focal_loss(trained, kind):
    assert trained(kind).test["mcc"] > 0.5
    assert trained(kind).report["task"]["kind"] == kind


@pytest.mark.parametrize(
    "kind, expected",
    [("binary", math.log(2)), ("multiclass", math.log(3)), ("multilabel", math.log(2)), ("regression", 1.0)],
)
def test_the_first_loss_is_that_of_an_answer_that_knows_nothing(tmp_path, kind, expected):
    """Over all rows; a value's squared error is then its variance, 1."""
    plain = {} if kind == "regression" else {"class_weights": "none", "focal_gamma": 0.0}
    config = config_of(
        kind,
        write_data(tmp_path / "data", kind),
        tmp_path / "run",
        task=plain,
        train={"global_batch_size": ROWS["train"], "max_steps": 1, "eval_steps": 1},
    )
    train(config, ALONE)
    (first,) = EventAccumulator(str(tmp_path / "run/tensorboard")).Reload().Scalars("train/loss")
    assert first.value == pytest.approx(expected, rel=0.05)


# -- what is written


@kinds
def test_metrics_are_those_of_the_written_predictions(trained, kind):
    found = trained(kind)
    table, test, task = found.table, found.test, found.report["task"]
    assert table["row"].tolist() == list(range(ROWS["test"]))
    if kind == "regression":
        errors = [np.nanmean(np.abs(table[f"value_{n}"] - table[f"label_{n}"])) for n in VALUES]
        assert test["mae"] == pytest.approx(np.mean(errors), rel=1e-4)
        return
    if kind == "multilabel":
        known = {n: ~np.isnan(table[f"label_{n}"]) for n in LABELS}
        truth, decided, p = (
            np.concatenate([table[f"{what}_{n}"][known[n]] for n in LABELS])
            for what in ("label", "predicted", "probability")
        )
        thresholds = np.concatenate([np.full(known[n].sum(), t) for n, t in zip(LABELS, task["thresholds"])])  # noqa: B905
        assert (decided == (p > thresholds)).all()
        assert test["micro_f1"] == pytest.approx(sklearn.metrics.f1_score(truth, decided))
        assert test["micro_mcc"] == pytest.approx(sklearn.metrics.matthews_corrcoef(truth, decided))
        return
    names = (
        ["probability_rest", "probability_rich"]
        if kind == "binary"
        else [f"probability_{c}" for c in range(3)]
    )
    p = np.stack([table[name] for name in names], 1)
    decided = p[:, 1] > task["thresholds"][0] if kind == "binary" else p.argmax(1)
    assert (table["predicted"] == decided).all()
    assert test["mcc"] == pytest.approx(sklearn.metrics.matthews_corrcoef(table["label"], decided))


@kinds
def test_the_card_says_what_the_outputs_mean(trained, kind):
    found = trained(kind)
    task = found.card().task
    assert json.loads(json.dumps(task.to_dict())) == json.loads(json.dumps(found.report["task"]))
    if kind == "regression":
        rows = table_rows(found.data / "train.csv", VALUES)
        assert task.mean == pytest.approx(np.nanmean(rows, 0), rel=1e-6)
        assert task.scale == pytest.approx(np.nanstd(rows, 0), rel=1e-2)  # float32 beside 1000
    else:
        assert (task.thresholds is None) == (kind == "multiclass")


def table_rows(path: Path, columns: list[str]) -> np.ndarray:
    with path.open() as file:
        return np.array(
            [[float(row[name].replace("NA", "nan")) for name in columns] for row in csv.DictReader(file)]
        )


def test_a_threshold_from_dev_is_no_worse_there_than_one_half(trained):
    found = trained("binary")
    (threshold,) = found.card().task.thresholds
    dev = found.report["metrics"]["dev"]["mcc"]
    again = config_of("binary", found.data, found.folder.parent / "half", task={"threshold": 0.5})
    assert 0 < threshold < 1
    assert train(again, ALONE)["metrics"]["dev"]["mcc"] <= dev


@kinds
def test_evaluate_finds_what_training_found(trained, kind):
    found = trained(kind)
    config = config_of(kind, found.data, found.folder)
    assert evaluate(config, ALONE) == pytest.approx(found.test, rel=1e-6)
    written = json.loads((found.folder / "evaluation.json").read_text())
    assert written["metrics_by_output"]["test"] == found.report["metrics_by_output"]["test"]


@pytest.mark.parametrize(
    "field, sections",
    [
        ("task.labels", {"task": {"labels": ["a", "b", "c"]}}),
        ("task.kind", {"task": {"kind": "regression", "threshold": 0.5}}),
    ],
)
def test_evaluate_refuses_another_meaning(trained, field, sections, tmp_path):
    found = trained("multilabel")
    if field == "task.kind":  # a value that never changes is refused before
        sections = {**sections, "data": {"label_column": LABELS, "path": str(with_numbers(found, tmp_path))}}
    with pytest.raises(UserError) as caught:
        evaluate(config_of("multilabel", found.data, found.folder, **sections), ALONE)
    assert field in [mistake.where for mistake in caught.value.mistakes]


def with_numbers(found: Run, folder: Path) -> Path:
    for split in ROWS:
        lines = (found.data / f"{split}.csv").read_text().splitlines()
        rows = [f"{line.rpartition(',')[0]},{number}" for number, line in enumerate(lines[1:])]
        (folder / f"{split}.csv").write_text("\n".join([lines[0], *rows]) + "\n")
    return folder


@pytest.mark.parametrize(
    "kind, words", [("multilabel", "macro AUPRC"), ("regression", "Spearman"), ("binary", "MCC")]
)
def test_the_summary_has_the_rows_of_the_kind(trained, kind, words):
    rows = list(summary_table(trained(kind).report).columns[0].cells)
    assert f"{words}, test / dev" in rows
    assert ("accuracy, test / dev" in rows) == (kind == "binary")


# -- predicting


@kinds
def test_predict_writes_what_evaluation_found(trained, kind, tmp_path):
    found = trained(kind)
    source = found.data / "test.csv"
    for name in ("out.parquet", "out.csv"):
        files = ["--adapter", found.folder / "adapter", "--input", source, "--output", tmp_path / name]
        assert main(["predict", *map(str, files)]) == 0
    table = table_of(tmp_path / "out.parquet")
    with (tmp_path / "out.csv").open() as file:
        rows = list(csv.DictReader(file))
    answers = [name for name in table if name.startswith(("probability_", "value_"))]
    first = {"regression": ["id"], "multilabel": ["id", "labels"]}.get(kind, ["id", "label"])
    assert list(table) == list(rows[0]) == first + answers
    for name in answers:
        assert table[name] == pytest.approx(found.table[name], rel=1e-5, abs=1e-6)
        assert table[name] == pytest.approx([float(row[name]) for row in rows], rel=1e-6, abs=1e-7)
    if kind == "multilabel":
        decided = [";".join(n for n in LABELS if found.table[f"predicted_{n}"][row]) for row in table["id"]]
        assert table["labels"].tolist() == [row["labels"] for row in rows] == decided
        assert len(set(decided)) > 2
    elif kind != "regression":
        assert table["label"].tolist() == found.table["predicted"].tolist()


def test_python_gets_values_or_labels(trained):
    values, labels = trained("regression"), trained("multilabel")
    (found,) = lingo_ds.load(values.folder / "adapter").predict(values.sequences()[:5])
    assert found[:, 0] == pytest.approx(values.table["value_percent_gc"][:5], rel=1e-5)
    decided, p = lingo_ds.load(labels.folder / "adapter").predict(labels.sequences()[:5])
    assert decided.shape == p.shape == (5, 3)
    assert decided[:, 0].tolist() == labels.table["predicted_gc"][:5].tolist()
    assert lingo_ds.load(labels.folder / "adapter").predict([]).labels.shape == (0, 3)


# -- export


@kinds
@pytest.mark.parametrize("to", ["lora", "merged"])
def test_other_software_gets_the_same_answers(trained, kind, to, tmp_path):
    """The code in the model card, on its own two sequences."""
    found = trained(kind)
    out = tmp_path / "out"
    assert main(["export", "--adapter", str(found.folder / "adapter"), "--to", to, "--output", str(out)]) == 0
    names = run_snippet(out)
    theirs = names["values" if kind == "regression" else "probabilities"].detach().numpy()
    predicted = lingo_ds.load(found.folder / "adapter").predict(["ACGTACGTACGTACGT", "TATAAA"])
    assert theirs == pytest.approx(predicted[-1], rel=1e-4, abs=1e-5)
    assert np.ptp(theirs, axis=0).max() > 1e-3


@pytest.mark.parametrize(
    "kind, words",
    [
        ("binary", "single_label_classification"),
        ("multilabel", "multi_label_classification"),
        ("regression", "regression"),
    ],
)
def test_a_merged_model_with_its_head_says_its_kind_in_transformers_words(trained, kind, words, tmp_path):
    found = trained(kind)
    folder = found.folder.parent / "last"
    report = train(
        config_of(kind, found.data, folder, head={"pooling": "last"}, train={"max_steps": 2}), ALONE
    )
    out = tmp_path / "out"
    assert main(["export", "--adapter", str(folder / "adapter"), "--to", "merged", "--output", str(out)]) == 0
    config = AutoConfig.from_pretrained(out)
    assert config.problem_type == words
    names = report["task"]["names"]
    assert config.id2label == dict(enumerate(names)) and config.num_labels == len(names)
    if kind == "regression":
        assert (config.target_mean, config.target_scale) == (
            list(report["task"]["mean"]),
            list(report["task"]["scale"]),
        )
    else:
        assert config.thresholds == list(report["task"]["thresholds"])
    answers = run_snippet(out)["values" if kind == "regression" else "probabilities"]
    assert answers.shape == (2, len(names))


# -- cards that do not hold together


def test_a_card_of_the_first_format_is_read(trained):
    card = json.loads((trained("multiclass").folder / "adapter/task.json").read_text())
    for name in ("names", "thresholds", "mean", "scale"):
        del card["task"][name]
    old = Card.model_validate({**card, "format": 1})
    assert old.task.output_names == ("0", "1", "2") and old.task.thresholds is None


@pytest.mark.parametrize(
    "kind, change, says",
    [
        ("multilabel", {"thresholds": [0.5]}, "thresholds does not go with"),
        ("multilabel", {"thresholds": [0.5, 0.5, 2]}, "out of bounds"),
        ("multilabel", {"names": ["a", "a", "b"]}, "the names are not those"),
        ("multilabel", {"mean": [0, 0, 0]}, "mean does not go with"),
        ("regression", {"scale": [1]}, "scale does not go with"),
        ("regression", {"mean": None}, "mean does not go with"),
        ("regression", {"mean": [0, float("inf")]}, "out of bounds"),
        ("regression", {"scale": [1, -1]}, "out of bounds"),
        ("multiclass", {"thresholds": [0.5]}, "thresholds does not go with"),
        ("multiclass", {"kind": "ordinal"}, "multilabel"),
    ],
)
def test_a_card_that_does_not_hold_together_is_refused(trained, kind, change, says):
    card = json.loads((trained(kind).folder / "adapter/task.json").read_text())
    with pytest.raises(ValueError, match=says):
        Card.model_validate({**card, "task": {**card["task"], **change}})


# -- packs, and real data


@pytest.mark.parametrize("kind", ["binary", "multilabel", "regression"])
def test_packs_train_what_padded_batches_do(trained, kind, tmp_path):
    data, adapters = trained(kind).data, []
    for packing in ("auto", "off"):
        short = {"max_steps": 4, "eval_steps": 4, "micro_batch_size": 5}
        train(config_of(kind, data, tmp_path / packing, data={"packing": packing}, train=short), ALONE)
        tensors = load_file(tmp_path / packing / "adapter/adapter_model.safetensors")
        adapters.append(torch.cat([tensors[name].flatten() for name in sorted(tensors)]))
    assert (adapters[0] - adapters[1]).norm() < 1e-4 * adapters[1].norm()


@pytest.mark.parametrize("kind", ["multilabel", "regression"])
def test_a_stopped_run_goes_on_as_if_it_had_not(trained, kind, tmp_path):
    """Thresholds chosen before the stop, too, where no later step was better."""
    short = {"train": {"max_steps": 8, "eval_steps": 4}, "checkpoint": {"every": 3}}
    whole, parts = (config_of(kind, trained(kind).data, tmp_path / name, **short) for name in ("a", "b"))
    train(whole, ALONE)
    with at_step(6, ctrl_c):
        assert train(parts, ALONE)["outcome"] == "interrupted"
    assert train(parts, ALONE)["outcome"] == "finished"
    assert contents(whole.run_dir / "adapter") == contents(parts.run_dir / "adapter")


def test_a_real_set_with_58_labels_trains(shared, tmp_path):
    """105 windows of 1024 bases of rice, cut to 200; too few to learn from."""
    source = shared / "data/danqplant_rice_multilabel"
    names = (source / "labels.txt").read_text().split()
    lines = (source / "train.csv").read_text().splitlines()
    (tmp_path / "data").mkdir()
    for split, rows in (("train", lines[1:71]), ("dev", lines[71:])):
        (tmp_path / "data" / f"{split}.csv").write_text("\n".join([lines[0], *rows]) + "\n")
    (tmp_path / "data/test.csv").write_bytes((source / "test.csv").read_bytes())
    config = config_of(
        "multilabel",
        tmp_path / "data",
        tmp_path / "run",
        data={"label_column": names, "max_length": 200},
        task={"class_weights": "balanced", "focal_gamma": 2.0},
        train={"max_steps": 3, "eval_steps": 3},
    )
    report = train(config, ALONE)
    by_label = report["metrics_by_output"]["test"]
    assert list(by_label) == names
    truth = table_rows(source / "test.csv", names)
    assert [by_label[name]["positives"] for name in names] == truth.sum(0).tolist()
    left_out = [name for name, column in zip(names, truth.T, strict=True) if np.unique(column).size == 1]
    assert left_out == [name for name in names if by_label[name]["auroc"] is None]
    assert report["metrics"]["test"]["labels_left_out"] == len(left_out) > 0
    assert 0 < report["metrics"]["test"]["macro_auroc"] < 1
