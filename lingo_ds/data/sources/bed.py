"""Intervals of a genome: BED with a reference FASTA. Positions are 0-based and half-open."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from lingo_ds.data.dna import raise_if_any, reverse_complement
from lingo_ds.data.examples import Example
from lingo_ds.data.readers.genome import Genome
from lingo_ds.data.readers.lines import lines_of
from lingo_ds.data.sources.base import SPLIT_NAMES, Found, Part, fingerprint_of, read_parts
from lingo_ds.data.sources.negatives import Negatives
from lingo_ds.utils.errors import Mistake, UserError

BED_COLUMNS = ("chromosome", "start", "end", "name", "score", "strand")
"""Of a file without a header, as far as it goes."""

ALIASES = {
    "chrom": "chromosome", "chr": "chromosome", "chromstart": "start", "chromend": "end", "stop": "end",
}  # fmt: skip
HEADER = re.compile(r"#?(chromosome|chrom|chr)\s", re.IGNORECASE)
NO_INTERVAL = re.compile(r"\s*(#|track\s|browser\s|$)")
POSITION = re.compile(r"[0-9]{1,12}")


class Interval(NamedTuple):
    """A line of a BED file.

    Attributes:
        chromosome, start, end: where it lies, inside the chromosome.
        strand: `+`, `-` or `.`.
        cells: of the label columns.
        split: that the line names, if it does.
        where: the line.
    """

    chromosome: str
    start: int
    end: int
    strand: str
    cells: tuple[str, ...]
    split: str | None
    where: str


class WindowRule(NamedTuple):
    """What is cut out of the genome for an interval: so many bases around its centre, or it and flanks."""

    window: int | None
    flank: int

    def around(self, start: int, end: int) -> tuple[int, int]:
        """Start and end of an interval's window; both may lie outside of the chromosome."""
        if self.window is None:
            return start - self.flank, end + self.flank
        begin = (start + end) // 2 - self.window // 2
        return begin, begin + self.window


class Chromosomes(NamedTuple):
    """Which chromosomes make up dev and test; the others are train. Both empty: the file says it."""

    dev: tuple[str, ...]
    test: tuple[str, ...]

    def split_of(self, chromosome: str) -> str:
        return "dev" if chromosome in self.dev else "test" if chromosome in self.test else "train"


