"""Predictions on disk: parts while a job runs, one file at its end.

Every finished chunk is a part of its own in a hidden folder beside the output, so that a job that was killed
resumes after the last of them. A note there names what the parts were made from: they are never mixed.
"""

import csv
import gzip
import io
import json
import logging
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from lingo_ds.data.readers.tables import DELIMITERS
from lingo_ds.utils.errors import Mistake, UserError
from lingo_ds.utils.files import atomic_write, exclusive_lock, make_folder

logger = logging.getLogger(__name__)

OUTPUT_SUFFIXES = (".parquet", *DELIMITERS, *(f"{suffix}.gz" for suffix in DELIMITERS))
"""Endings of an output, one per format."""

ROWS_PER_GROUP = 1 << 16
"""Most rows of one row group of a Parquet output."""

GROUP_BYTES = 1 << 26
"""Bytes of a row group's embeddings, about, where rows have some."""


class FinishedParts(NamedTuple):
    """How many rows an unfinished job has written, and how many of their sequences were truncated."""

    rows: int = 0
    truncated: int = 0


class _Part(NamedTuple):
    """A part on disk: its rows from `begin` to `end`, and how many of their sequences were truncated."""

    begin: int
    end: int
    truncated: int
    path: Path


class PartFormat(Protocol):
    """How parts are written, and joined to one file."""

    def write(self, table: pa.Table, path: Path) -> None:
        """Writes the rows of one part."""

    def join(self, parts: list[Path], path: Path) -> None:
        """Writes the file of all parts."""


