"""Intervals of BED files; positions are 0-based and half-open.

The text is read here and not by a library, so that every mistake names its file and line.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from lingo_ds.data.mistakes import raise_if_any
from lingo_ds.utils.errors import Mistake

BED_SUFFIXES = (".bed", ".narrowpeak", ".broadpeak")

BED_COLUMNS = ("chromosome", "start", "end", "name", "score", "strand")
"""Columns of a file without a header, as far as it goes; narrowPeak and broadPeak begin with the same."""

ALIASES = {
    "chrom": "chromosome",
    "chr": "chromosome",
    "chromstart": "start",
    "chromend": "end",
    "stop": "end",
}
HEADER = re.compile(r"#?(chromosome|chrom|chr)\s", re.IGNORECASE)
NO_INTERVAL = re.compile(r"\s*(#|(track|browser)(\s|$)|$)")
POSITION = re.compile(r"[0-9]{1,12}")


class BedLine(NamedTuple):
    """One interval as its file has it, not yet compared with a genome.

    Attributes:
        chromosome, start, end: the interval; start is below end.
        name: of the interval; None where it has none.
        strand: `+`, `-` or `.`.
        labels: cells of the label columns.
        split: cell of the column `split`; None where there is no such column.
        where: the file and line.
    """

    chromosome: str
    start: int
    end: int
    name: str | None
    strand: str
    labels: tuple[str, ...]
    split: str | None
    where: str


class WindowRule(NamedTuple):
    """What is cut out of the genome for an interval: bases around its centre, or it and its flanks."""

    window: int | None
    flank: int

    def around(self, start: int, end: int) -> tuple[int, int]:
        """Start and end of an interval's window; both may lie outside of the chromosome."""
        if self.window is None:
            return start - self.flank, end + self.flank
        begin = (start + end) // 2 - self.window // 2
        return begin, begin + self.window


class _Columns(NamedTuple):
    """Numbers of the columns; None for one that the file lacks."""

    chromosome: int
    start: int
    end: int
    name: int | None
    strand: int | None
    split: int | None
    labels: tuple[int, ...]


def read_bed(
    lines: Iterable[str], path: Path, *, labels: tuple[str, ...] = (), ragged: bool = False
) -> Iterator[BedLine | Mistake]:
    """The intervals of a BED file, or what is wrong with a line.

    A header names the columns, in any order and also as UCSC and BEND call them. Without one, columns are
    those of BED by their place. Comments and the lines `track` and `browser` are passed over.

    Args:
        lines: of the file.
        path: names the file in mistakes.
        labels: columns whose cells are read, by their names here or in the header.
        ragged: whether lines of a file without a header may have more or fewer columns than its first one.

    Raises:
        UserError: for columns that the file lacks.
    """
    columns, width = None, 0
    for number, line in enumerate(lines, 1):
        where = f"{path}:{number}"
        if columns is None and (spelled := _header(line)):
            columns = _find_columns(spelled, labels, where)
        elif not NO_INTERVAL.match(line):
            words = _words(line)
            if columns is None:
                width = len(BED_COLUMNS) if ragged else 0
                columns = _find_columns(BED_COLUMNS[: width or len(words)], labels, where)
            if 3 <= len(words) < width:
                words += ["."] * (width - len(words))
            yield _interval(words, columns, where)


def _header(line: str) -> list[str]:
    """The columns that a line names; none where it is no header."""
    if not HEADER.match(line):
        return []
    spelled = _words(line.lstrip("#"))
    names_none = "\t" not in line and not {"start", "end"} & set(_standard_names(spelled))
    return [] if line.startswith("#") and names_none else spelled


def _standard_names(spelled: Sequence[str]) -> list[str]:
    return [ALIASES.get(word.lower(), word.lower()) for word in spelled]


def _find_columns(spelled: Sequence[str], labels: tuple[str, ...], where: str) -> _Columns:
    """Where the columns of a header lie; label columns also by their names as the header spells them."""
    names = _standard_names(spelled)
    mistakes = []
    for name in [*BED_COLUMNS[:3], *labels]:
        if name not in names and name not in spelled:
            fix = "add it"
            if name in labels:
                fix = "set data.label_column, e.g. to name or score, or data.intervals.negatives"
            mistakes.append(Mistake(where, " ".join(spelled), f"has no column {name!r}", fix))
    raise_if_any(mistakes)
    name_at, strand_at, split_at = (
        names.index(name) if name in names else None for name in ("name", "strand", "split")
    )
    return _Columns(
        chromosome=names.index("chromosome"),
        start=names.index("start"),
        end=names.index("end"),
        name=name_at,
        strand=strand_at,
        split=split_at,
        labels=tuple(spelled.index(name) if name in spelled else names.index(name) for name in labels),
    )


def _interval(words: list[str], columns: _Columns, where: str) -> BedLine | Mistake:
    try:
        chromosome, start, end = words[columns.chromosome], words[columns.start], words[columns.end]
        name = words[columns.name] if columns.name is not None and columns.name < len(words) else None
        strand = "." if columns.strand is None else words[columns.strand]
        split = None if columns.split is None else words[columns.split]
        cells = tuple([words[k] for k in columns.labels])
    except IndexError:
        return Mistake(where, f"{len(words)} fields", "some are missing", "complete the line")
    if not (POSITION.fullmatch(start) and POSITION.fullmatch(end) and int(start) < int(end)):
        rule = "is no interval: start and end are whole numbers from 0 on, and start is below end"
        return Mistake(where, f"{start} {end}", rule, "correct the line")
    if strand not in ("+", "-", "."):
        return Mistake(where, strand, "is no strand", "write +, - or .")
    name = None if name in ("", ".") else name
    return BedLine(chromosome, int(start), int(end), name, strand, cells, split, where)


def _words(line: str) -> list[str]:
    """The fields of a line: separated by tabs, or where it has none by spaces."""
    if "\t" in line:
        return [word.strip() for word in line.split("\t")]
    return line.split()
