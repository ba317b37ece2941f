"""The answers on a split that a run keeps, `predictions/<split>.parquet`: written, and read for reports."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lingo_ds.data.task import Task
from lingo_ds.evaluation.answers import answer_columns, answers, decide
from lingo_ds.evaluation.evaluate import Evaluation
from lingo_ds.utils.files import atomic_write

STEP = b"step"
"""Key of the file's own metadata that holds the step whose adapter answered."""


class KeptAnswers(NamedTuple):
    """The answers on a split, as a run keeps them.

    Attributes:
        answers: (rows, outputs) probabilities or values.
        labels: (rows,) classes, or (rows, outputs) labels or values, NaN where unknown.
        step: step whose adapter answered; None where that is not recorded.
    """

    answers: np.ndarray
    labels: np.ndarray
    step: int | None

    def decided(self, task: Task) -> np.ndarray:
        """The decisions, see `answers.decide`."""
        return decide(self.answers, task)


def write_predictions(
    path: Path, evaluation: Evaluation, labels: np.ndarray, *, step: int | None = None
) -> None:
    """Writes a Parquet file with the row, label, decision and answers of every example.

    For classes: label, predicted, and the probability of each class. For labels: label, predicted and
    probability of each. For values: label and value of each. A label is null where it is unknown.

    Args:
        path: the file to write or replace.
        evaluation: the answers.
        labels: of the split.
        step: step whose adapter answered; None: it is not recorded.
    """
    task, found = evaluation.task, answers(evaluation.logits, evaluation.task)
    columns = {"row": np.arange(len(labels))}
    if labels.ndim == 1:
        columns |= {"label": labels, "predicted": decide(found, task)}
    else:
        columns |= dict(zip(_label_columns(task), labels.T, strict=True))
        if task.kind == "multilabel":
            names = (f"predicted_{name}" for name in task.output_names)
            columns |= dict(zip(names, decide(found, task).T, strict=True))
    columns |= dict(zip(answer_columns(task), found.T, strict=True))
    arrays = {name: pa.array(column, from_pandas=True) for name, column in columns.items()}
    metadata = None if step is None else {STEP: str(step)}
    table = pa.table(arrays, metadata=metadata)
    atomic_write(path, lambda aside: pq.write_table(table, aside))


def read_predictions(path: Path, task: Task, *, most: int) -> KeptAnswers | None:
    """The answers that `write_predictions` wrote; None where there are none, or more than `most` of them.

    Raises:
        ValueError: where the file holds something else.
        OSError: where it cannot be read.
    """
    if not path.exists():
        return None
    file = pq.ParquetFile(path)
    if file.metadata.num_rows * task.classes > most:
        return None
    one_column = task.kind in ("binary", "multiclass")
    label_columns = ["label"] if one_column else _label_columns(task)
    names = answer_columns(task)
    if missing := {*label_columns, *names} - set(file.schema_arrow.names):
        raise ValueError(f"{path} lacks the column {min(missing)}")
    table = file.read(columns=[*label_columns, *names])
    found = np.stack([_numbers(table, name) for name in names], axis=1)
    labels = np.stack([_numbers(table, name) for name in label_columns], axis=1)
    step = (file.schema_arrow.metadata or {}).get(STEP)
    return KeptAnswers(found, labels[:, 0].astype(np.int64) if one_column else labels, step and int(step))


def _numbers(table: pa.Table, name: str) -> np.ndarray:
    """A column as float64, NaN where it is null."""
    return np.concatenate(
        [
            np.zeros(0),
            *(chunk.cast(pa.float64()).to_numpy(zero_copy_only=False) for chunk in table[name].chunks),
        ]
    )


def _label_columns(task: Task) -> list[str]:
    return [f"label_{name}" for name in task.output_names]
