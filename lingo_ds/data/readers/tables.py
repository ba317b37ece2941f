"""Rows of tables with named columns: CSV, TSV, JSON lines and Parquet, one by one."""

import csv
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import BufferedReader
from itertools import chain
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from lingo_ds.data.missing import is_missing
from lingo_ds.data.mistakes import raise_if_any
from lingo_ds.data.readers.lines import read_lines, suffix_of
from lingo_ds.utils.errors import Mistake, UserError, reason_of

DELIMITERS = {".csv": ",", ".tsv": "\t"}
JSON_LINES = (".jsonl", ".ndjson")
PARQUET = ".parquet"
TABLE_SUFFIXES = (*DELIMITERS, *JSON_LINES, PARQUET)

PARQUET_ROWS = 1024
"""Rows of a Parquet file decoded at a time."""

csv.field_size_limit(1 << 31)  # one field may hold a chromosome
logger = logging.getLogger(__name__)


class TableRow(NamedTuple):
    """One row of a table.

    Attributes:
        where: its place, e.g. `train.csv:17` or `train.parquet, row 16`.
        cells: of the chosen columns in their order, or what is wrong with the row.
    """

    where: str
    cells: Sequence[Any] | Mistake


class Table:
    """A table whose header is read.

    Attributes:
        header: names of the columns; empty where the file is.
        where: the place of the header.
        total: rows of the table; None where the file does not say it.
    """

    def __init__(self, header: Sequence[str], where: str, *, total: int | None = None):
        self.header, self.where, self.total = header, where, total

    def rows(self, columns: Sequence[str]) -> Iterator[TableRow]:
        """The rows with the cells of these columns of the header; they can be read once.

        Raises:
            UserError: where nothing can be read further.
        """
        raise NotImplementedError

    def require_columns(self, settings: Mapping[str, str]) -> None:
        """Checks that the header has each of some columns once.

        Args:
            settings: by column, the advice that chooses another one, e.g. `set data.sequence_column`.

        Raises:
            UserError: for each column that is not there, or there twice.
        """
        mistakes = []
        for name, setting in settings.items():
            if (count := self.header.count(name)) != 1:
                rule = f"names two columns {name!r}" if count else f"has no column {name!r}"
                fix = f"rename a column or {setting}"
                mistakes.append(Mistake(self.where, ",".join(self.header), rule, fix))
        raise_if_any(mistakes)

    def require_text(self, column: str) -> None:
        """Checks that a column holds text, where the file says what it holds.

        Raises:
            UserError: where it holds something else.
        """

    def has_integers(self, column: str) -> bool:
        """Whether a column holds integers, as far as the file says it."""
        return False


def open_table(raw: BufferedReader, path: Path) -> Table:
    """The table in an open file, by the ending of its name, one of `TABLE_SUFFIXES`.

    Raises:
        UserError: where its header cannot be read.
    """
    ending = suffix_of(path)
    if ending == PARQUET:
        return ParquetTable(raw, path)
    lines = read_lines(raw, path)
    if ending in JSON_LINES:
        return JsonTable(lines, path)
    return DelimitedTable(lines, path, delimiter=DELIMITERS[ending])


class DelimitedTable(Table):
    """A CSV or TSV file.

    Blank lines are passed over, and lines that begin with # unless they are a complete row; behind broken
    quotes nothing follows.
    """

    def __init__(self, lines: Iterator[str], path: Path, *, delimiter: str):
        """Reads the header.

        Raises:
            UserError: where the header is none.
        """
        self._reader, self._path = csv.reader(lines, delimiter=delimiter, strict=True), path
        super().__init__(self._read_header(), f"{path}:1")

    def _read_header(self) -> list[str]:
        try:
            for row in self._reader:
                if not _is_blank(row) and not row[0].startswith("#"):
                    return [name.strip() for name in row]
        except csv.Error as error:
            where = f"{self._path}:{self._reader.line_num}"
            raise UserError(Mistake(where, "header", str(error), "quote the field properly")) from None
        return []

    def rows(self, columns: Sequence[str]) -> Iterator[TableRow]:
        chosen = _picker([self.header.index(name) for name in columns])
        name = str(self._path)
        for line, row in self._lines():
            yield TableRow(f"{name}:{line}", row if isinstance(row, Mistake) else chosen(row))

    def _lines(self) -> Iterator[tuple[int, list[str] | Mistake]]:
        reader, width, comments = self._reader, len(self.header), 0
        may_be_blank = width == 1
        begin = reader.line_num + 1
        try:
            for row in reader:
                line, begin = begin, reader.line_num + 1
                if len(row) == width and not (may_be_blank and _is_blank(row)):
                    yield line, row
                elif _is_blank(row):
                    continue
                elif row[0].startswith("#"):
                    comments += 1
                else:
                    rule = f"the header has {width}"
                    where = f"{self._path}:{line}"
                    yield line, Mistake(where, f"{len(row)} fields", rule, "complete the row")
        except csv.Error as error:
            where = f"{self._path}:{begin}"
            yield begin, Mistake(where, "row", str(error), "quote the field properly")
        if comments:
            logger.info("%s: %d lines that begin with # are comments", self._path, comments)