class BedSource:
    """Intervals cut out of a genome, the minus strand as its reverse complement.

    With `negatives`, intervals are class 1, and windows drawn elsewhere on their chromosomes class 0.
    """

    def __init__(
        self,
        parts: Sequence[Part],
        genome: Genome,
        scattered: Genome,
        *,
        windows: WindowRule,
        labels: tuple[str, ...],
        chromosomes: Chromosomes,
        negatives: float,
        seed: int,
    ):
        """Takes BED files, the genome (once more for places in any order), and how to read them.

        Raises:
            UserError: for chromosomes that the genome lacks, or that contradict splits by file.
        """
        self._parts, self._windows = parts, windows
        self._genome, self._scattered = genome, scattered
        self._labels, self._chromosomes = labels, chromosomes
        self._per_interval, self._seed = negatives, seed
        mistakes = []
        for setting in ("dev", "test"):
            for name in getattr(chromosomes, setting):
                field = f"data.intervals.{setting}_chromosomes"
                if name not in genome.lengths:
                    mistakes.append(Mistake(field, name, _not_in(genome), "name one of the genome"))
                elif len(parts) > 1:
                    mistakes.append(Mistake(field, name, "stands beside files by split", "keep one of them"))
        if mistakes:
            raise UserError(mistakes)

    def fingerprint(self) -> str:
        return fingerprint_of([*self._parts, Part("genome", self._genome.path)])

    def examples(self) -> Iterator[Found]:
        negatives = None
        if self._per_interval:
            negatives = Negatives(self._scattered, self._occupied(), seed=self._seed)
        for split, item in read_parts(self._parts, self._read):
            if isinstance(item, Mistake):
                yield split, item
                continue
            if any(self._chromosomes):
                split = self._chromosomes.split_of(item.chromosome)
            elif item.split:
                split = item.split
            positive = self._example(item)
            yield split, positive
            if negatives:
                for drawn in negatives.like(positive, per_interval=self._per_interval):
                    yield split, drawn
        if negatives:
            negatives.say_what_was_drawn()

    def _example(self, interval: Interval) -> Example:
        start, end = self._windows.around(interval.start, interval.end)
        sequence = self._genome.fetch(interval.chromosome, start, end)
        if interval.strand == "-":
            sequence = reverse_complement(sequence)
        fields = {
            "chromosome": interval.chromosome, "start": str(start), "end": str(end),
            "strand": interval.strand,
        }  # fmt: skip
        return Example(sequence, interval.cells, interval.where, fields=fields)

    def _occupied(self) -> Iterator[tuple[str, int, int]]:
        """Chromosome, start and end of all intervals and their windows; lines with mistakes are left out."""
        for _, item in read_parts(self._parts, self._read):
            if isinstance(item, Interval):
                start, end = self._windows.around(item.start, item.end)
                yield item.chromosome, min(start, item.start), max(end, item.end)

    def _read(self, part: Part) -> Iterator[Interval | Mistake]:
        columns: _Columns | None = None
        for number, line in enumerate(lines_of(part.path), 1):
            where = f"{part.path}:{number}"
            if columns is None and HEADER.match(line):
                spelled = _words(line.lstrip("#"))
                names = [ALIASES.get(word.lower(), word.lower()) for word in spelled]
                columns = self._columns(names, spelled, where)
            elif not NO_INTERVAL.match(line):
                words = _words(line)
                if columns is None:
                    names = list(BED_COLUMNS[: len(words)])
                    columns = self._columns(names, names, where)
                yield self._interval(words, columns, where)

    def _columns(self, names: list[str], spelled: list[str], where: str) -> "_Columns":
        """Where the columns stand; label columns also as the header spells them."""
        labels = () if self._per_interval else self._labels
        mistakes = []
        for name in [*BED_COLUMNS[:3], *labels]:
            if name not in names and name not in spelled:
                fix = "add it"
                if name in labels:
                    fix = "set data.label_column, e.g. to name or score, or data.intervals.negatives"
                mistakes.append(Mistake(where, " ".join(spelled), f"has no column {name!r}", fix))
        raise_if_any(mistakes, Path(where))
        return _Columns(
            *(names.index(name) for name in BED_COLUMNS[:3]),
            names.index("strand") if "strand" in names else None,
            names.index("split") if "split" in names else None,
            tuple(spelled.index(name) if name in spelled else names.index(name) for name in labels),
        )

    def _interval(self, words: list[str], columns: "_Columns", where: str) -> Interval | Mistake:
        try:
            chromosome, start, end = (words[k] for k in columns[:3])
            strand = "." if columns.strand is None else words[columns.strand]
            split = None if columns.split is None else words[columns.split]
            cells = tuple([words[k] for k in columns.labels])
        except IndexError:
            return Mistake(where, f"{len(words)} fields", "some are missing", "complete the line")
        if not (POSITION.fullmatch(start) and POSITION.fullmatch(end) and int(start) < int(end)):
            rule = "is no interval: start and end are numbers from 0 on, start below end"
            return Mistake(where, f"{start} {end}", rule, "correct the line")
        length = self._genome.lengths.get(chromosome)
        if length is None:
            return Mistake(where, chromosome, _not_in(self._genome), "rename it, or give its genome")
        if int(end) > length:
            rule = f"ends beyond the {length:,} bases of {chromosome} in {self._genome.path}"
            return Mistake(where, end, rule, "give the genome that the intervals were made for")
        if strand not in ("+", "-", "."):
            return Mistake(where, strand, "is no strand", "write +, - or .")
        if split is not None and (split := SPLIT_NAMES.get(split.lower())) is None:
            return Mistake(where, words[columns.split], "is no split", "write train, dev or test")
        return Interval(
            chromosome, int(start), int(end), strand, ("1",) if self._per_interval else cells, split, where
        )


class _Columns(NamedTuple):
    """Numbers of the columns; None where there is none."""

    chromosome: int
    start: int
    end: int
    strand: int | None
    split: int | None
    labels: tuple[int, ...]


def _words(line: str) -> list[str]:
    """The fields of a line: between tabs, or where there is none between spaces."""
    if "\t" in line:
        return [word.strip() for word in line.split("\t")]
    return line.split()


def _not_in(genome: Genome) -> str:
    some = ", ".join(list(genome.lengths)[:3])
    return f"is not in {genome.path} (there are {some}, ..)"
