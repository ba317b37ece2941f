"""Sequences without labels, read as a stream: CSV, TSV, FASTA, each also gzipped, and Parquet."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from lingo_ds.data.dna import MAX_MISTAKES_PER_FILE, raise_if_any, sequence_mistake
from lingo_ds.data.readers.fasta import FASTA, fasta_entries
from lingo_ds.data.readers.lines import read_lines, suffix_of
from lingo_ds.data.readers.tables import DELIMITERS, DelimitedRows
from lingo_ds.data.streams.skipped import Skipped
from lingo_ds.utils.errors import Mistake, UserError, reason_of
from lingo_ds.utils.safe_read import require_regular

PARQUET_ROWS = 1024
"""Rows of a Parquet file that are decoded at a time."""


class SequenceRow(NamedTuple):
    """One sequence of a file; `mistake` says what is wrong with it."""

    id: str | int
    sequence: str
    mistake: Mistake | None


class Chunk(NamedTuple):
    """Neighbouring sequences of a file.

    Attributes:
        begin: place of the first one in the file, counted from 0.
        ids: of each.
        sequences: upper-case DNA.
        read: share of the file that was read by now, 0 to 1.
    """

    begin: int
    ids: list[str] | list[int]
    sequences: list[str]
    read: float

    @property
    def size(self) -> int:
        """Rows of the output."""
        return len(self.ids)


class Records:
    """A file of sequences; its head is read and checked at once, its rows when `chunks` is called.

    Attributes:
        numbered: whether ids are integers: the file's own or, where it has none, rows counted from 0.
        skipped: nothing: every row is predicted or a mistake.
    """

    skipped = Skipped(strict=True)

    def __init__(self, path: Path, *, sequence_column: str = "sequence", id_column: str | None = None):
        """Takes the file and, for all but FASTA, its columns; `id_column` None: `id` where there is one.

        Raises:
            UserError: where the ending is unknown, the file cannot be read, or a column is missing.
        """
        self._path, self._columns, self._id_column = path, (sequence_column, id_column), None
        ending = suffix_of(path)
        if ending not in (*DELIMITERS, *FASTA, ".parquet"):
            known = ", ".join([*DELIMITERS, *FASTA, ".parquet"])
            rule = f"the ending is none of {known} (or .gz after one of text)"
            raise UserError(Mistake("--input", path, rule, "rename or convert the file"))
        require_readable(path, fix="give a file of sequences")
        self.numbered, self._total = False, None
        self._delimiter = DELIMITERS.get(ending)
        self._rows = self._fasta
        if ending == ".parquet":
            self._rows = self._parquet
            self.numbered = self._check_parquet()
        elif self._delimiter:
            self._rows = self._table
            with path.open("rb") as raw:
                self._find_columns(self._delimited(raw).header)
            self.numbered = self._id_column is None

    def fingerprint(self) -> dict[str, Any]:
        """What changes with the file or with how it is read."""
        columns = {"sequence_column": self._columns[0], "id_column": self._id_column}
        return file_facts(self._path) | columns

    def chunks(self, *, skip: int = 0, most: int, most_bases: int) -> Iterator[Chunk]:
        """All sequences after the first `skip`, in chunks that end with `most` or by `most_bases` bases.

        Raises:
            UserError: with the mistakes of the chunk that would come next, each with its place in the file.
        """
        return in_chunks(
            self._path, self._rows, skip=skip, most=most, most_bases=most_bases, total=self._total
        )

    def _delimited(self, raw: BinaryIO) -> DelimitedRows:
        return DelimitedRows(read_lines(raw, self._path), self._path, delimiter=self._delimiter)

    def _find_columns(self, header: list[str]) -> tuple[int, int | None]:
        """Places of the sequence and of the id; None where the rows' numbers are the ids."""
        sequence, wanted_id = self._columns
        self._id_column = wanted_id or ("id" if "id" in header else None)
        mistakes = []
        for name, option in ((sequence, "--sequence-column"), (self._id_column, "--id-column")):
            if name is not None and header.count(name) != 1:
                rule = f"names two columns {name!r}" if name in header else f"has no column {name!r}"
                where = f"{self._path}:1" if self._delimiter else str(self._path)
                mistakes.append(Mistake(where, ",".join(header), rule, f"rename a column or give {option}"))
        raise_if_any(mistakes, self._path)
        return header.index(sequence), self._id_column and header.index(self._id_column)

    def _table(self, raw: BinaryIO) -> Iterator[SequenceRow]:
        rows = self._delimited(raw)
        sequence_at, id_at = self._find_columns(rows.header)
        for number, (line, row) in enumerate(rows):
            if isinstance(row, Mistake):
                yield SequenceRow("", "", row)
            else:
                sequence = row[sequence_at].strip()
                name = number if id_at is None else row[id_at].strip()
                yield SequenceRow(name, sequence, sequence_mistake(sequence, f"{self._path}:{line}"))

    def _fasta(self, raw: BinaryIO) -> Iterator[SequenceRow]:
        """The id is the header's first word."""
        for entry in fasta_entries(read_lines(raw, self._path), self._path):
            name, *_ = [*entry.header.split(maxsplit=1), ""]
            yield SequenceRow(name, entry.sequence, entry.mistake)

    def _check_parquet(self) -> bool:
        """Finds the columns; True where the ids are integers."""
        file = self._open_parquet()
        schema, self._total = file.schema_arrow, file.metadata.num_rows
        self._find_columns(schema.names)
        sequences = schema.field(self._columns[0]).type
        inner = sequences.value_type if pa.types.is_dictionary(sequences) else sequences
        if inner not in (pa.string(), pa.large_string(), pa.string_view()):
            where = f"{self._path}: {self._columns[0]}"
            raise UserError(Mistake(where, sequences, "is no text", "give a column of strings"))
        return self._id_column is None or pa.types.is_integer(schema.field(self._id_column).type)

    def _parquet(self, _raw: BinaryIO) -> Iterator[SequenceRow]:
        try:
            yield from self._parquet_rows()
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise self._no_parquet(error) from None

    def _parquet_rows(self) -> Iterator[SequenceRow]:
        file = self._open_parquet()
        wanted = [name for name in (self._columns[0], self._id_column) if name]
        number = 0
        for batch in file.iter_batches(PARQUET_ROWS, columns=wanted):
            sequences = batch.column(self._columns[0]).to_pylist()
            ids = batch.column(self._id_column).to_pylist() if self._id_column else None
            for k, value in enumerate(sequences):
                sequence, name = (value or "").strip(), number if ids is None else ids[k]
                mistake = sequence_mistake(sequence, f"{self._path}, row {number}")
                if name is None:
                    fix = "fill it, or give another --id-column"
                    mistake = mistake or Mistake(f"{self._path}, row {number}", "null", "is no id", fix)
                yield SequenceRow(name if self.numbered else str(name), sequence, mistake)
                number += 1

    def _open_parquet(self) -> pq.ParquetFile:
        try:
            return pq.ParquetFile(self._path)
        except (pa.ArrowException, OSError) as error:
            raise self._no_parquet(error) from None

    def _no_parquet(self, error: Exception) -> UserError:
        rule = f"is no readable Parquet file ({reason_of(error)})"
        return UserError(Mistake("--input", self._path, rule, "write it anew"))


