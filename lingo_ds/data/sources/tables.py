"""Labelled tables: CSV, TSV, JSON lines, Parquet, and whatever else has rows and named columns."""

import fnmatch
import logging
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from lingo_ds.config.fields import is_pattern
from lingo_ds.data.examples import NO_FIELDS, Example
from lingo_ds.data.mistakes import file_of
from lingo_ds.data.readers.delimited import ROW_NAMES
from lingo_ds.data.readers.lines import opened
from lingo_ds.data.readers.table import Table, text_of
from lingo_ds.data.readers.tables import open_table
from lingo_ds.data.sources.base import SPLIT_NAMES, Found, Part, TaskFilter, fingerprint_of, read_parts
from lingo_ds.utils.errors import Mistake, UserError

logger = logging.getLogger(__name__)


TASK_COLUMN = "task"
SPLIT_COLUMN = "split"
"""Columns of a table that name each row's task, and of a single table also its split."""

NO_LABELS = ("id", TASK_COLUMN, SPLIT_COLUMN, ROW_NAMES, "", "Unnamed: 0", "__index_level_0__")
"""Columns that are no labels unless they are named; the last three are numbers of rows, by pandas."""


class Columns(NamedTuple):
    """Which columns of a table are read.

    Attributes:
        sequence: the DNA.
        labels: one or several, also patterns like `osa_*`; None: `label`, or where there is none all columns
            that are not read as something else.
        pair: the second sequence; None: `sequence2` beside `sequence1`, else none.
        only_task: rows whose column `task` holds something else are passed over; None: all are read.
        fields: what the prompt reads.
    """

    sequence: str
    labels: tuple[str, ...] | None
    pair: str | None
    only_task: str | None
    fields: tuple[str, ...] = ()

    @property
    def open_ended(self) -> bool:
        """Whether the header decides how many labels there are."""
        return self.labels is None or any(map(is_pattern, self.labels))

    def found_in(self, table: Table) -> "Columns":
        """The columns as the table names them, each label by its name.

        Raises:
            UserError: for each that is not there, or there twice.
        """
        found = self
        pair_names = {"sequence1", "sequence2"}
        if self.sequence not in table.header and self.pair is None and pair_names <= set(table.header):
            found = self._replace(sequence="sequence1", pair="sequence2")
        labels = found._labels_in(table)
        settings = dict.fromkeys(self.fields, "set data.prefix")
        settings |= {found.sequence: "set data.sequence_column"}
        settings |= dict.fromkeys(labels, "set data.label_column")
        if found.pair is not None:
            settings[found.pair] = "set data.pair_column"
        if self.only_task is not None:
            settings[TASK_COLUMN] = "set data.only_task"
        table.require_columns(settings)
        return found._replace(labels=labels)

    def _labels_in(self, table: Table) -> tuple[str, ...]:
        used = {self.sequence, self.pair, *self.fields, *NO_LABELS}
        others = tuple(name for name in table.header if name not in used)
        if self.labels is None:
            return others if others and "label" not in others else ("label",)
        names: list[str] = []
        for name in self.labels:
            matching = [name]
            if name not in table.header and is_pattern(name):
                matching = fnmatch.filter(others, name)
            if not matching:
                rule, shown = f"has no column like {name!r}", ",".join(table.header)
                raise UserError(Mistake(table.where, shown, rule, "set data.label_column"))
            names += matching
        return tuple(dict.fromkeys(names))

    def names(self, *, split: bool) -> list[str]:
        """All of them: sequence, labels, fields, then pair, task and split where these are read."""
        assert self.labels is not None, "columns that were found in a table"
        names = [self.sequence, *self.labels, *self.fields]
        if self.pair is not None:
            names.append(self.pair)
        if self.only_task is not None:
            names.append(TASK_COLUMN)
        return [*names, SPLIT_COLUMN] if split else names


class TableSource:
    """Rows of tables, one file per split, or one file whose column `split` may name the split of each row."""

    def __init__(self, parts: Sequence[Part], columns: Columns):
        """Takes the files and their columns; open-ended ones are looked up in the first file.

        Raises:
            UserError: where its header cannot be read, or lacks a column.
        """
        if columns.open_ended:
            with opened(parts[0].path) as raw:
                columns = columns.found_in(open_table(raw, parts[0].path))
        self._parts, self._columns = parts, columns
        self.label_columns = columns.labels or ()

    def fingerprint(self) -> str:
        return fingerprint_of(self._parts)

    def examples(self) -> Iterator[Found]:
        return read_parts(self._parts, self._read)

    def _read(self, part: Part) -> Iterator[Example | Mistake]:
        with opened(part.path) as raw:
            table = open_table(raw, part.path)
            yield from table_examples(table, self._columns, names_splits=len(self._parts) == 1)


def table_examples(table: Table, columns: Columns, *, names_splits: bool) -> Iterator[Example | Mistake]:
    """The rows of a table as examples.

    Args:
        table: whose header is read.
        columns: which are read.
        names_splits: whether a column `split` says the split of each row.

    Raises:
        UserError: for columns that the table lacks, and where nothing can be read further.
    """
    columns = columns.found_in(table)
    assert columns.labels is not None
    has_split = SPLIT_COLUMN in table.header and SPLIT_COLUMN not in (*columns.labels, *columns.fields)
    if has_split and not names_splits:
        logger.warning("%s: its column 'split' is not read, since files name the splits", table.where)
    has_split = has_split and names_splits
    labels_end = 1 + len(columns.labels)
    fields_end = labels_end + len(columns.fields)
    table.require_text(columns.sequence)
    tasks = TaskFilter(columns.only_task)
    task_place = None if columns.only_task is None else fields_end + (columns.pair is not None)
    for where, cells in table.rows(columns.names(split=has_split)):
        if isinstance(cells, Mistake):
            yield cells
            continue
        if task_place is not None and not tasks.reads(text_of(cells[task_place])):
            continue
        labels = cells_of(cells[1]) if labels_end == 2 else tuple(cells[1:labels_end])
        fields = NO_FIELDS
        if columns.fields:
            values = map(text_of, cells[labels_end:fields_end])
            fields = dict(zip(columns.fields, values, strict=True))
        pair = None if columns.pair is None else text_of(cells[fields_end])
        example = Example(text_of(cells[0]), labels, where, pair, fields)
        yield _in_split(example, text_of(cells[-1])) if has_split else example
    yield from tasks.mistakes(file_of(table.where))


def _in_split(example: Example, name: str) -> Example | Mistake:
    if (split := SPLIT_NAMES.get(name.lower())) is None:
        fix = "write train, dev or test, or rename the column 'split'"
        return Mistake(example.where, name, "is no split", fix)
    return example._replace(split=split)


def cells_of(value: Any) -> tuple[Any, ...]:
    """The cells of one label column: a list holds several."""
    if isinstance(value, list):
        return tuple(value)
    return (int(value),) if isinstance(value, bool) else (value,)
