"""Tables whose fields a character separates: CSV, TSV and what spreadsheets and R write for them."""

import csv
import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from operator import itemgetter
from pathlib import Path
from typing import NamedTuple

from lingo_ds.data.readers.table import Table, TableRow
from lingo_ds.utils.errors import Mistake, UserError

OTHER_DELIMITERS = ",;\t|"
QUOTED = re.compile(r'"[^"]*"')
SEP_LINE = re.compile(r'"?sep=(.|\\t)"?', re.IGNORECASE)
"""Excel's line before the header that says what separates the fields."""

DNA_CELL = re.compile("[ACGTUN]{8,}", re.IGNORECASE)
"""A cell that names no column, but is a sequence."""

ROW_NAMES = "row_names"
"""The name of the column that R writes without one."""

_NumberedRow = tuple[int, "list[str] | Mistake"]

csv.field_size_limit(1 << 31)  # one field may hold a chromosome
logger = logging.getLogger(__name__)


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
        head, lines = _read_head(lines, delimiter, path)
        self._reader = csv.reader(lines, delimiter=head.delimiter, strict=True, skipinitialspace=True)
        self._has_line_breaks = head.delimiter != "\t"
        self._pushed: list[_NumberedRow] = []
        super().__init__(self._read_header(head.line), f"{path}:1")
        self._numbered = self._with_row_names(self._numbered_rows(), quoted=head.line.startswith('"'))

    def _read_header(self, line: str) -> list[str]:
        """The names of the columns; `line` is what they are read from."""
        comment: list[str] = []
        try:
            for row in self._reader:
                if _is_blank(row):
                    continue
                if row[0].startswith("#"):
                    comment = [row[0].lstrip("# "), *row[1:]]
                    continue
                if len(comment) == len(row) and any(map(DNA_CELL.fullmatch, row)):
                    self._pushed = [(self._reader.line_num, row)]
                    row = comment
                return [name.strip() for name in row]
        except csv.Error as error:
            rule, fix = str(error), "quote the field properly"
            if '" "' in line:
                rule, fix = "has blanks between its fields", "separate them by commas: R's write.csv does"
            where = f"{self._path}:{self._reader.line_num}"
            raise UserError(Mistake(where, line.strip(), rule, fix)) from None
        return []

    def _with_row_names(self, rows: Iterator[_NumberedRow], *, quoted: bool) -> Iterator[_NumberedRow]:
        """The rows; where R wrote numbers before them that its header has no column for, it gets one.

        R quotes its header. Without that, a field too many may be a comma inside of any other field.
        """
        first = next(rows, None)
        if first is None:
            return iter(())
        _, row = first
        if quoted and not isinstance(row, Mistake) and len(row) == len(self.header) + 1 and row[0] == "1":
            self.header = [ROW_NAMES, *self.header]
            logger.info("%s: rows begin with numbers that the header has no column for", self._path)
        return chain([first], rows)

    def _numbered_rows(self) -> Iterator[_NumberedRow]:
        """Each row that is not blank with the number of its first line; broken quotes end the file."""
        reader, begin = self._reader, self._reader.line_num + 1
        yield from self._pushed
        try:
            for row in reader:
                line, begin = begin, reader.line_num + 1
                if begin - line > 1 and not self._has_line_breaks:
                    where, rule = (
                        f"{self._path}:{line}",
                        "has a field that begins with a quote and ends in another",
                    )
                    shown = f"{begin - line} lines"
                    yield line, Mistake(where, shown, rule, "remove the quotes, or double them")
                elif len(row) > 1 or not _is_blank(row):
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
        width, comments, name, marked = len(self.header), 0, str(self._path), False
        for line, row in self._numbered:
            where = f"{name}:{line}"
            if isinstance(row, Mistake):
                yield TableRow(where, row)
            elif len(row) == width:
                marked = marked or row[0].startswith("#")
                yield TableRow(where, chosen(row))
            elif row[0].startswith("#") and not (marked and len(row) > 1):
                comments += 1
            else:
                rule = f"the header has {width}"
                yield TableRow(where, Mistake(where, f"{len(row)} fields", rule, "complete the row"))
        if comments:
            logger.info("%s: %d lines that begin with # are comments", self._path, comments)


class _Head(NamedTuple):
    """The line that a header is read from, and what separates its fields."""

    line: str
    delimiter: str


def _read_head(lines: Iterator[str], usual: str, path: Path) -> tuple[_Head, Iterator[str]]:
    """The head of a file, and all of its lines; fields are separated as usual, or as the header says."""
    taken, says, header = [], None, ""
    for line in lines:
        if found := SEP_LINE.fullmatch(line.rstrip("\r\n")):
            taken.append("\n")  # keeps the numbers of the lines behind it
            says = found[1].replace("\\t", "\t")
            continue
        taken.append(line)
        if line.strip() and not line.startswith("#"):
            header = line
            break
    delimiter = says or _delimiter_of(header, usual)
    if delimiter != usual:
        logger.info("%s: %r separates the fields", path, delimiter)
    return _Head(header, delimiter), chain(taken, lines)


def _delimiter_of(header: str, usual: str) -> str:
    """The character that separates the fields of a header: the usual one, else the most frequent other."""
    plain = QUOTED.sub("", header)
    if usual in plain or not set(OTHER_DELIMITERS) & set(plain):
        return usual
    return max(OTHER_DELIMITERS, key=plain.count)


def _picker(places: Sequence[int]) -> Callable[[list[str]], Sequence[str]]:
    """A function that takes the cells at some places from a row."""
    if len(places) > 1:
        return itemgetter(*places)
    (place,) = places
    return lambda row: (row[place],)


def _is_blank(row: list[str]) -> bool:
    return len(row) <= 1 and not "".join(row).strip()
