"""Rows of tables with named columns: CSV, TSV, JSON lines and Parquet, one by one."""

import csv
import json
import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import BufferedReader
from itertools import chain
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from lingo_ds.data.dna import letters_mistake
from lingo_ds.data.missing import is_missing
from lingo_ds.data.mistakes import raise_if_any
from lingo_ds.data.readers.content import foreign_format, read_head
from lingo_ds.data.readers.lines import read_lines, stem_of, suffix_of
from lingo_ds.utils.errors import Mistake, UserError, reason_of

DELIMITERS = {".csv": ",", ".tsv": "\t"}
JSON_LINES = (".jsonl", ".ndjson")
PARQUET = ".parquet"
TABLE_SUFFIXES = (*DELIMITERS, *JSON_LINES, PARQUET)

PARQUET_ROWS = 1024
"""Rows of a Parquet file decoded at a time."""

PARQUET_MAGIC = b"PAR1"
OTHER_DELIMITERS = ",;\t|"
SEP_LINE = re.compile(r"sep=(.|\\t)", re.IGNORECASE)
"""Excel's line before the header that says what separates the fields."""

DNA_CELL = re.compile("[ACGTUN]{8,}", re.IGNORECASE)
"""A cell that names no column, but is a sequence."""

ROW_NAMES = "row_names"
"""The name of the column that R writes without one."""

_NumberedRow = tuple[int, "list[str] | Mistake"]

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
    """The table in an open file: what its first bytes say it is, else what the ending of its name says.

    Raises:
        UserError: where its header cannot be read, or the file is of another format.
    """
    head, ending = read_head(raw), suffix_of(path)
    if raw.peek(4)[:4] == PARQUET_MAGIC or (ending == PARQUET and not foreign_format(head)):
        return ParquetTable(raw, path)
    lines = read_lines(raw, path)
    if head.lstrip()[:1] == b"[":
        fix = f"write one object a line: jq -c '.[]' {path.name} > {stem_of(path)}_lines.jsonl"
        raise UserError(Mistake(f"{path}:1", "[", "is one JSON array", fix))
    if ending in JSON_LINES or head.lstrip()[:1] == b"{":
        return JsonTable(lines, path)
    return DelimitedTable(lines, path, delimiter=DELIMITERS.get(ending, ","))


class DelimitedTable(Table):
    """A CSV or TSV file, also with ; or | between the fields, a line `sep=;`, or R's names of rows.

    Blank lines are passed over, and lines that begin with # unless they are a complete row; behind broken
    quotes nothing follows.
    """

    def __init__(self, lines: Iterator[str], path: Path, *, delimiter: str):
        """Reads the header; without the `delimiter` in it another one is looked for.

        Raises:
            UserError: where the header is none.
        """
        self._path = path
        lines, delimiter = _find_delimiter(lines, delimiter, path)
        self._reader = csv.reader(lines, delimiter=delimiter, strict=True)
        super().__init__(self._read_header(), f"{path}:1")
        self._numbered = self._with_row_names(self._numbered_rows())

    def _read_header(self) -> list[str]:
        try:
            for row in self._reader:
                if not _is_blank(row) and not row[0].startswith("#"):
                    return [name.strip() for name in row]
        except csv.Error as error:
            where = f"{self._path}:{self._reader.line_num}"
            raise UserError(Mistake(where, "header", str(error), "quote the field properly")) from None
        return []

    def _with_row_names(self, rows: Iterator[_NumberedRow]) -> Iterator[_NumberedRow]:
        """The rows; where R wrote names before them that its header has no column for, it gets one."""
        first = next(rows, None)
        if first is None:
            return iter(())
        _, row = first
        if not isinstance(row, Mistake) and len(row) == len(self.header) + 1:
            name, *cells = row
            if cells[-1].strip() and name[:1] != "#" and letters_mistake(name, ""):
                self.header = [ROW_NAMES, *self.header]
                logger.info("%s: rows begin with names that the header has no column for", self._path)
        return chain([first], rows)

    def _numbered_rows(self) -> Iterator[_NumberedRow]:
        """Each row that is not blank with the number of its first line; broken quotes end the file."""
        reader, begin = self._reader, self._reader.line_num + 1
        try:
            for row in reader:
                line, begin = begin, reader.line_num + 1
                if len(row) > 1 or not _is_blank(row):
                    yield line, row
        except csv.Error as error:
            where = f"{self._path}:{begin}"
            yield begin, Mistake(where, "row", str(error), "quote the field properly")

    def require_columns(self, settings: Mapping[str, str]) -> None:
        if not all(name in self.header for name in settings) and (mistake := self._no_header()):
            raise UserError(mistake)
        super().require_columns(settings)

    def _no_header(self) -> Mistake | None:
        """What the first line is instead of names of columns; None where it may hold names."""
        shown = ",".join(self.header)
        if any(map(DNA_CELL.fullmatch, self.header)):
            fix = "put a line of names before it, e.g. sequence,label"
            return Mistake(self.where, shown, "is data: the file has no header", fix)
        if len(self.header) == 1 and len(self.header[0].split()) > 1:
            return Mistake(
                self.where, shown, "has blanks between its names", "separate fields by commas or tabs"
            )
        return None

    def rows(self, columns: Sequence[str]) -> Iterator[TableRow]:
        chosen = _picker([self.header.index(name) for name in columns])
        width, comments, name = len(self.header), 0, str(self._path)
        for line, row in self._numbered:
            where = f"{name}:{line}"
            if isinstance(row, Mistake):
                yield TableRow(where, row)
            elif len(row) == width:
                yield TableRow(where, chosen(row))
            elif row[0].startswith("#"):
                comments += 1
            else:
                rule = f"the header has {width}"
                yield TableRow(where, Mistake(where, f"{len(row)} fields", rule, "complete the row"))
        if comments:
            logger.info("%s: %d lines that begin with # are comments", self._path, comments)


def _find_delimiter(lines: Iterator[str], usual: str, path: Path) -> tuple[Iterator[str], str]:
    """The lines of a file and what separates their fields: as usual, as a line `sep=;` or the header says."""
    taken, found = [], usual
    for line in lines:
        if says := SEP_LINE.fullmatch(line.rstrip("\r\n")):
            taken.append("\n")  # keeps the numbers of the lines behind it
            found = says[1].replace("\\t", "\t")
            break
        taken.append(line)
        if line.strip() and not line.startswith("#"):
            if usual not in line:
                found = max(OTHER_DELIMITERS, key=line.count) if set(OTHER_DELIMITERS) & set(line) else usual
            break
    if found != usual:
        logger.info("%s: %r separates the fields", path, found)
    return chain(taken, lines), found


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
