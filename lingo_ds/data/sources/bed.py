"""Intervals of a genome as examples: BED files with a reference FASTA."""

import logging
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from lingo_ds.data.dna import reverse_complement
from lingo_ds.data.examples import Example
from lingo_ds.data.readers.bed import BedLine, WindowRule, read_bed
from lingo_ds.data.readers.genome import Genome
from lingo_ds.data.readers.lines import lines_of
from lingo_ds.data.sources.base import SPLIT_NAMES, Found, Part, fingerprint_of, read_parts
from lingo_ds.data.sources.negatives import Negatives
from lingo_ds.utils.errors import Mistake, UserError

logger = logging.getLogger(__name__)


class Chromosomes(NamedTuple):
    """The chromosomes of dev and test; all others are train. Both empty: the file names the splits."""

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
        """Takes BED files, the genome (`scattered`: the same for places in any order), and how to read them.

        Raises:
            UserError: for chromosomes that the genome lacks, or that contradict splits by file.
        """
        self._parts, self._windows = parts, windows
        self._genome, self._scattered = genome, scattered
        self._labels, self._chromosomes = labels, chromosomes
        self.label_columns = () if negatives else labels
        self._per_interval, self._seed = negatives, seed
        self._said = False
        mistakes = []
        for setting in ("dev", "test"):
            for name in getattr(chromosomes, setting):
                field = f"data.intervals.{setting}_chromosomes"
                if name not in genome.lengths:
                    mistakes.append(Mistake(field, name, _not_in(genome), "name one of the genome"))
                elif len(parts) > 1:
                    rule = "cannot be combined with one file per split"
                    mistakes.append(
                        Mistake(field, name, rule, "remove it, or give all intervals in one file")
                    )
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
            split = self._split_of(item, split)
            positive = self._example(item)
            yield split, positive
            if negatives:
                for drawn in negatives.like(positive, per_interval=self._per_interval):
                    yield split, drawn
        if negatives:
            negatives.log_summary()

    def _split_of(self, line: BedLine, of_file: str) -> str:
        """The split of an interval: by chromosome, else by the file among several, else as its row says."""
        by_chromosome = any(self._chromosomes)
        if line.split and (by_chromosome or len(self._parts) > 1) and not self._said:
            self._said = True
            what = "data.intervals" if by_chromosome else "files"
            logger.warning("%s: its column 'split' is not read, since %s name the splits", line.where, what)
        if by_chromosome:
            return self._chromosomes.split_of(line.chromosome)
        return line.split if line.split and len(self._parts) == 1 else of_file

    def _example(self, line: BedLine) -> Example:
        start, end = self._windows.around(line)
        sequence = self._genome.fetch(line.chromosome, start, end)
        if line.strand == "-":
            sequence = reverse_complement(sequence)
        fields = {
            "chromosome": line.chromosome,
            "start": str(start),
            "end": str(end),
            "strand": line.strand,
        }
        labels = ("1",) if self._per_interval else line.labels
        return Example(sequence, labels, line.where, fields=fields)

    def _occupied(self) -> Iterator[tuple[str, int, int]]:
        """Chromosome, start and end of all intervals and their windows; lines with mistakes are left out."""
        for _, item in read_parts(self._parts, self._read):
            if isinstance(item, BedLine):
                start, end = self._windows.around(item)
                yield item.chromosome, min(start, item.start), max(end, item.end)

    def _read(self, part: Part) -> Iterator[BedLine | Mistake]:
        labels = () if self._per_interval else self._labels
        summits = self._windows.center == "summit"
        for item in read_bed(lines_of(part.path), part.path, labels=labels, summits=summits):
            yield item if isinstance(item, Mistake) else self._checked(item)

    def _checked(self, line: BedLine) -> BedLine | Mistake:
        """The line with the usual name of its split, or the mistake in it."""
        length = self._genome.lengths.get(line.chromosome)
        if length is None:
            fix = "rename it, or give its genome"
            return Mistake(line.where, line.chromosome, _not_in(self._genome), fix)
        if line.end > length:
            rule = f"ends beyond the {length:,} bases of {line.chromosome} in {self._genome.path}"
            fix = "give the genome that the intervals were made for"
            return Mistake(line.where, line.end, rule, fix)
        if line.split is None:
            return line
        if (split := SPLIT_NAMES.get(line.split.lower())) is None:
            return Mistake(line.where, line.split, "is no split", "write train, dev or test")
        return line._replace(split=split)


def _not_in(genome: Genome) -> str:
    some = ", ".join(list(genome.lengths)[:3])
    return f"is not in {genome.path} (there are {some}, ..)"
