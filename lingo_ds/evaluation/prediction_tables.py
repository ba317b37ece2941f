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
from lingo_ds.evaluation.predictor import RowChunk


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

    @abstractmethod
    def rows(self, chunk: RowChunk, answers: np.ndarray) -> pa.Table:
        """The rows of a chunk; `answers` is (sequences, outputs) float32."""


class SequenceTable(PredictionTable[Chunk]):
    """Columns id, the decision, and an answer per output.

    The decision is the `label` of a class; in a multilabel task the names of its `labels`, joined by `;`. A
    regression has values alone.
    """

    unit = "sequences"

    def __init__(self, task: Task, *, numbered: bool):
        """Takes the task, and whether ids are integers."""
        id_type = pa.int64() if numbered else pa.string()
        answers = [(name, pa.float32()) for name in answer_columns(task)]
        super().__init__(task, pa.schema([("id", id_type), *_decision_columns(task, [""]), *answers]))

    def rows(self, chunk: Chunk, answers: np.ndarray) -> pa.Table:
        return _table([chunk.ids, *_decisions(self._task, answers), *answers.T], self.schema)


class VariantTable(PredictionTable[VariantChunk]):
    """Columns of the variant, the decisions for its two windows, and for each output ref, alt, alt - ref."""

    unit = "variants"

    def __init__(self, task: Task):
        """Takes the task."""
        text, whole = pa.string(), pa.int64()
        columns = [("chrom", text), ("pos", whole), ("id", text), ("ref", text), ("alt", text)]
        names = [f"{name}_{of}" for name in answer_columns(task) for of in ("ref", "alt", "delta")]
        answers = [(name, pa.float32()) for name in names]
        decisions = _decision_columns(task, ["_ref", "_alt"])
        super().__init__(task, pa.schema([*columns, *decisions, *answers]))

    def rows(self, chunk: VariantChunk, answers: np.ndarray) -> pa.Table:
        at_ref, at_alt = np.array(chunk.places).T
        ref, alt = answers[at_ref], answers[at_alt]
        variants = [[getattr(one, name) for one in chunk.variants] for name in Variant._fields]
        values = np.stack([ref, alt, alt - ref], axis=2).reshape(len(ref), -1)
        decided = [*_decisions(self._task, ref), *_decisions(self._task, alt)]
        return _table([*variants, *decided, *values.T], self.schema)


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


def _table(columns: Sequence[Any], schema: pa.Schema) -> pa.Table:
    arrays = [pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)]
    return pa.Table.from_arrays(arrays, schema=schema)
