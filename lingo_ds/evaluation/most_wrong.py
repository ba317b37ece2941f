"""The examples that a model got most wrong, with their sequences: `predictions/most_wrong.json`."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import BaseModel, Field, TypeAdapter

from lingo_ds.data.examples import Examples
from lingo_ds.data.task import Task
from lingo_ds.evaluation.answers import decide
from lingo_ds.utils.files import atomic_write
from lingo_ds.utils.safe_read import read_json

MOST_WRONG = "predictions/most_wrong.json"
"""Where a run keeps them, below its folder."""

EXAMPLES, MAX_BASES = 20, 240
"""Examples that are kept, and bases of each."""

ROWS_AT_ONCE = 10_000

Number = Annotated[float, Field(allow_inf_nan=False)]


class WrongAnswer(BaseModel, strict=True):
    """One wrong answer.

    Attributes:
        row: place of the example in its split, from 0.
        output: number of the label or value that the answer is about; of classes the decided one.
        truth: the class, label or value in the data.
        answer: probability of the truth, or the value that was predicted.
        sequence: the sequence's first bases; null where it could not be read any more.
        length: bases of the whole sequence.
        pair, pair_length: the same of the second sequence of a pair.
    """

    row: int
    output: int
    truth: Number
    answer: Number
    sequence: str | None = None
    length: int | None = None
    pair: str | None = None
    pair_length: int | None = None


_LIST = TypeAdapter(list[WrongAnswer])


def most_wrong(answers: np.ndarray, labels: np.ndarray, task: Task) -> list[WrongAnswer]:
    """The wrong answers, the worst first: the true class or label has the lowest probability.

    Of values those with the largest error, several values by their spread in training.

    Args:
        answers: (n, outputs) probabilities or values.
        labels: (n,) classes, or (n, outputs) labels or values, NaN where unknown.
        task: what they mean.
    """
    if task.kind == "regression":
        assert task.scale is not None  # every regression has one
        error = np.abs(answers - labels) / np.array(task.scale)
        return [
            WrongAnswer(row=row, output=output, truth=labels[row, output], answer=answers[row, output])
            for row, output in _largest(np.where(np.isnan(labels), -1.0, error))
        ]
    decided = decide(answers, task)
    if task.kind == "multilabel":
        of_truth = np.where(labels == 1, answers, 1 - answers)
        wrong = ~np.isnan(labels) & (decided != labels)
        return [
            WrongAnswer(row=row, output=output, truth=labels[row, output], answer=of_truth[row, output])
            for row, output in _largest(np.where(wrong, 1 - of_truth, -1.0))
        ]
    of_truth = answers[np.arange(len(labels)), labels]
    return [
        WrongAnswer(row=row, output=int(decided[row]), truth=float(labels[row]), answer=of_truth[row])
        for row, _ in _largest(np.where(decided != labels, 1 - of_truth, -1.0)[:, None])
    ]


def with_sequences(wrong: Sequence[WrongAnswer], examples: Examples, *, split: str) -> list[WrongAnswer]:
    """The same answers with the sequences of their rows.

    Raises:
        OSError: where the examples are not there any more.
    """
    wanted, found = {one.row for one in wrong}, {}
    begin = 0
    for batch in examples.batches(split, most=ROWS_AT_ONCE):
        for row in wanted.intersection(range(begin, begin + len(batch))):
            sequence, pair = (batch.column(name)[row - begin].as_py() for name in ("sequence", "pair"))
            found[row] = {"sequence": sequence[:MAX_BASES], "length": len(sequence)}
            if pair is not None:
                found[row] |= {"pair": pair[:MAX_BASES], "pair_length": len(pair)}
        begin += len(batch)
    return [one.model_copy(update=found.get(one.row, {})) for one in wrong]


def write_most_wrong(path: Path, wrong: Sequence[WrongAnswer]) -> None:
    """Writes them as a list of JSON objects."""
    text = json.dumps([one.model_dump(exclude_none=True) for one in wrong], indent=1)
    atomic_write(path, lambda aside: aside.write_text(text, encoding="utf-8"))


def read_most_wrong(path: Path) -> list[WrongAnswer]:
    """What `write_most_wrong` wrote; empty where there is no such file.

    Raises:
        ValueError: where the file holds something else.
        OSError: where it cannot be read.
    """
    return _LIST.validate_python(read_json(path)) if path.exists() else []


def _largest(table: np.ndarray) -> list[tuple[int, int]]:
    """Row and column of the largest entries of at least 0, the largest first; ties by their place."""
    flat = table.ravel()
    chosen = (
        np.argpartition(-flat, min(EXAMPLES, flat.size - 1))[:EXAMPLES] if flat.size else np.zeros(0, int)
    )
    ordered = sorted((place for place in chosen.tolist() if flat[place] >= 0), key=lambda k: (-flat[k], k))
    return [divmod(place, table.shape[1]) for place in ordered]
