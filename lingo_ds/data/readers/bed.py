"""Intervals of BED files; positions are 0-based and half-open.

The text is read here and not by a library, so that every mistake names its file and line.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from lingo_ds.data.mistakes import raise_if_any
from lingo_ds.data.readers.lines import cut_line_mistake
from lingo_ds.utils.errors import Mistake

BED_SUFFIXES = (".bed", ".narrowpeak", ".broadpeak")

BED_COLUMNS = ("chromosome", "start", "end", "name", "score", "strand")
"""Columns of a file without a header, as far as it goes; narrowPeak and broadPeak begin with the same."""

ALIASES = {
    "chrom": "chromosome",
    "chr": "chromosome",
    "seqnames": "chromosome",
    "chromstart": "start",
    "chromend": "end",
    "stop": "end",
    "peak": "summit",
}
NAME_AT, STRAND_AT, SUMMIT_AT = 3, 5, 9
"""Where a file without a header has name, strand and, in narrowPeak, the summit; columns counted from 0."""

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
        summit: bases from start to the summit; None where it is not read.
        where: the file and line.
    """

    chromosome: str
    start: int
    end: int
    name: str | None
    strand: str
    labels: tuple[str, ...]
    split: str | None
    summit: int | None
    where: str


Center = Literal["middle", "summit"]


class WindowRule(NamedTuple):
    """What is cut out of the genome for an interval: bases around its centre, or it and its flanks.

    Attributes:
        window: bases around the centre; None: the interval and its flanks.
        flank: bases on both sides of the interval.
        center: what the centre is: an interval's middle, or the summit of a peak.
    """

    window: int | None = None
    flank: int = 0
    center: Center = "middle"

    def around(self, line: BedLine) -> tuple[int, int]:
        """Start and end of an interval's window; both may lie outside of the chromosome."""
        if self.window is None:
            return line.start - self.flank, line.end + self.flank
        center = (line.start + line.end) // 2 if line.summit is None else line.start + line.summit
        begin = center - self.window // 2
        return begin, begin + self.window

    def __str__(self) -> str:
        """The rule in words, e.g. `200 bases around each interval's middle`."""
        if self.window is not None:
            return f"{self.window:,} bases around each interval's {self.center}"
        return (
            f"each interval with {self.flank:,} bases on both sides" if self.flank else "each whole interval"
        )


class _Columns(NamedTuple):
    """Numbers of the columns; None for one that the file lacks."""

    chromosome: int
    start: int
    end: int
    name: int | None
    strand: int | None
    split: int | None
    summit: int | None
    labels: tuple[int, ...]


def read_bed(
    lines: Iterable[str],
    path: Path,
    *,
    labels: tuple[str, ...] = (),
    summits: bool = False,
) -> Iterator[BedLine | Mistake]:
    """The intervals of a BED file, or what is wrong with a line.

    A header names the columns, in any order and also as UCSC, R and BEND call them. Without one, columns are
    those of BED by their place, and lines may have more or fewer of them than the first one has. Comments and
    the lines `track` and `browser` are passed over.

    Args:
        lines: of the file.
        path: names the file in mistakes.
        labels: columns whose cells are read, by their names here or in the header.
        summits: whether each interval needs its summit: column 10 of narrowPeak, in a header `peak`.

    Raises:
        UserError: for columns that the file lacks.
    """
    columns, width, by_place = None, 0, False
    for number, line in enumerate(lines, 1):
        where = f"{path}:{number}"
        if columns is None and (spelled := _header(line)):
            columns, width = _find_columns(spelled, labels, where, summits=summits), len(spelled)
        elif not NO_INTERVAL.match(line):
            words = _words(line)
            if columns is None:
                by_place, width = True, len(words)
                columns = _find_columns(BED_COLUMNS[: max(width, 3)], labels, where)
                columns = columns._replace(name=NAME_AT, summit=SUMMIT_AT if summits else None)
            mistake = cut_line_mistake(line, where, fields=len(words), width=width)
            if by_place:
                mistake = mistake or _misplaced_strand(words, where)
                columns = columns._replace(strand=STRAND_AT if len(words) > STRAND_AT else None)
            yield mistake or _interval(words, columns, where)


def _misplaced_strand(words: list[str], where: str) -> Mistake | None:
    """The mistake in a line without names of columns that has a strand where BED has none."""
    if words[STRAND_AT : STRAND_AT + 1] not in ([], ["."], [""]):
        return None
    for column in (4, 5):
        if (found := words[column - 1 : column]) and found[0] in ("+", "-"):
            rule = f"is a strand in column {column}, but in BED without a header it belongs into column 6"
            fix = "move it there, or name the columns: chromosome start end strand .."
            return Mistake(where, found[0], rule, fix)
    return None


def _header(line: str) -> list[str]:
    """The columns that a line names; none where it is no header."""
    spelled = [word.strip('"') for word in _words(line.strip("\r\n").lstrip("# "))]
    named = set(_standard_names(spelled))
    if named >= {"chromosome", "start", "end"}:
        return spelled
    is_comment = line.startswith("#") and "\t" not in line and not {"start", "end"} & named
    return [] if is_comment or not HEADER.match(line) else spelled


def _standard_names(spelled: Sequence[str]) -> list[str]:
    return [ALIASES.get(word.lower(), word.lower()) for word in spelled]


def _find_columns(
    spelled: Sequence[str], labels: tuple[str, ...], where: str, *, summits: bool = False
) -> _Columns:
    """Where the columns of a header lie; label columns also by their names as the header spells them."""
    names = _standard_names(spelled)
    mistakes = []
    for name in [*BED_COLUMNS[:3], *labels, *(["summit"] if summits else [])]:
        if name not in names and name not in spelled:
            fix = "name it peak, or centre windows on the middle" if name == "summit" else "add it"
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
        summit=names.index("summit") if summits else None,
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
    summit = None
    if columns.summit is not None:
        found = words[columns.summit] if columns.summit < len(words) else "nothing"
        if not POSITION.fullmatch(found) or (summit := int(found)) >= int(end) - int(start):
            rule = "is no summit: column 10 of narrowPeak has its bases from the interval's start"
            return Mistake(where, found, rule, "correct the line, or centre windows on the middle")
    name = None if name in ("", ".") else name
    return BedLine(chromosome, int(start), int(end), name, strand, cells, split, summit, where)


def _words(line: str) -> list[str]:
    """The fields of a line: separated by tabs, or where it has none by spaces."""
    if "\t" in line:
        return [word.strip() for word in line.split("\t")]
    return line.split()
