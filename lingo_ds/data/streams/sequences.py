"""Sequences without labels, read as a stream from tables (CSV, TSV, JSON lines, Parquet) and FASTA."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from io import BufferedReader
from pathlib import Path
from typing import Any, NamedTuple

from lingo_ds.data.dna import sequence_mistake
from lingo_ds.data.mistakes import MistakeLog
from lingo_ds.data.readers.fasta import fasta_entries
from lingo_ds.data.readers.formats import format_of
from lingo_ds.data.readers.lines import read_lines, suffix_of
from lingo_ds.data.readers.table import Table, text_of
from lingo_ds.data.readers.tables import DELIMITERS, open_table
from lingo_ds.data.streams.doubled_ids import DoubledIds
from lingo_ds.data.streams.skipped import Skipped
from lingo_ds.utils.errors import Mistake, UserError
from lingo_ds.utils.safe_read import require_regular


class SequenceRow(NamedTuple):
    """One sequence of a file, and the mistake in it; None: there is none."""

    id: str | int
    sequence: str
    mistake: Mistake | None


class Chunk(NamedTuple):
    """Neighbouring sequences of a file.

    Attributes:
        begin: place of the first sequence in the file, counted from 0.
        ids: of the sequences.
        sequences: upper-case DNA.
        read: share of the file that was read so far, 0 to 1.
    """

    begin: int
    ids: Sequence[str | int]
    sequences: list[str]
    read: float

    @property
    def size(self) -> int:
        """Rows of the output that the chunk makes."""
        return len(self.ids)


class Records:
    """A file of sequences; its header is checked at once, its rows are read by `chunks`.

    Attributes:
        numbered: whether ids are integers: the file's own or, where it has none, rows counted from 0.
        skipped: stays empty, since every row is predicted or a mistake.
        doubled: ids that the last call of `chunks` saw more than once so far.
    """

    skipped = Skipped(strict=True)

    def __init__(self, path: Path, *, sequence_column: str = "sequence", id_column: str | None = None):
        """Takes the file and, for all but FASTA, its columns; `id_column` None: `id` where there is one.

        Raises:
            UserError: where the file cannot be read, or a column is missing.
        """
        require_readable(path, fix="give a file of sequences")
        self._path, self._is_fasta = path, format_of(path) == "fasta"
        self._sequence_column, self._id_column = sequence_column, id_column
        self.numbered, self.doubled = False, DoubledIds()
        self._total: int | None = None
        if not self._is_fasta:
            with path.open("rb") as raw:
                self._check_columns(open_table(raw, path))

    def fingerprint(self) -> dict[str, Any]:
        """Facts that change with the file or with how it is read."""
        columns = {"sequence_column": self._sequence_column, "id_column": self._id_column}
        return file_facts(self._path) | columns

    def chunks(self, *, skip: int = 0, most: int, most_bases: int) -> Iterator[Chunk]:
        """All sequences after the first `skip`, in chunks that end with `most` or by `most_bases` bases.

        Raises:
            UserError: with all mistakes of the file, before the chunk that the first of them is in.
        """
        self.doubled = DoubledIds()
        has_ids = self._is_fasta or self._id_column is not None
        return in_chunks(
            self._path,
            self._rows,
            skip=skip,
            most=most,
            most_bases=most_bases,
            total=self._total,
            ids=self.doubled if has_ids else None,
        )

    def _check_columns(self, table: Table) -> None:
        """Checks the columns, and reads the type of the ids and the number of rows from the table."""
        if self._id_column is None and "id" in table.header:
            self._id_column = "id"
        options = {self._sequence_column: "give --sequence-column"}
        if self._id_column is not None:
            options |= {self._id_column: "give --id-column"}
        table.require_columns(options)
        table.require_text(self._sequence_column)
        self.numbered = self._id_column is None or table.has_integers(self._id_column)
        self._total = table.total

    def _rows(self, raw: BufferedReader) -> Iterator[SequenceRow]:
        return self._fasta_rows(raw) if self._is_fasta else self._table_rows(raw)

    def _fasta_rows(self, raw: BufferedReader) -> Iterator[SequenceRow]:
        """The entries of a FASTA file; the id is the header's first word."""
        for entry in fasta_entries(read_lines(raw, self._path), self._path):
            name, *_ = [*entry.header.split(maxsplit=1), ""]
            yield SequenceRow(name, entry.sequence, entry.mistake)

    def _table_rows(self, raw: BufferedReader) -> Iterator[SequenceRow]:
        columns = [self._sequence_column] + ([] if self._id_column is None else [self._id_column])
        as_text = str.strip if suffix_of(self._path) in DELIMITERS else str
        for number, (where, cells) in enumerate(open_table(raw, self._path).rows(columns)):
            if isinstance(cells, Mistake):
                yield SequenceRow("", "", cells)
                continue
            sequence = text_of(cells[0])
            name: Any = number if len(cells) == 1 else cells[1]
            mistake = sequence_mistake(sequence, where)
            if name is None:
                fix = "fill it, or give another --id-column"
                mistake = mistake or Mistake(where, "null", "is no id", fix)
            yield SequenceRow(name if self.numbered else as_text(name), sequence, mistake)


def in_chunks(
    path: Path,
    rows: Callable[[BufferedReader], Iterable[SequenceRow]],
    *,
    skip: int,
    most: int,
    most_bases: int,
    total: int | None = None,
    ids: DoubledIds | None = None,
) -> Iterator[Chunk]:
    """All rows of a file after the first `skip`, in chunks; errors are those of `Records.chunks`.

    Args:
        path: the file.
        rows: gives the rows of the opened file.
        skip, most, most_bases: as for `Records.chunks`.
        total: rows of the file, where it says so.
        ids: counts the rows' ids; None: rows have none of their own.
    """
    names, sequences, bases, begin, size = [], [], 0, skip, path.stat().st_size
    mistakes = MistakeLog()
    with path.open("rb") as raw, mistakes.of_what_ends_early():
        for number, row in enumerate(rows(raw)):
            if row.mistake:
                mistakes.add(row.mistake)
            elif ids:
                ids.add(row.id)
            if mistakes or number < skip:  # with a mistake the rest is read to find all others
                continue
            names.append(row.id)
            sequences.append(row.sequence.upper())
            bases += len(row.sequence)
            if len(names) >= most or bases >= most_bases:
                yield Chunk(begin, names, sequences, (number + 1) / total if total else raw.tell() / size)
                names, sequences, bases, begin = [], [], 0, number + 1
    mistakes.raise_if_any()
    if names:
        yield Chunk(begin, names, sequences, 1.0)


def require_readable(path: Path, *, fix: str) -> int:
    """Checks that the file of `--input` can be read, and returns its bytes.

    Raises:
        UserError: with this `fix`, where it cannot be read.
    """
    try:
        size = require_regular(path).st_size
        with path.open("rb"):
            pass
    except OSError as error:
        raise UserError(Mistake("--input", path, error.strerror or "cannot be read", fix)) from None
    return size


def file_facts(path: Path) -> dict[str, Any]:
    """Facts that change with a file."""
    facts = path.stat()
    return {"path": str(path.resolve()), "bytes": facts.st_size, "mtime_ns": facts.st_mtime_ns}
