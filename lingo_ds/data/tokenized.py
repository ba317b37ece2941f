"""Tokenised splits: token ids and labels, read by memory map."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from lingo_ds.data.token_losses import TokenLosses

IDS, CLASS, VALUES = pa.list_(pa.int32()), pa.int64(), pa.list_(pa.float32())
"""Arrow types of token ids, and of the label of a class or of a list of values (NaN: unknown)."""

COUNTS = {"bases": pa.int32(), "cut": pa.int32(), "unknown": pa.int32()}
"""Columns that count the bases of an example, see `TokenLosses`."""

SCHEMA = pa.schema({"input_ids": IDS, "label": CLASS, **COUNTS})
"""Columns of a table on one strand; `label` is VALUES where the target is a list of values."""


def as_numpy(values: pa.Array) -> np.ndarray:
    """A view of values of which none is null; pyarrow's own `to_numpy` would import pandas first."""
    return np.from_dlpack(values)


@dataclass(frozen=True)
class TokenizedSplit:
    """One split's token ids, read from the table without a copy: on disk by memory map.

    Attributes:
        table: columns input_ids (list of int32), label (int64 or list of float32), those of `COUNTS`, and for
            both strands reverse_ids (list of int32).
        both: whether the rows are 2 n: row n + k is row k of the table on its other strand.
        equal: sequences that have the same tokens as a different one.
    """

    table: pa.Table
    both: bool = False
    equal: int = 0

    def __len__(self) -> int:
        return len(self.table) * (1 + self.both)

    def both_strands(self) -> "TokenizedSplit":
        """The same table with both strands as rows; it must have the column reverse_ids."""
        return replace(self, both=True)

    @property
    def widest(self) -> "TokenizedSplit":
        """The same table with all strands that it holds as rows."""
        return self.both_strands() if "reverse_ids" in self.table.column_names else self

    @cached_property
    def _chunks(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Ids and offsets of the chunks of the column; none is copied."""
        names = ("input_ids", "reverse_ids") if self.both else ("input_ids",)
        chunks = [chunk for name in names for chunk in self.table.column(name).chunks]
        return [(as_numpy(chunk.values), as_numpy(chunk.offsets)) for chunk in chunks]

    @cached_property
    def _begins(self) -> np.ndarray:
        """(chunks + 1,) first row of each chunk, and the number of rows."""
        return np.cumsum([0, *(len(offsets) - 1 for _, offsets in self._chunks)])

    def _chunk_of(self, rows: np.ndarray | int) -> np.ndarray:
        return np.searchsorted(self._begins, rows, side="right") - 1

    @cached_property
    def labels(self) -> np.ndarray:
        """(rows,) int64 classes, or (rows, values) float32 with NaN where unknown."""
        column = self.table.column("label")
        if pa.types.is_integer(column.type):
            labels = np.concatenate([np.zeros(0, np.int64), *map(as_numpy, column.chunks)])
        else:
            values = [chunk.flatten().to_numpy(zero_copy_only=False) for chunk in column.chunks]
            labels = np.concatenate(values).reshape(len(column), -1)
        return np.concatenate([labels, labels]) if self.both else labels

    @property
    def unknown(self) -> int:
        """The number of labels or values that are unknown."""
        return int(np.isnan(self.labels).sum())

    @cached_property
    def lengths(self) -> np.ndarray:
        """(rows,) tokens per example."""
        return np.concatenate([np.zeros(0, np.int32), *(np.diff(offsets) for _, offsets in self._chunks)])

    @property
    def largest_id(self) -> int:
        """The largest token id; -1 where there is none."""
        pieces = (values[offsets[0] : offsets[-1]] for values, offsets in self._chunks)
        return max((int(piece.max(initial=-1)) for piece in pieces), default=-1)

    @property
    def truncated(self) -> int:
        """The number of examples whose sequence was cut, on one strand at least."""
        return int((self._counts("cut") > 0).sum())

    @property
    def losses(self) -> TokenLosses:
        """What the sequences lost, each on the strand that lost more."""
        bases, cut, unknown = (int(self._counts(name).sum(dtype=np.int64)) for name in COUNTS)
        return TokenLosses(len(self.table), bases, cut, unknown, self.equal)

    def _counts(self, name: str) -> np.ndarray:
        return np.concatenate([np.zeros(0, np.int32), *map(as_numpy, self.table.column(name).chunks)])

    def tokens(self, row: int) -> np.ndarray:
        """Token ids of one example, (length,)."""
        chunk = int(self._chunk_of(row))
        (values, offsets), place = self._chunks[chunk], row - self._begins[chunk]
        return values[offsets[place] : offsets[place + 1]]

    def heads(self, rows: np.ndarray, length: int) -> np.ndarray:
        """The first `length` token ids of examples that have as many, (rows, length)."""
        out, chunks = np.empty((len(rows), length), np.int32), self._chunk_of(rows)
        for chunk in np.unique(chunks):
            here, (values, offsets) = chunks == chunk, self._chunks[chunk]
            out[here] = values[offsets[rows[here] - self._begins[chunk]][:, None] + np.arange(length)]
        return out


@dataclass(frozen=True)
class TokenizedData:
    """All splits, and facts of their examples.

    Attributes:
        splits: by name.
        classes: outputs that a head needs: classes, labels or values.
        class_names: in the order of the classes; None where they are numbers.
        duplicates: rows that occur twice, see `count_duplicates`.
        fingerprint: changes with files, tokenizer, prompt and length.
        bases: median length of the training sequences.
        pairs: whether an example has two sequences.
        losses: what the sequences of each split lost on their way to tokens.
        label_columns: names of the columns that the labels came from; empty where they have none.
        remarks: what is to be said of the data whenever it is used.
        examples: the cache entry that holds the rows as text; None: they are in no cache.
    """

    splits: Mapping[str, TokenizedSplit]
    classes: int
    class_names: tuple[str, ...] | None
    duplicates: dict[str, int]
    fingerprint: str
    bases: int
    pairs: bool
    losses: Mapping[str, TokenLosses]
    label_columns: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()
    examples: Path | None = None

    @property
    def train_labels(self) -> np.ndarray:
        """The labels of the training rows, see `TokenizedSplit.labels`."""
        return self.splits["train"].labels

    @property
    def longest(self) -> int:
        """Tokens of the longest example."""
        return int(max(split.widest.lengths.max() for split in self.splits.values()))

    @property
    def shortest(self) -> int:
        """Tokens of the shortest example."""
        return int(min(split.widest.lengths.min() for split in self.splits.values()))

    @property
    def largest_id(self) -> int:
        """The largest token id."""
        return max(split.widest.largest_id for split in self.splits.values())

    def facts(self) -> dict[str, Any]:
        """Counts for the report."""
        return {
            "rows": {name: len(split) for name, split in self.splits.items()},
            "truncated": {name: split.truncated for name, split in self.splits.items()},
            "losses": {name: asdict(losses) for name, losses in self.losses.items()},
            "unknown": {name: split.unknown for name, split in self.splits.items()},
            "duplicates": self.duplicates,
            "class_names": self.class_names,
            "fingerprint": self.fingerprint,
        }
