"""What a label says: classes, labels and values from cells, in whole files, and as settings of a task."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import sklearn.utils.class_weight
import torch

from lingo_ds.config.data_config import DataConfig
from lingo_ds.config.run_config import RunConfig
from lingo_ds.config.suite_config import load_runs
from lingo_ds.data.batches import make_batch
from lingo_ds.data.convert import convert_once
from lingo_ds.data.examples import Examples, read_examples
from lingo_ds.data.labels import (
    MAX_OUTPUTS,
    BadTarget,
    TargetReader,
    balanced_weights,
    moments,
    value_mistakes,
)
from lingo_ds.data.packing import make_pack
from lingo_ds.data.prompt import Prompt, make_prompt
from lingo_ds.data.task import task_of
from lingo_ds.data.token_cache import read_tokenized, tokenized_split, write_tokenized
from lingo_ds.data.tokenization import ExampleText, TextTokens, Tokens
from lingo_ds.data.tokenized import TokenizedData
from lingo_ds.models.backbone.tokenizer import read_tokenizer
from lingo_ds.utils.errors import Mistake, UserError

NAN = math.nan
SPLITS = ("train", "dev", "test")


# -- one example


@pytest.mark.parametrize(
    "cells, kind, target",
    [
        (["3"], "auto", 3),
        ([" 0 "], "binary", 0),
        ([2], "multiclass", 2),
        ([2.0], "multiclass", 2),
        ([True], "binary", 1),
        (["0 1 0 1"], "multilabel", [0, 1, 0, 1]),
        (["0;1"], "multilabel", [0, 1]),
        (["0101"], "multilabel", [0, 1, 0, 1]),
        (["[0, 1, 0]"], "multilabel", [0, 1, 0]),
        (["[0.5, -1]"], "regression", [0.5, -1]),
        (["1"], "multilabel", [1]),
        (["0; ;1;NA"], "multilabel", [0, NAN, 1, NAN]),
        (["1 nan 0"], "multilabel", [1, NAN, 0]),
        (["0", "", "1.0", "NaN"], "multilabel", [0, NAN, 1, NAN]),
        ([0, None, 1.0, NAN, True], "multilabel", [0, NAN, 1, NAN, 1]),
        (["-1.5e-3"], "regression", [-0.0015]),
        (["0.5;NA;7"], "regression", [0.5, NAN, 7]),
        (["1 2"], "regression", [1, 2]),
        (["0101"], "regression", [101]),
        ([3, 0.25, None], "regression", [3, 0.25, NAN]),
        ([""], "regression", [NAN]),
    ],
)
def test_cells_are_read(cells, kind, target):
    found = TargetReader(kind, None).read(tuple(cells))
    assert type(found) is type(target)
    np.testing.assert_array_equal(found, target)


@pytest.mark.parametrize(
    "cells, kind, value, rule",
    [
        (["1.5"], "auto", "1.5", "integer"),
        (["-1"], "auto", "-1", "integer"),
        ([""], "binary", "", "missing"),
        ([None], "binary", "", "missing"),
        ([NAN], "auto", "", "missing"),
        (["NA"], "auto", "NA", "missing"),
        (["null"], "multiclass", "null", "missing"),
        (["-"], "auto", "-", "integer"),
        (["1e300"], "auto", "1e300", "integer"),
        ([], "multilabel", "[]", "no label"),
        ([0.5], "binary", "0.5", "integer"),
        (["\u0663"], "binary", "\u0663", "integer"),
        (["0 2"], "multilabel", "2", "neither 0 nor 1"),
        (["0", "yes"], "multilabel", "yes", "neither 0 nor 1"),
        (["0", "0 1"], "multilabel", "0 1", "neither 0 nor 1"),
        (["012"], "multilabel", "012", "neither 0 nor 1"),
        (["0,1"], "regression", "0,1", "no finite number"),
        (["inf"], "regression", "inf", "no finite number"),
        ([math.inf], "regression", math.inf, "no finite number"),
        (["1e39"], "regression", "1e39", "no finite number"),
        (["9" * 400], "regression", "9" * 400, "no finite number"),
        (["1_0"], "regression", "1_0", "no finite number"),
        ([{"a": 1}], "auto", "{'a': 1}", "integer"),
        ([[1]], "auto", "[1]", "integer"),
        ([{"a": 1}], "multilabel", {"a": 1}, "neither 0 nor 1"),
        (["1", {"a": 1}], "regression", {"a": 1}, "no finite number"),
    ],
)
def test_what_is_no_label_is_refused_in_words(cells, kind, value, rule):
    with pytest.raises(BadTarget, match=rule) as caught:
        TargetReader(kind, None).read(tuple(cells))
    assert caught.value.value == value and caught.value.fix


# -- whole files


def write(folder: Path, header: str, *rows: str) -> Path:
    for split in SPLITS:
        (folder / f"{split}.csv").write_text("\n".join([header, *rows]) + "\n")
    return folder


def read(folder: Path, kind: str, *columns: str) -> Examples:
    config = DataConfig(path=str(folder), label_column=columns)
    return read_examples(convert_once(config, folder, kind=kind, cache=folder / "cache"))


def refused(folder: Path, kind: str, *columns: str) -> list[Mistake]:
    with pytest.raises(UserError) as caught:
        read(folder, kind, *columns)
    return caught.value.mistakes


def test_several_columns_are_one_label_each_in_the_order_asked_for(tmp_path):
    write(tmp_path, "b,sequence,a", "1,ACGT,0", ",ACCT,1", "0,AACT,NA")
    (batch,) = read(tmp_path, "multilabel", "a", "b").batches("dev", most=9)
    np.testing.assert_array_equal(batch.column("label").to_pylist(), [[0, 1], [1, NAN], [NAN, 0]])


def test_labels_of_a_real_set_in_deepsea_form(shared):
    folder = shared / "data/danqplant_rice_multilabel"
    names = (folder / "labels.txt").read_text().split()
    lines = (folder / "train.csv").read_text().splitlines()
    assert lines[0].split(",") == ["sequence", *names] and len(names) == 58
    for line in lines[1:]:
        cells = line.split(",")[1:]
        alone = TargetReader("multilabel", None).read(("".join(cells),))
        assert alone == TargetReader("multilabel", None).read(cells) == [float(cell) for cell in cells]


@pytest.mark.parametrize(
    "rows, says",
    [
        (["ACGT,0 1", "ACCT,0"], "are not as many as in the first row, which has 2"),
        (["ACGT,0 1", "ACCT,0 x"], "neither 0 nor 1"),
    ],
)
def test_labels_that_do_not_go_together_are_named(tmp_path, rows, says):
    mistakes = refused(write(tmp_path, "sequence,label", *rows), "multilabel", "label")
    assert mistakes[0].where == f"{tmp_path / 'train.csv'}:3"
    assert says in mistakes[0].rule


@pytest.mark.parametrize(
    "rows, kind, says",
    [
        ([[1, NAN], [2, NAN]], "regression", "known in no training row"),
        ([[1, 2], [2, 2]], "regression", "is 2 in every training row"),
        ([[0] * (MAX_OUTPUTS + 1)], "multilabel", "more than a task has"),
    ],
)
def test_what_no_row_can_teach_is_told(rows, kind, says):
    (mistake,) = value_mistakes(np.array(rows, np.float32), kind=kind)
    assert mistake.where == "data.label_column" and says in mistake.rule
    with pytest.raises(UserError, match=says):
        task_of(config_of(kind=kind), data_of(rows), max_length=9)


def test_every_missing_column_is_named(tmp_path):
    mistakes = refused(write(tmp_path, "sequence,a", "ACGT,1"), "multilabel", "a", "b", "c")
    assert [mistake.rule for mistake in mistakes[:2]] == ["has no column 'b'", "has no column 'c'"]


@pytest.fixture
def tokenized(shared, tmp_path):
    """The splits of a folder, tokenised and read back."""

    def tokenize(folder: Path, kind: str):
        examples = read(folder, kind, "label")
        tokenizer = read_tokenizer(shared / "backbones/stories260k")
        write_tokenized(
            tmp_path / "entry",
            examples,
            tokenize=TextTokens(tokenizer),
            prompt=make_prompt(None, domain=None),
            max_length=100,
        )
        return read_tokenized(tmp_path / "entry")

    return tokenize


def test_values_reach_batches_and_packs_as_they_are(tokenized, tmp_path):
    write(tmp_path, "sequence,label", "ACGT,0.1;7", "AC,NA;8", "ACGTACGTACGT,-3;9")
    data = tokenized(tmp_path, "regression")
    split, rows, weights = data.splits["train"], np.array([2, 1, 0]), np.ones(3)
    expected = np.array([[0.1, 7], [NAN, 8], [-3, 9]], np.float32)
    np.testing.assert_array_equal(split.labels, expected)
    assert (data.classes, split.unknown) == (2, 1)
    for part in (make_batch(split, rows, weights), make_pack(split, rows, weights, share_prefix=True)):
        assert part.labels.dtype == torch.float32
        np.testing.assert_array_equal(part.labels.numpy(), expected[part.rows.numpy()])


def test_classes_reach_batches_as_integers(tokenized, tmp_path):
    write(tmp_path, "sequence,label", "ACGT,0", "AC,2", "ACG,1")
    data = tokenized(tmp_path, "auto")
    batch = make_batch(data.splits["train"], np.array([1, 2]), np.ones(2))
    assert batch.labels.dtype == torch.int64 and batch.labels.tolist() == [2, 1]
    assert data.classes == 3 and data.facts()["unknown"] == dict.fromkeys(SPLITS, 0)


# -- numbers of the training rows


def test_balanced_weights_of_classes_are_those_of_sklearn():
    labels = np.random.default_rng(0).choice(4, 200, p=[0.7, 0.2, 0.05, 0.05])
    expected = sklearn.utils.class_weight.compute_class_weight("balanced", classes=np.arange(4), y=labels)
    assert balanced_weights(labels, outputs=4) == pytest.approx(expected)


def test_balanced_weights_of_labels_by_hand():
    labels = np.array([[1, 0, 1, NAN], [0, 0, 1, 1], [0, 0, NAN, 0], [0, 0, 1, 0]])
    assert balanced_weights(labels, outputs=4).tolist() == [3, 1, 1, 2]


def test_moments_are_of_the_known_values():
    values = np.array([[1, 10], [NAN, 20], [4, 60]], np.float32)
    mean, scale = moments(values)
    assert mean.tolist() == [2.5, 30]
    assert scale == pytest.approx([1.5, np.std([10, 20, 60])])


# -- settings

MINIMAL = "name: x\nbackbone: {path: b}\ndata: {path: d}\n"


@pytest.fixture
def load(tmp_path):
    (tmp_path / "run.yaml").write_text(MINIMAL)
    return lambda *overrides: load_runs(tmp_path / "run.yaml", list(overrides))


MANY, VALUE = "task.kind=multilabel", "task.kind=regression"


@pytest.mark.parametrize(
    "overrides, metric",
    [
        ((), "mcc"),
        (("task.kind=binary",), "mcc"),
        (("selection.metric=auroc",), "auroc"),
        ((MANY,), "macro_auroc"),
        ((VALUE,), "pearson"),
        ((VALUE, "selection.metric=r2"), "r2"),
    ],
)
def test_the_metric_follows_the_kind(load, overrides, metric):
    assert load(*overrides).metric == metric


@pytest.mark.parametrize(
    "overrides, field, says",
    [
        (("task.kind=classes",), "task.kind", "multilabel"),
        (("selection.metric=pearson",), "selection.metric", "no metric of task.kind auto"),
        ((MANY, "selection.metric=mcc"), "selection.metric", "no metric of task.kind multilabel"),
        ((VALUE, "selection.metric=rmse"), "selection.metric", "pearson"),
        (("data.label_column=[a, b]",), "data.label_column", "multilabel or regression"),
        ((MANY, "data.label_column=[a, a]"), "data.label_column", "each once"),
        ((MANY, "data.label_column=[]"), "data.label_column", "must hold names"),
        ((MANY, "data.label_column=[a, b]", "task.labels=[a]"), "task.labels", "names 1 outputs"),
        (("task.labels=[a, 'b;c']",), "task.labels", "without ;"),
        ((VALUE, "task.class_weights=balanced"), "task.class_weights", "does not fit"),
        ((VALUE, "task.focal_gamma=2"), "task.focal_gamma", "does not fit"),
        ((VALUE, "task.threshold=dev"), "task.threshold", "does not fit"),
        (("task.kind=multiclass", "task.threshold=0.4"), "task.threshold", "does not fit"),
        (("task.threshold=1",), "task.threshold", "nor a number between 0 and 1"),
        (("task.threshold=test",), "task.threshold", "neither dev nor"),
        (("task.threshold=true",), "task.threshold", "neither dev nor"),
        (("task.class_weights=inverse",), "task.class_weights", "neither none, balanced"),
        (("task.class_weights=[1, 0]",), "task.class_weights", "numbers above 0"),
        (("task.focal_gamma=-1",), "task.focal_gamma", "greater than or equal to 0"),
    ],
)
def test_settings_that_do_not_fit_the_kind_are_refused(load, overrides, field, says):
    with pytest.raises(UserError) as caught:
        load(*overrides)
    assert [mistake.where.split()[0] for mistake in caught.value.mistakes] == [field]
    assert says in str(caught.value)


def config_of(**task: object) -> RunConfig:
    return RunConfig.model_validate(
        {"name": "x", "backbone": {"path": "b"}, "data": {"path": "d"}, "task": task}
    )


def data_of(labels: list, **facts: object) -> TokenizedData:
    """Tokenised data with these training labels."""

    def tokenize(rows: Sequence[ExampleText], prompt: Prompt, max_length: int) -> Iterator[Tokens]:
        return (Tokens([1]) for _ in rows)

    prompt = make_prompt(None, domain=None)
    train = tokenized_split(["A"] * len(labels), labels, max_length=9, tokenize=tokenize, prompt=prompt)
    classes = len(labels[0]) if isinstance(labels[0], list) else max(labels) + 1
    known = {"class_names": None, "duplicates": {}, "fingerprint": "f", "bases": 1, "pairs": False} | facts
    known |= {"losses": {}}
    return TokenizedData(splits={"train": train}, classes=classes, **known)


@pytest.mark.parametrize(
    "task, classes, field",
    [
        ({"kind": "binary"}, 3, "task.kind"),
        ({"threshold": "dev"}, 3, "task.threshold"),
        ({"labels": ["a", "b"]}, 3, "task.labels"),
        ({"class_weights": [1, 2]}, 3, "task.class_weights"),
    ],
)
def test_settings_that_do_not_fit_the_rows_are_refused(task, classes, field):
    with pytest.raises(UserError) as caught:
        task_of(config_of(**task), data_of(list(range(classes))), max_length=9)
    assert [mistake.where for mistake in caught.value.mistakes] == [field]


def test_a_task_knows_its_outputs():
    labels = [[1.0, 5], [0, NAN], [0, 7]]
    task = task_of(config_of(kind="regression"), data_of([[1.0, 5], [3, 7]]), max_length=9)
    assert (task.kind, task.output_names, task.mean, task.scale) == ("regression", ("0", "1"), (2, 6), (1, 1))
    task = task_of(config_of(threshold=0.3, labels=["no", "yes"]), data_of([0, 1]), max_length=9)
    assert (task.kind, task.output_names, task.thresholds) == ("binary", ("no", "yes"), (0.3,))
    task = task_of(config_of(kind="multilabel", threshold=0.3), data_of(labels), max_length=9)
    assert task.thresholds == (0.3, 0.3)
    assert task_of(config_of(), data_of([0, 1, 2]), max_length=9).kind == "multiclass"
    assert task_of(config_of(), data_of([0, 1], class_names=("a", "b")), max_length=9).names == ("a", "b")
