"""What is known of a sequence once it was explained, and how it lies in a table."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lingo_ds.data.one_hot import BASES


class Explained(NamedTuple):
    """A sequence with what its bases do.

    Attributes:
        id: of the sequence.
        sequence: upper-case DNA.
        effects: (length, 4) float32, by saturation mutagenesis the change of the target's score where the
            position has A, C, G or T instead, 0 for its own base; by gradients (length, 1), attributions.
    """

    id: str | int
    sequence: str
    effects: np.ndarray

    @property
    def attributions(self) -> np.ndarray:
        """(length,) what each base adds: of mutagenesis minus the mean effect of the other bases."""
        if self.effects.shape[1] == 1:
            return self.effects[:, 0]
        return -self.effects.sum(1) / self.others

    @property
    def others(self) -> np.ndarray:
        """(length,) how many bases each position was changed to: 3, or 4 where its own is not known."""
        return np.array([3 if letter in "ACGTU" else 4 for letter in self.sequence])


class ExplainedBatch(NamedTuple):
    """Sequences that were finished together.

    Attributes:
        found: the sequences; there may be none yet.
        read: share of the file that was read so far, 0 to 1.
        truncated: sequences that were longer than the adapter reads, changed ones included.
    """

    found: list[Explained]
    read: float
    truncated: int = 0


def table_schema(method: str, *, numbered: bool, facts: dict[str, Any]) -> pa.Schema:
    """The columns of the table of a method; `facts` of the job go with it."""
    columns = [
        ("id", pa.int64() if numbered else pa.string()),
        ("sequence", pa.int64()),
        ("position", pa.int64()),
        ("reference", pa.string()),
    ]
    values = [("attribution", pa.float32())]
    if method == "ism":
        values = [("base", pa.string()), ("effect", pa.float32())]
    return pa.schema([*columns, *values], metadata={b"lingo_ds": _as_bytes(facts)})


def is_of_job(path: Path, facts: dict[str, Any]) -> bool:
    """Whether a table at the path holds what a job of these facts writes."""
    try:
        metadata = pq.read_schema(path).metadata or {}
    except (OSError, pa.ArrowException):
        return False
    return bool(metadata.get(b"lingo_ds") == _as_bytes(facts))


def to_table(found: Sequence[Explained], schema: pa.Schema, *, first: int) -> pa.Table:
    """The rows of sequences, of which the first has the number `first` in the file."""
    parts = []
    for number, one in enumerate(found, first):
        length, columns = one.effects.shape
        rows = np.arange(length).repeat(columns)
        values: list[Any] = [[one.id] * len(rows), np.full(len(rows), number), rows]
        values.append(np.array(list(one.sequence))[rows])
        if columns == 4:
            values.append(np.tile(list(BASES), length))
        arrays = zip([*values, one.effects.ravel()], schema, strict=True)
        parts.append(pa.Table.from_arrays([pa.array(a, f.type) for a, f in arrays], schema=schema))
    return pa.concat_tables(parts) if parts else schema.empty_table()


def read_explained(path: Path) -> Iterator[Explained]:
    """The sequences of a table in their order, one after the other."""
    with pq.ParquetFile(path) as file:
        waiting = file.schema_arrow.empty_table()
        for group in range(file.num_row_groups):
            waiting = pa.concat_tables([waiting, file.read_row_group(group)])
            numbers = waiting["sequence"].to_numpy()
            begin = 0
            for end in (np.flatnonzero(np.diff(numbers)) + 1).tolist():
                yield _from_rows(waiting.slice(begin, end - begin))
                begin = end
            waiting = waiting.slice(begin)
    if len(waiting):
        yield _from_rows(waiting)


def _from_rows(rows: pa.Table) -> Explained:
    width = 4 if "base" in rows.column_names else 1
    letters = rows["reference"].to_pylist()[::width]
    effects = rows.columns[-1].to_numpy().reshape(-1, width)
    return Explained(rows["id"][0].as_py(), "".join(letters), effects)


def _as_bytes(facts: dict[str, Any]) -> bytes:
    return json.dumps(facts, sort_keys=True, default=list).encode()
