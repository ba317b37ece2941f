"""Tables whose fields a character separates: CSV, TSV and what spreadsheets and R write for them."""

import csv
import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from operator import itemgetter
from pathlib import Path

from lingo_ds.data.dna import letters_mistake
from lingo_ds.data.readers.table import Table, TableRow
from lingo_ds.utils.errors import Mistake, UserError

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


def _picker(places: Sequence[int]) -> Callable[[list[str]], Sequence[str]]:
    """A function that takes the cells at some places from a row."""
    if len(places) > 1:
        return itemgetter(*places)
    (place,) = places
    return lambda row: (row[place],)


def _is_blank(row: list[str]) -> bool:
    return len(row) <= 1 and not "".join(row).strip()
