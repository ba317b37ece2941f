"""Tables by the kind of their file: CSV, TSV, JSON lines and Parquet, row by row."""

import json
import logging
from codecs import BOM_UTF8
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BufferedReader
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from lingo_ds.data.readers.content import foreign_format, packing_of, read_head
from lingo_ds.data.readers.delimited import DelimitedTable
from lingo_ds.data.readers.lines import read_lines, stem_of, suffix_of
from lingo_ds.data.readers.table import Table, TableRow
from lingo_ds.utils.errors import Mistake, UserError, reason_of

DELIMITERS = {".csv": ",", ".tsv": "\t"}
JSON_LINES = (".jsonl", ".ndjson")
PARQUET = ".parquet"
TABLE_SUFFIXES = (*DELIMITERS, *JSON_LINES, PARQUET)

PARQUET_ROWS = 1024
"""Rows of a Parquet file decoded at a time."""

PARQUET_MAGIC = b"PAR1"

logger = logging.getLogger(__name__)


def open_table(raw: BufferedReader, path: Path) -> Table:
    """The table in an open file: what its first bytes say it is, else what the ending of its name says.

    Raises:
        UserError: where its header cannot be read, or the file is of another format.
    """
    head, ending = read_head(raw), suffix_of(path)
    if head.startswith(PARQUET_MAGIC) and packing_of(raw.peek(16)) != "none":
        rule = "is a Parquet file packed by gzip, which is not read"
        raise UserError(Mistake(str(path), path.name, rule, f"unpack it: gunzip {path.name}"))
    if raw.peek(4)[:4] == PARQUET_MAGIC or (ending == PARQUET and not foreign_format(head)):
        return ParquetTable(raw, path)
    lines, begin = read_lines(raw, path), head.removeprefix(BOM_UTF8).lstrip()[:1]
    if begin == b"[":
        fix = f"write one object a line: jq -c '.[]' {path.name} > {stem_of(path)}_lines.jsonl"
        raise UserError(Mistake(f"{path}:1", "[", "is one JSON array", fix))
    if ending in JSON_LINES or begin == b"{":
        return JsonTable(lines, path)
    return DelimitedTable(lines, path, delimiter=DELIMITERS.get(ending, ","))


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
        if names and all(isinstance(value, dict) for value in names.values()):
            rule = "holds whole columns in one object"
            fix = "write one object a line: in pandas, df.to_json(.., orient='records', lines=True)"
            raise UserError(Mistake(where, text.strip(), rule, fix))
        super().__init__(list(names), where)

    def rows(self, columns: Sequence[str]) -> Iterator[TableRow]:
        known, unread = set(self.header), None
        for where, text in chain([self._first], self._lines):
            value = _json_object(text, where)
            if isinstance(value, Mistake):
                yield TableRow(where, value)
                continue
            if unread is None and not value.keys() <= known:
                unread = sorted(value.keys() - known)
                logger.warning(
                    "%s: names that the first object lacks are not read: %s", where, ", ".join(unread)
                )
            yield TableRow(where, [value.get(name) for name in columns])


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
        found = self._schema.field(column).type
        return pa.types.is_integer(found) and found != pa.uint64()

    @contextmanager
    def _errors_named(self) -> Iterator[None]:
        try:
            yield
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            rule = f"is no readable Parquet file ({reason_of(error)})"
            raise UserError(Mistake(str(self._path), "file", rule, "write it again")) from None


def _json_object(text: str, where: str) -> dict[str, Any] | Mistake:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if "\\u" in text and not _is_whole_text(value):
        return Mistake(where, text.strip(), "holds half of a character (a surrogate)", "write it as UTF-8")
    if isinstance(value, dict):
        return value
    return Mistake(where, text.strip(), "is no JSON object", "write one object a line")


def _is_whole_text(value: Any) -> bool:
    """Whether all texts of a JSON value can be written: an escape may stand for half of a character."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True