class PredictionFile:
    """The output of a prediction job.

    Attributes:
        path: the file.
    """

    def __init__(self, path: Path, *, format: PartFormat):
        """Takes the file, and how its parts are written and joined."""
        self.path, self._format = path, format
        self._parts = path.with_name(f".{path.name}.parts")

    @property
    def parts(self) -> list[Path]:
        """The finished parts, in the order of their rows."""
        return [part.path for part in self._listed()]

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keeps other jobs away from the parts.

        Raises:
            UserError: where another job is writing them.
        """
        make_folder(self._parts, setting="--output")
        with exclusive_lock(self._parts, setting="--output"):
            yield

    def resume(self, compatibility_key: dict[str, Any]) -> FinishedParts:
        """Counts what an earlier job with the same key has finished; the parts of another job are removed."""
        note, text = self._parts / "job.json", json.dumps(compatibility_key, indent=2)
        if note.is_file() and note.read_text() == text:
            return self._keep_first_parts()
        if note.exists():
            logger.warning("%s holds parts of another job; this one starts from the beginning", self._parts)
        for part in self._listed():
            part.path.unlink()
        atomic_write(note, lambda aside: aside.write_text(text))
        return FinishedParts()

    def write_part(self, begin: int, table: pa.Table, *, truncated: int) -> None:
        """Writes the rows from `begin` on; `truncated` of their sequences were cut to fit."""
        name = f"{begin:012}-{begin + len(table):012}-{truncated}"
        atomic_write(self._parts / name, lambda aside: self._format.write(table, aside))

    def finish(self) -> None:
        """Joins the parts to the output, which appears whole, and removes them."""
        whole = self._parts / "whole"
        atomic_write(whole, lambda aside: self._format.join(self.parts, aside))
        whole.replace(self.path)
        shutil.rmtree(self._parts)

    def _keep_first_parts(self) -> FinishedParts:
        """Counts the parts that follow each other from the first row on, and removes all others."""
        finished = FinishedParts()
        for part in self._listed():
            if part.begin == finished.rows:
                finished = FinishedParts(part.end, finished.truncated + part.truncated)
            else:
                part.path.unlink()
        return finished

    def _listed(self) -> list[_Part]:
        """Every part, in order."""
        paths = sorted(self._parts.glob("[0-9]*-[0-9]*-[0-9]*"))
        numbers = [map(int, path.name.split("-")) for path in paths]
        return [
            _Part(begin, end, truncated, path)
            for (begin, end, truncated), path in zip(numbers, paths, strict=True)
        ]


class _Parquet:
    """Parts that are Parquet files of their own."""

    def __init__(self, schema: pa.Schema):
        self._schema = schema
        width = sum(4 * one.type.list_size for one in schema if pa.types.is_fixed_size_list(one.type))
        self._group = min(ROWS_PER_GROUP, max(1, GROUP_BYTES // width)) if width else ROWS_PER_GROUP

    def write(self, table: pa.Table, path: Path) -> None:
        pq.write_table(table, path)

    def join(self, parts: list[Path], path: Path) -> None:
        """Makes row groups of one size, so that the file does not depend on how it was cut into parts."""
        waiting = self._schema.empty_table()
        with pq.ParquetWriter(path, self._schema) as writer:
            for part in parts:
                waiting = pa.concat_tables([waiting, pq.read_table(part, schema=self._schema)])
                while len(waiting) >= self._group:
                    writer.write_table(waiting.slice(0, self._group))
                    waiting = waiting.slice(self._group)
            if len(waiting):
                writer.write_table(waiting)


class _Text:
    """Parts that are lines without a header."""

    def __init__(self, schema: pa.Schema, *, delimiter: str, gzipped: bool):
        self._schema, self._delimiter, self._gzipped = schema, delimiter, gzipped

    def write(self, table: pa.Table, path: Path) -> None:
        columns = [
            _as_text(column.to_pylist(), name) if pa.types.is_floating(column.type) else column.to_pylist()
            for name, column in zip(table.column_names, table.columns, strict=True)
        ]
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, delimiter=self._delimiter, lineterminator="\n")
            writer.writerows(zip(*columns, strict=True))

    def join(self, parts: list[Path], path: Path) -> None:
        """Writes the header and the lines of all parts."""
        header = io.StringIO()
        csv.writer(header, delimiter=self._delimiter, lineterminator="\n").writerow(self._schema.names)
        with text_file(path, gzipped=self._gzipped) as file:
            file.write(header.getvalue().encode())
            for part in parts:
                with part.open("rb") as source:
                    shutil.copyfileobj(source, file)


@contextmanager
def text_file(path: Path, *, gzipped: bool) -> Iterator[BinaryIO]:
    """A file that takes bytes; one of gzip holds no name and no time."""
    with path.open("wb") as file:
        if not gzipped:
            yield file
            return
        with gzip.GzipFile("", "wb", compresslevel=6, fileobj=file, mtime=0) as packed:
            yield packed  # type: ignore[misc]  # it has all that is used of a BinaryIO


def table_format(path: Path, schema: pa.Schema) -> PartFormat:
    """The format of a table, whose file has one of `OUTPUT_SUFFIXES`, with these columns."""
    name = path.name.lower()
    for suffix, delimiter in DELIMITERS.items():
        if name.endswith((suffix, f"{suffix}.gz")):
            return _Text(schema, delimiter=delimiter, gzipped=name.endswith(".gz"))
    return _Parquet(schema)


def _as_text(numbers: list[float], name: str) -> list[str]:
    """Seven digits of a probability; nine of a value, from which the same float32 is read back."""
    digits = 9 if name.startswith("value_") else 7
    return [f"{number:.{digits}g}" for number in numbers]


def check_output(
    path: Path,
    *,
    source: Path,
    overwrite: bool,
    suffixes: Sequence[str] = OUTPUT_SUFFIXES,
    setting: str = "--output",
) -> None:
    """Checks, before any work, that the output can be written.

    Args:
        path: the output.
        source: the input.
        overwrite: whether an output that exists may be replaced.
        suffixes: endings that it may have.
        setting: what names it.

    Raises:
        UserError: for an unknown ending, a folder that cannot be written to, the input itself, or a file
            that exists already.
    """
    if not path.name.lower().endswith(tuple(suffixes)):
        rule = f"the ending is none of {', '.join(suffixes)}"
        raise UserError(Mistake(setting, path, rule, "name the file by its format"))
    make_folder(path.parent, setting=setting)
    if path.is_dir():
        raise UserError(Mistake(setting, path, "is a folder", "name a file"))
    if path.exists() and path.samefile(source):
        raise UserError(Mistake(setting, path, "is the input", "name another file"))
    if path.exists() and not overwrite:
        raise UserError(Mistake(setting, path, "exists already", "name another file, or give --overwrite"))
