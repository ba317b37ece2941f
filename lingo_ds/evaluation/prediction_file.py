"""Predictions on disk: parts while a job goes on, one file at its end.

Every finished chunk is a part of its own in a hidden folder beside the output, so a job that was killed goes
on behind the last of them. What the parts were made from is noted there: they are never mixed with others.
"""

import csv
import gzip
import io
import json
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from lingo_ds.data.readers.tables import DELIMITERS
from lingo_ds.utils.errors import Mistake, UserError
from lingo_ds.utils.files import atomic_write, exclusive_lock, make_folder

logger = logging.getLogger(__name__)

OUTPUT_SUFFIXES = (".parquet", *DELIMITERS, *(f"{ending}.gz" for ending in DELIMITERS))
ROW_GROUP = 1 << 16
"""Rows of a Parquet output that lie together."""


class Done(NamedTuple):
    """What the parts of an earlier, unfinished job hold: rows, and how many sequences were cut."""

    rows: int = 0
    cut: int = 0


class Output:
    """The file that a job of predicting leaves.

    Attributes:
        path: the file.
    """

    def __init__(self, path: Path, *, schema: pa.Schema):
        """Takes the file, and its columns."""
        self.path, self._parts = path, path.with_name(f".{path.name}.parts")
        self._ending = next(ending for ending in OUTPUT_SUFFIXES if path.name.lower().endswith(ending))
        self._delimiter = DELIMITERS.get(self._ending.removesuffix(".gz"))
        self._schema = schema

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keeps other jobs away from the parts.

        Raises:
            UserError: where another job is at them.
        """
        make_folder(self._parts, setting="--output")
        with exclusive_lock(self._parts, setting="--output"):
            yield

    def resume(self, meaning: dict[str, Any]) -> Done:
        """Finds what is done already of a job with this `meaning`; parts of another one are removed."""
        note = self._parts / "job.json"
        text = json.dumps(meaning, indent=2)
        if note.is_file() and note.read_text() == text:
            done = Done()
            for begin, end, cut, path in self._listed():
                if begin == done.rows:
                    done = Done(end, done.cut + cut)
                else:
                    path.unlink()
            return done
        if note.exists():
            logger.warning("%s holds parts of another job; this one begins anew", self._parts)
        for _, _, _, path in self._listed():
            path.unlink()
        atomic_write(note, lambda aside: aside.write_text(text))
        return Done()

    def add(self, begin: int, table: pa.Table, cut: int) -> None:
        """Writes the rows from `begin` on; of their sequences, `cut` were cut."""
        name = f"{begin:012}-{begin + len(table):012}-{cut}"
        if self._delimiter is None:
            atomic_write(self._parts / name, lambda aside: pq.write_table(table, aside))
        else:
            atomic_write(self._parts / name, lambda aside: self._write_text(table, aside))

    def finish(self) -> None:
        """Joins the parts to the output, which appears whole, and removes them."""
        parts = [path for _, _, _, path in self._listed()]
        whole = self._parts / "whole"
        atomic_write(whole, lambda aside: self._join(parts, aside))
        whole.replace(self.path)
        shutil.rmtree(self._parts)

    def _listed(self) -> list[tuple[int, int, int, Path]]:
        """(begin, end, cut, path) of every part, in order."""
        return [
            (*map(int, path.name.split("-")), path)
            for path in sorted(self._parts.glob("[0-9]*-[0-9]*-[0-9]*"))
        ]

    def _write_text(self, table: pa.Table, aside: Path) -> None:
        columns = [
            _in_digits(column.to_pylist(), name) if pa.types.is_floating(column.type) else column.to_pylist()
            for name, column in zip(table.column_names, table.columns, strict=True)
        ]
        with aside.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, delimiter=self._delimiter, lineterminator="\n")
            writer.writerows(zip(*columns, strict=True))

    def _join(self, parts: list[Path], aside: Path) -> None:
        if self._delimiter is None:
            self._join_parquet(parts, aside)
            return
        with aside.open("wb") as file:
            if not self._ending.endswith(".gz"):
                self._join_text(parts, file)
                return
            with gzip.GzipFile("", "wb", compresslevel=6, fileobj=file, mtime=0) as packed:
                self._join_text(parts, packed)

    def _join_text(self, parts: list[Path], file: BinaryIO) -> None:
        header = io.StringIO()
        csv.writer(header, delimiter=self._delimiter, lineterminator="\n").writerow(self._schema.names)
        file.write(header.getvalue().encode())
        for part in parts:
            with part.open("rb") as source:
                shutil.copyfileobj(source, file)

    def _join_parquet(self, parts: list[Path], aside: Path) -> None:
        """Row groups of one size, so that the file does not depend on how it was cut into parts."""
        waiting = self._schema.empty_table()
        with pq.ParquetWriter(aside, self._schema) as writer:
            for part in parts:
                waiting = pa.concat_tables([waiting, pq.read_table(part, schema=self._schema)])
                while len(waiting) >= ROW_GROUP:
                    writer.write_table(waiting.slice(0, ROW_GROUP))
                    waiting = waiting.slice(ROW_GROUP)
            if len(waiting):
                writer.write_table(waiting)


def check_output(path: Path, *, source: Path, overwrite: bool) -> None:
    """Checks, before any work, that the output can be written.

    Raises:
        UserError: for an unknown ending, a folder that cannot be written to, the input itself, or a file
            that is there already.
    """
    if not path.name.lower().endswith(OUTPUT_SUFFIXES):
        rule = f"the ending is none of {', '.join(OUTPUT_SUFFIXES)}"
        raise UserError(Mistake("--output", path, rule, "name the file by its format"))
    make_folder(path.parent, setting="--output")
    if path.is_dir():
        raise UserError(Mistake("--output", path, "is a folder", "name a file"))
    if path.exists() and path.samefile(source):
        raise UserError(Mistake("--output", path, "is the input", "name another file"))
    if path.exists() and not overwrite:
        raise UserError(Mistake("--output", path, "exists already", "name another file, or give --overwrite"))


def _in_digits(numbers: list[float], name: str) -> list[str]:
    """Seven digits of a probability; nine of a value, which bring a float32 back as it was."""
    digits = 9 if name.startswith("value_") else 7
    return [f"{number:.{digits}g}" for number in numbers]
