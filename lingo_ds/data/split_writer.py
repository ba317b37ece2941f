"""One split while it is converted: its rows go to an Arrow file in batches."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pyarrow as pa

from lingo_ds.data.examples import Example
from lingo_ds.data.labels import Target
from lingo_ds.data.splits import SplitSummary

BATCH_ROWS, BATCH_BASES = 8192, 1 << 24
"""A batch ends with so many rows or by so many bases."""

WINDOW_FIELDS = {"chromosome", "start", "end"}
"""Fields of an example that is a window of a genome."""


def examples_schema(*, has_classes: bool) -> pa.Schema:
    """The columns of a file of examples."""
    target = pa.int64() if has_classes else pa.list_(pa.float32())
    return pa.schema(
        {
            "sequence": pa.string(),
            "pair": pa.string(),
            "label": target,
            "fields": pa.list_(pa.string()),
        }
    )


class SplitWriter:
    """Writes checked examples and remembers of them what splits are compared by.

    Attributes:
        summary: hashes, lengths and windows of the rows written.
        labels: class of each row in pieces, where there are classes.
        first: place of each class's first row.
        has_pairs: whether a row has a second sequence.
    """

    def __init__(self, path: Path, schema: pa.Schema, summary: SplitSummary, *, held: ExitStack):
        """Opens the file, which is complete when `held` closes it after the last `flush`."""
        file = held.enter_context(pa.OSFile(str(path), "wb"))
        self._writer = held.enter_context(pa.ipc.new_stream(file, schema))
        self._schema, self.summary = schema, summary
        self.labels: list[np.ndarray] = []
        self.first: dict[int, str] = {}
        self.has_pairs = False
        self._begin_batch()

    def _begin_batch(self) -> None:
        self._sequences: list[str] = []
        self._pairs: list[str | None] = []
        self._targets: list[Target] = []
        self._fields: list[list[str]] = []
        self._windows: list[Mapping[str, str]] = []
        self._bases = 0

    def add(self, example: Example, target: Target, columns: Sequence[str]) -> bool:
        """Takes an example with its target; `columns` are the fields that are kept. True: a batch is full."""
        sequence, pair, fields = example.sequence, example.pair, example.fields
        self._sequences.append(sequence.upper())
        self._pairs.append(pair and pair.upper())
        self._targets.append(target)
        self._fields.append([fields[name] for name in columns])
        if fields.keys() >= WINDOW_FIELDS:
            self._windows.append(fields)
        self._bases += len(sequence)
        if isinstance(target, int) and target not in self.first:
            self.first[target] = example.where
        return len(self._sequences) >= BATCH_ROWS or self._bases >= BATCH_BASES

    def flush(self) -> None:
        """Writes the batch at hand."""
        rows = (self._sequences, self._pairs, self._targets, self._fields)
        columns = [pa.array(values, one.type) for values, one in zip(rows, self._schema, strict=True)]
        self._writer.write_batch(pa.record_batch(columns, schema=self._schema))
        if pa.types.is_integer(columns[2].type):
            self.labels.append(columns[2].to_numpy())
        self.has_pairs |= any(self._pairs)
        self.summary.add(
            self._sequences,
            self._pairs,
            cells=self._fields,
            answers=_answers(columns[2]),
            windows=self._windows,
        )
        self._begin_batch()


def _answers(targets: pa.Array) -> Iterable[int]:
    """A number for each target: the same for the same class, or for the same values at the same places."""
    if pa.types.is_integer(targets.type):
        return targets.to_pylist()
    values = targets.flatten().to_numpy(zero_copy_only=False)
    width = len(values) // max(len(targets), 1)
    return (hash(values[k * width : (k + 1) * width].tobytes()) for k in range(len(targets)))