class JsonTable(Table):
    """A file of JSON objects, one a line; the names in the first one are the columns."""

    def __init__(self, lines: Iterator[str], path: Path):
        """Reads the first object.

        Raises:
            UserError: where it is none.
        """
        self._lines = ((f"{path}:{n}", line) for n, line in enumerate(lines, 1) if line.strip())
        self._first = next(self._lines, (f"{path}:1", "{}"))
        where, text = self._first
        names = _json_object(text, where)
        if isinstance(names, Mistake):
            raise UserError(names)
        super().__init__(list(names), where)

    def rows(self, columns: Sequence[str]) -> Iterator[TableRow]:
        for where, text in chain([self._first], self._lines):
            value = _json_object(text, where)
            if not isinstance(value, Mistake):
                yield TableRow(where, [value.get(name) for name in columns])
            else:
                yield TableRow(where, value)


class ParquetTable(Table):
    """A Parquet file, of which only the chosen columns are decoded."""

    def __init__(self, raw: BufferedReader, path: Path):
        """Reads the file's schema.

        Raises:
            UserError: where it is no Parquet file.
        """
        self._path = path
        with self._errors_named():
            self._file = pq.ParquetFile(raw)
            self._schema = self._file.schema_arrow
            super().__init__(self._schema.names, str(path), total=self._file.metadata.num_rows)

    def rows(self, columns: Sequence[str]) -> Iterator[TableRow]:
        number, decoded = 0, list(dict.fromkeys(columns))
        with self._errors_named():
            for batch in self._file.iter_batches(PARQUET_ROWS, columns=decoded):
                values = [batch.column(name).to_pylist() for name in columns]
                for cells in zip(*values, strict=True):
                    yield TableRow(f"{self._path}, row {number}", cells)
                    number += 1

    def require_text(self, column: str) -> None:
        found = self._schema.field(column).type
        inner = found.value_type if pa.types.is_dictionary(found) else found
        if inner not in (pa.string(), pa.large_string(), pa.string_view()):
            where = f"{self._path}: {column}"
            raise UserError(Mistake(where, found, "is no text", "give a column of strings"))

    def has_integers(self, column: str) -> bool:
        return pa.types.is_integer(self._schema.field(column).type)

    @contextmanager
    def _errors_named(self) -> Iterator[None]:
        try:
            yield
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            rule = f"is no readable Parquet file ({reason_of(error)})"
            raise UserError(Mistake(str(self._path), "file", rule, "write it again")) from None


def text_of(value: Any) -> str:
    """A cell as text, without spaces around it; one that is missing has none."""
    return "" if not isinstance(value, str) and is_missing(value) else str(value).strip()


def _picker(places: Sequence[int]) -> Callable[[list[str]], Sequence[str]]:
    """A function that takes the cells at some places from a row."""
    if len(places) > 1:
        return itemgetter(*places)
    (place,) = places
    return lambda row: (row[place],)


def _is_blank(row: list[str]) -> bool:
    return len(row) <= 1 and not "".join(row).strip()


def _json_object(text: str, where: str) -> dict[str, Any] | Mistake:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if isinstance(value, dict):
        return value
    return Mistake(where, text.strip(), "is no JSON object", "write one object a line")
