"""Wrong answers come in the order in which they are wrong, with the sequences of their rows."""

import numpy as np
import pyarrow as pa
import pytest

from lingo_ds.data.task import Task
from lingo_ds.evaluation.most_wrong import (
    MAX_BASES,
    most_wrong,
    read_most_wrong,
    with_sequences,
    write_most_wrong,
)


def task(kind: str, outputs: int, **known) -> Task:
    return Task("t", kind, outputs, None, None, 100, **known)


def test_of_classes_the_surest_wrong_decision_comes_first():
    answers = np.array([[0.9, 0.1], [0.4, 0.6], [0.2, 0.8], [0.05, 0.95]])
    found = most_wrong(answers, np.array([1, 0, 0, 1]), task("binary", 2))
    assert [(one.row, one.output, one.truth) for one in found] == [(0, 0, 1), (2, 1, 0), (1, 1, 0)]
    assert [one.answer for one in found] == pytest.approx([0.1, 0.2, 0.4])
    strict = task("binary", 2, thresholds=(0.7,))
    assert [one.row for one in most_wrong(answers, np.array([1, 0, 0, 1]), strict)] == [0, 2]


def test_of_labels_unknown_ones_are_not_wrong():
    answers = np.array([[0.9, 0.7], [0.2, 0.6]])
    labels = np.array([[np.nan, 0], [1, 1]])
    found = most_wrong(answers, labels, task("multilabel", 2))
    assert [(one.row, one.output, one.truth) for one in found] == [(1, 0, 1), (0, 1, 0)]
    assert [one.answer for one in found] == pytest.approx([0.2, 0.3])


def test_of_values_errors_are_compared_by_their_spread():
    answers, labels = np.array([[1.0, 100.0], [2.0, 300.0]]), np.array([[1.5, 110.0], [np.nan, 300.0]])
    found = most_wrong(answers, labels, task("regression", 2, mean=(0.0, 0.0), scale=(1.0, 100.0)))
    assert [(one.row, one.output, one.truth, one.answer) for one in found] == [
        (0, 0, 1.5, 1.0),
        (0, 1, 110.0, 100.0),
        (1, 1, 300.0, 300.0),
    ]


class Rows:
    """Examples in batches, as a cache entry gives them."""

    sequences = ("A", "C" * (MAX_BASES + 10), "G", "T")

    def batches(self, split: str, *, most: int):
        assert split == "test"
        for begin in (0, 3):
            part = self.sequences[begin : begin + 3]
            columns = {"sequence": part, "pair": ["AC" if one == "T" else None for one in part]}
            yield pa.RecordBatch.from_pydict({name: list(values) for name, values in columns.items()})


def test_sequences_are_those_of_the_rows_and_survive_the_file(tmp_path):
    answers, labels = np.tile([[0.9, 0.1]], (4, 1)), np.array([0, 1, 0, 1])
    found = with_sequences(most_wrong(answers, labels, task("binary", 2)), Rows(), split="test")
    assert [(one.row, one.sequence, one.length) for one in found] == [
        (1, "C" * MAX_BASES, MAX_BASES + 10),
        (3, "T", 1),
    ]
    assert (found[1].pair, found[1].pair_length) == ("AC", 2)
    write_most_wrong(tmp_path / "wrong.json", found)
    assert read_most_wrong(tmp_path / "wrong.json") == found
    (tmp_path / "wrong.json").write_text('[{"row": "first"}]')
    with pytest.raises(ValueError, match="row"):
        read_most_wrong(tmp_path / "wrong.json")
