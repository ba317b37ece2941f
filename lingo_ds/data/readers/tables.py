"""Records of text files, one by one: rows of CSV and TSV, entries of FASTA."""

import csv
import logging
from collections.abc import Iterator
from pathlib import Path

from lingo_ds.utils.errors import Mistake, UserError

DELIMITERS = {".csv": ",", ".tsv": "\t"}

csv.field_size_limit(1 << 31)  # a chromosome may stand in one field
logger = logging.getLogger(__name__)


class DelimitedRows:
    """Rows below the header of a CSV or TSV, as an iterator of (line, fields).

    Blank lines are passed over, and lines that begin with # unless they are a complete row. Where a row is
    not right, a `Mistake` stands in the place of its fields; behind broken quotes nothing follows.

    Attributes:
        header: names of the columns; empty where the file is.
    """

    def __init__(self, lines: Iterator[str], path: Path, *, delimiter: str):
        """Takes the file's lines and reads the header.

        Raises:
            UserError: where the header is none.
        """
        self._reader, self._path = csv.reader(lines, delimiter=delimiter, strict=True), path
        self.header: list[str] = []
        try:
            for row in self._reader:
                if not _is_blank(row) and not row[0].startswith("#"):
                    self.header = [name.strip() for name in row]
                    break
        except csv.Error as error:
            raise UserError(
                Mistake(f"{path}:{self._reader.line_num}", "header", str(error), "quote the field properly")
            ) from None

    def __iter__(self) -> Iterator[tuple[int, list[str] | Mistake]]:
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


def _is_blank(row: list[str]) -> bool:
    return len(row) <= 1 and not "".join(row).strip()