def in_chunks(
    path: Path,
    rows: Callable[[BinaryIO], Iterable[SequenceRow]],
    *,
    skip: int,
    most: int,
    most_bases: int,
    total: int | None = None,
) -> Iterator[Chunk]:
    """All rows of a file after the first `skip`, in chunks; errors are those of `Records.chunks`.

    Args:
        path: the file.
        rows: gives the rows of the opened file.
        skip, most, most_bases: as for `Records.chunks`.
        total: rows of the file, where it says so.
    """
    ids, sequences, mistakes, bases, begin, size = [], [], [], 0, skip, path.stat().st_size
    with path.open("rb") as raw:
        for number, row in enumerate(rows(raw)):
            if row.mistake:
                mistakes.append(row.mistake)
            if number < skip:
                continue
            ids.append(row.id)
            sequences.append(row.sequence.upper())
            bases += len(row.sequence)
            if len(ids) >= most or bases >= most_bases or len(mistakes) > MAX_MISTAKES_PER_FILE:
                raise_if_any(mistakes, path)
                yield Chunk(begin, ids, sequences, (number + 1) / total if total else raw.tell() / size)
                ids, sequences, bases, begin = [], [], 0, number + 1
    raise_if_any(mistakes, path)
    if ids:
        yield Chunk(begin, ids, sequences, 1.0)


def require_readable(path: Path, *, fix: str) -> int:
    """Bytes of the file that `--input` names.

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
    """What changes with a file."""
    facts = path.stat()
    return {"path": str(path.resolve()), "bytes": facts.st_size, "mtime_ns": facts.st_mtime_ns}
