"""Labelled sequences: one as its source has it, and the checked ones in the cache."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

SPLITS = ("train", "dev", "test")

FACTS, NUMBERS = "facts.json", "numbers.npy"
"""Further files of a cache entry: facts of all splits; (labels,) the class of each stored label."""

NO_FIELDS: Mapping[str, str] = MappingProxyType({})


class Example(NamedTuple):
    """A labelled sequence, or a pair of them.

    Attributes:
        sequence: DNA, in any case.
        cells: values of the label columns, in their order.
        where: place of the example, e.g. `train.csv:17`.
        pair: the second sequence of a pair.
        fields: further columns of its source; of a window `chromosome`, `start` and `end`.
        split: the split that the row itself names; None: that of its file.
    """

    sequence: str
    cells: tuple[str | int | float | None, ...]
    where: str
    pair: str | None = None
    fields: Mapping[str, str] = NO_FIELDS
    split: str | None = None


@dataclass(frozen=True)
class Examples:
    """A cache entry of checked examples, read by memory map.

    A split that is drawn from train has no table of its own: `<split>.npy` holds its rows there.

    Attributes:
        folder: of the entry.
        rows: examples by split.
        classes: number of classes, or of values that an example has.
        class_names: in the order of the classes; None where they are numbers, or no classes.
        duplicates: see `count_duplicates`.
        bases: median length of the training sequences.
        pairs: whether an example has two sequences.
        label_columns: names of the columns that the labels came from; empty where they have none.
        remarks: what is to be said of the data whenever it is used.
    """

    folder: Path
    rows: dict[str, int]
    classes: int
    class_names: tuple[str, ...] | None
    duplicates: dict[str, int]
    bases: int
    pairs: bool
    label_columns: tuple[str, ...]
    remarks: tuple[str, ...]

    def batches(self, split: str, *, most: int) -> Iterator[pa.RecordBatch]:
        """The rows of a split in order, `most` or fewer at a time.

        Columns: `sequence`, `pair` (or null), `label`, `fields` (cells that the prompt reads).
        """
        chosen = self.folder / f"{split}.npy"
        rows = np.load(chosen, mmap_mode="r") if chosen.exists() else None
        stored = self.folder / f"{split}.arrow"
        numbers = np.load(self.folder / NUMBERS) if (self.folder / NUMBERS).exists() else None
        begin = 0
        with pa.memory_map(str(stored if stored.exists() else self.folder / "train.arrow")) as raw:
            for batch in pa.ipc.open_stream(raw):
                end = begin + len(batch)
                if rows is not None:
                    first, last = np.searchsorted(rows, [begin, end])
                    batch = batch.take(pa.array(rows[first:last] - begin))
                if numbers is not None:
                    labels = numbers[batch.column("label").to_numpy()]
                    batch = batch.set_column(2, "label", pa.array(labels))
                begin = end
                for start in range(0, len(batch), most):
                    yield batch.slice(start, most)

    def labels(self, split: str) -> np.ndarray:
        """The labels of a split: (rows,) int64 classes, or (rows, values) float32 with NaN where unknown."""
        columns = [batch.column("label") for batch in self.batches(split, most=1 << 16)]
        if pa.types.is_integer(columns[0].type):
            return np.concatenate([column.to_numpy(zero_copy_only=False) for column in columns])
        values = [column.flatten().to_numpy(zero_copy_only=False) for column in columns]
        return np.concatenate(values).astype(np.float32).reshape(self.rows[split], -1)

    @property
    def train_labels(self) -> np.ndarray:
        """The labels of the training rows."""
        return self.labels("train")


def read_examples(folder: Path) -> Examples:
    """The cache entry that `write_examples` made."""
    facts = json.loads((folder / FACTS).read_text())
    return Examples(folder=folder, **with_tuples(facts))


def with_tuples(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Facts as they were before JSON made lists of their tuples."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in facts.items()}
