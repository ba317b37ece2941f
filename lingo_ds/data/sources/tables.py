"""Labelled tables: CSV, TSV, JSON lines, Parquet, and whatever else has rows and named columns."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from lingo_ds.data.examples import NO_FIELDS, Example
from lingo_ds.data.readers.lines import opened
from lingo_ds.data.readers.tables import Table, open_table, text_of
from lingo_ds.data.sources.base import Found, Part, fingerprint_of, read_parts
from lingo_ds.utils.errors import Mistake


class Columns(NamedTuple):
    """Which columns of a table are read.

    Attributes:
        sequence: the DNA.
        labels: one or several.
        pair: the second sequence; None: `sequence2` beside `sequence1`, else none.
        only_task: rows whose column `task` holds something else are passed over; None: all are read.
        fields: what the prompt reads.
    """

    sequence: str
    labels: tuple[str, ...]
    pair: str | None
    only_task: str | None
    fields: tuple[str, ...] = ()

    def found_in(self, table: Table) -> "Columns":
        """The columns as the table names them.

        Raises:
            UserError: for each that is not there, or there twice.
        """
        found = self
        pair_names = {"sequence1", "sequence2"}
        if self.sequence not in table.header and self.pair is None and pair_names <= set(table.header):
            found = self._replace(sequence="sequence1", pair="sequence2")
        settings = dict.fromkeys(self.fields, "set data.prefix")
        settings |= {found.sequence: "set data.sequence_column"}
        settings |= dict.fromkeys(self.labels, "set data.label_column")
        if found.pair is not None:
            settings[found.pair] = "set data.pair_column"
        if self.only_task is not None:
            settings["task"] = "set data.only_task"
        table.require_columns(settings)
        return found

    @property
    def names(self) -> list[str]:
        """All of them: sequence, labels, fields, then pair and task where these are read."""
        names = [self.sequence, *self.labels, *self.fields]
        if self.pair is not None:
            names.append(self.pair)
        if self.only_task is not None:
            names.append("task")
        return names


class TableSource:
    """Rows of tables, one file per split."""

    def __init__(self, parts: Sequence[Part], columns: Columns):
        self._parts, self._columns = parts, columns

    def fingerprint(self) -> str:
        return fingerprint_of(self._parts)

    def examples(self) -> Iterator[Found]:
        return read_parts(self._parts, self._read)

    def _read(self, part: Part) -> Iterator[Example | Mistake]:
        with opened(part.path) as raw:
            yield from table_examples(open_table(raw, part.path), self._columns)


def table_examples(table: Table, columns: Columns) -> Iterator[Example | Mistake]:
    """The rows of a table as examples.

    Raises:
        UserError: for columns that the table lacks, and where nothing can be read further.
    """
    columns = columns.found_in(table)
    labels_end = 1 + len(columns.labels)
    fields_end = labels_end + len(columns.fields)
    has_pair, only_task = columns.pair is not None, columns.only_task
    for where, cells in table.rows(columns.names):
        if isinstance(cells, Mistake):
            yield cells
            continue
        if only_task is not None and cells[-1] != only_task:
            continue
        labels = cells_of(cells[1]) if labels_end == 2 else tuple(cells[1:labels_end])
        fields = NO_FIELDS
        if columns.fields:
            values = map(text_of, cells[labels_end:fields_end])
            fields = dict(zip(columns.fields, values, strict=True))
        pair = text_of(cells[fields_end]) if has_pair else None
        yield Example(text_of(cells[0]), labels, where, pair, fields)


def cells_of(value: Any) -> tuple[Any, ...]:
    """The cells of one label column: a list holds several."""
    if isinstance(value, list):
        return tuple(value)
    return (int(value),) if isinstance(value, bool) else (value,)
