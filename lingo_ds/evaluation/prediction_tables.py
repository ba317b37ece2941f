"""The columns of an output: one row per sequence, or one per variant."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Generic

import numpy as np
import pyarrow as pa

from lingo_ds.data.streams.sequences import Chunk
from lingo_ds.data.streams.variants import Variant, VariantChunk
from lingo_ds.data.task import Task
from lingo_ds.evaluation.answers import answer_columns, decide
from lingo_ds.evaluation.predictor import Predicted, RowChunk


class PredictionTable(ABC, Generic[RowChunk]):
    """Makes the rows of an output from chunks and their answers.

    Attributes:
        unit: the name of what a row stands for, in the plural.
        schema: the columns.
    """

    unit: ClassVar[str]

    def __init__(self, task: Task, schema: pa.Schema):
        """Takes the task that the answers belong to, and the columns."""
        self._task, self.schema = task, schema

    def amount(self, rows: int) -> int:
        """How much of the unit the first so many rows are."""
        return rows

    @abstractmethod
    def rows(self, predicted: Predicted[RowChunk]) -> pa.Table:
        """The rows of a chunk."""


class SequenceTable(PredictionTable[Chunk]):
    """Columns id, the decision, and an answer per output.

    The decision is the `label` of a class; in a multilabel task the names of its `labels`, joined by `;`. A
    regression has values alone. With embeddings a column `embedding` is last.
    """

    unit = "sequences"

    def __init__(self, task: Task, *, numbered: bool, embedding_size: int | None = None):
        """Takes the task, whether ids are integers, and the size of embeddings; None: there are none."""
        id_type = pa.int64() if numbered else pa.string()
        answers = [(name, pa.float32()) for name in answer_columns(task)]
        columns = [("id", id_type), *_decision_columns(task, [""]), *answers]
        super().__init__(task, pa.schema([*columns, *_embedding_columns(embedding_size, [""])]))

    def rows(self, predicted: Predicted[Chunk]) -> pa.Table:
        answers = predicted.answers
        columns = [predicted.chunk.ids, *_decisions(self._task, answers), *answers.T]
        return _table([*columns, *_lists(predicted.embeddings)], self.schema)


class VariantTable(PredictionTable[VariantChunk]):
    """Columns of the variant, the decisions for its two windows, and for each output ref, alt, alt - ref.

    With embeddings those of the two windows are last.
    """

    unit = "variants"

    def __init__(self, task: Task, *, embedding_size: int | None = None):
        """Takes the task, and the size of embeddings; None: there are none."""
        text, whole = pa.string(), pa.int64()
        columns = [("chrom", text), ("pos", whole), ("id", text), ("ref", text), ("alt", text)]
        names = [f"{name}_{of}" for name in answer_columns(task) for of in ("ref", "alt", "delta")]
        answers = [(name, pa.float32()) for name in names]
        decisions = _decision_columns(task, ["_ref", "_alt"])
        embeddings = _embedding_columns(embedding_size, ["_ref", "_alt"])
        super().__init__(task, pa.schema([*columns, *decisions, *answers, *embeddings]))

    def rows(self, predicted: Predicted[VariantChunk]) -> pa.Table:
        chunk, answers, states = predicted.chunk, predicted.answers, predicted.embeddings
        at_ref, at_alt = np.array(chunk.places).T
        ref, alt = answers[at_ref], answers[at_alt]
        variants = [[getattr(one, name) for one in chunk.variants] for name in Variant._fields]
        values = np.stack([ref, alt, alt - ref], axis=2).reshape(len(ref), -1)
        decided = [*_decisions(self._task, ref), *_decisions(self._task, alt)]
        embeddings = [] if states is None else [*_lists(states[at_ref]), *_lists(states[at_alt])]
        return _table([*variants, *decided, *values.T, *embeddings], self.schema)


def _decision_columns(task: Task, endings: Sequence[str]) -> list[tuple[str, pa.DataType]]:
    if task.kind == "regression":
        return []
    name, kind = ("labels", pa.string()) if task.kind == "multilabel" else ("label", pa.int64())
    return [(name + ending, kind) for ending in endings]


def _decisions(task: Task, answers: np.ndarray) -> list[np.ndarray | list[str]]:
    """The column between ids and answers, if the task has one."""
    if task.kind == "regression":
        return []
    decided = decide(answers, task)
    if task.kind != "multilabel":
        return [decided]
    names = np.array(task.output_names, dtype=object)
    return [[";".join(names[row == 1]) for row in decided]]


def _embedding_columns(size: int | None, endings: Sequence[str]) -> list[tuple[str, pa.DataType]]:
    kind = None if size is None else pa.list_(pa.float32(), size)
    return [] if kind is None else [(f"embedding{ending}", kind) for ending in endings]


def _lists(embeddings: np.ndarray | None) -> list[pa.Array]:
    """Embeddings (n, size) as a column of lists, if there are any."""
    if embeddings is None:
        return []
    flat = pa.array(np.ascontiguousarray(embeddings, np.float32).ravel())
    return [pa.FixedSizeListArray.from_arrays(flat, embeddings.shape[1])]


def _table(columns: Sequence[Any], schema: pa.Schema) -> pa.Table:
    arrays = [
        column if isinstance(column, pa.Array) else pa.array(column, field.type)
        for column, field in zip(columns, schema, strict=True)
    ]
    return pa.Table.from_arrays(arrays, schema=schema)
