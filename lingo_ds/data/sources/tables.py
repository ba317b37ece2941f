"""Tables with named columns: CSV, TSV, JSON lines, Parquet."""

import json
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from lingo_ds.data.dna import raise_if_any
from lingo_ds.data.examples import NO_FIELDS, Example
from lingo_ds.data.readers.lines import lines_of, opened, suffix_of
from lingo_ds.data.readers.tables import DELIMITERS, DelimitedRows
from lingo_ds.data.sources.base import Found, Part, fingerprint_of, read_parts
from lingo_ds.utils.errors import Mistake, UserError, reason_of

JSON_LINES = (".jsonl", ".ndjson")
TABLE_SUFFIXES = (*DELIMITERS, *JSON_LINES, ".parquet")
PARQUET_ROWS = 1024
"""Rows of a Parquet file decoded at a time."""

Line = tuple[str, Sequence[Any] | Mistake]
"""Where a row stands, and its values by the table's columns."""


class Columns(NamedTuple):
    """Which columns of a table are read.

    Attributes:
        sequence: the DNA.
        labels: one or several.
        pair: the second sequence; None: `sequence2` beside `sequence1`, else none.
        fields: what the prompt reads.
        only_task: rows whose column `task` holds something else are passed over; None: all are read.
    """

    sequence: str
    labels: tuple[str, ...]
    pair: str | None
    only_task: str | None
    fields: tuple[str, ...] = ()

    def places(self, header: Sequence[str], where: str) -> "Places":
        """Where the columns stand in a header.

        Raises:
            UserError: for each that is not there, or there twice.
        """
        sequence, pair = self.sequence, self.pair
        if sequence not in header and pair is None and {"sequence1", "sequence2"} <= set(header):
            sequence, pair = "sequence1", "sequence2"
        wanted = {sequence: "data.sequence_column"} | dict.fromkeys(self.labels, "data.label_column")
        if pair is not None:
            wanted[pair] = "data.pair_column"
        if self.only_task is not None:
            wanted["task"] = "data.only_task"
        wanted = dict.fromkeys(self.fields, "data.prefix") | wanted
        mistakes = []
        for name, setting in wanted.items():
            if (count := header.count(name)) > 1:
                mistakes.append(Mistake(where, name, "names two columns", "rename one of them"))
            elif not count:
                rule, fix = f"has no column {name!r}", f"rename a column or set {setting}"
                mistakes.append(Mistake(where, ",".join(header), rule, fix))
        raise_if_any(mistakes, Path(where))
        return Places(
            header.index(sequence),
            tuple(map(header.index, self.labels)),
            None if pair is None else header.index(pair),
            None if self.only_task is None else header.index("task"),
            tuple(map(header.index, self.fields)),
        )


class Places(NamedTuple):
    """Numbers of the columns that are read; None where there is none."""

    sequence: int
    labels: tuple[int, ...]
    pair: int | None
    task: int | None
    fields: tuple[int, ...]


class TableSource:
    """Rows of tables, one file per split."""

    def __init__(self, parts: Sequence[Part], columns: Columns):
        self._parts, self._columns = parts, columns

    def fingerprint(self) -> str:
        return fingerprint_of(self._parts)

    def examples(self) -> Iterator[Found]:
        return read_parts(self._parts, self._read)

    def _read(self, part: Part) -> Iterator[Example | Mistake]:
        ending = suffix_of(part.path)
        if ending in DELIMITERS:
            return self._delimited(part.path, DELIMITERS[ending])
        return self._json_lines(part.path) if ending in JSON_LINES else self._parquet(part.path)

    def _delimited(self, path: Path, delimiter: str) -> Iterator[Example | Mistake]:
        rows = DelimitedRows(lines_of(path), path, delimiter=delimiter)
        places, name = self._columns.places(rows.header, f"{path}:1"), str(path)
        lines = ((f"{name}:{line}", row) for line, row in rows)
        return self._examples(lines, places)

    def _json_lines(self, path: Path) -> Iterator[Example | Mistake]:
        """The first object's names are the columns."""
        lines = ((f"{path}:{n}", line) for n, line in enumerate(lines_of(path), 1) if line.strip())
        where, first = next(lines, (f"{path}:1", "{}"))
        names = _json_object(first, where)
        raise_if_any([names] if isinstance(names, Mistake) else [], path)
        header = list(names)
        rows = ((where, _json_row(line, header, where)) for where, line in chain([(where, first)], lines))
        return self._examples(rows, self._columns.places(header, where))

    def _parquet(self, path: Path) -> Iterator[Example | Mistake]:
        with opened(path) as raw:
            try:
                file = pq.ParquetFile(raw)
                names = file.schema_arrow.names
                places = self._columns.places(names, str(path))
                read = (places.sequence, *places.labels, places.pair, places.task, *places.fields)
                wanted = list(dict.fromkeys(names[k] for k in read if k is not None))
                places = self._columns.places(wanted, str(path))
                yield from self._examples(_parquet_rows(file, wanted, path), places)
            except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
                rule = f"is no readable Parquet file ({reason_of(error)})"
                raise UserError(Mistake(str(path), "file", rule, "write it anew")) from None

    def _examples(self, lines: Iterator[Line], places: Places) -> Iterator[Example | Mistake]:
        sequence_at, labels_at, pair_at, task_at, fields_at = places
        named = list(zip(self._columns.fields, fields_at, strict=True))
        first, several, only_task = labels_at[0], len(labels_at) > 1, self._columns.only_task
        for where, row in lines:
            if isinstance(row, Mistake):
                yield row
                continue
            if task_at is not None and row[task_at] != only_task:
                continue
            sequence, label = row[sequence_at], row[first]
            if several:
                cells = tuple([row[k] for k in labels_at])
            else:
                cells = (label,) if type(label) is str else cells_of(label)
            pair = None if pair_at is None else text_of(row[pair_at])
            fields = {name: cell_text(row[k]) for name, k in named} if named else NO_FIELDS
            yield Example(sequence.strip() if type(sequence) is str else "", cells, where, pair, fields)


def cells_of(value: Any) -> tuple:
    """The cells of one label column: a list holds several."""
    if isinstance(value, list):
        return tuple(value)
    return (int(value),) if isinstance(value, bool) else (value,)


def cell_text(value: Any) -> str:
    """A cell as a prompt shows it."""
    return "" if value is None else str(value).strip()


def text_of(value: Any) -> str:
    """A sequence; what is none has no letter."""
    return value.strip() if isinstance(value, str) else ""


def _json_object(text: str, where: str) -> dict[str, Any] | Mistake:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if isinstance(value, dict):
        return value
    return Mistake(where, text.strip(), "is no JSON object", "write one object a line")


def _json_row(text: str, header: Sequence[str], where: str) -> list[Any] | Mistake:
    value = _json_object(text, where)
    return value if isinstance(value, Mistake) else [value.get(name) for name in header]


def _parquet_rows(file: pq.ParquetFile, wanted: list[str], path: Path) -> Iterator[Line]:
    number = 0
    for batch in file.iter_batches(PARQUET_ROWS, columns=wanted):
        columns = [batch.column(name).to_pylist() for name in wanted]
        for row in zip(*columns, strict=True):
            yield f"{path}, row {number}", row
            number += 1
