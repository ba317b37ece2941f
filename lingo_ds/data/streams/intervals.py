"""Intervals of a BED file as sequences of the genome, each on its own strand."""

from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path
from typing import Any

from lingo_ds.data.dna import reverse_complement
from lingo_ds.data.readers.bed import BedLine, WindowRule, read_bed
from lingo_ds.data.readers.genome import Genome
from lingo_ds.data.readers.lines import read_lines
from lingo_ds.data.streams.doubled_ids import DoubledIds
from lingo_ds.data.streams.sequences import Chunk, SequenceRow, file_facts, in_chunks, require_readable
from lingo_ds.data.streams.skipped import BEYOND, Skipped
from lingo_ds.utils.errors import Mistake

WHOLE_INTERVALS = WindowRule()


class Regions:
    """A BED file, plain or gzipped; the id of a row is its interval's name, else like `chr1:10-30`.

    Attributes:
        windows: what is read of the genome for an interval.
        numbered: False, ids are text.
        skipped: counts of what the last call of `chunks` left out so far.
        doubled: ids that it saw more than once so far.
    """

    numbered = False

    def __init__(
        self, path: Path, *, genome: Genome, windows: WindowRule = WHOLE_INTERVALS, strict: bool = False
    ):
        """Takes the file, its genome, and what is read of that for an interval.

        Raises:
            UserError: where the file cannot be read.
        """
        self._path, self._genome, self._strict = path, genome, strict
        self.windows = windows
        require_readable(path, fix="give a BED")
        self.skipped, self.doubled = Skipped(strict=strict), DoubledIds()

    def fingerprint(self) -> dict[str, Any]:
        """Facts that change with the files or with how they are read."""
        return {
            **file_facts(self._path),
            "genome": file_facts(self._genome.path),
            "windows": self.windows,
        }

    def chunks(self, *, skip: int = 0, most: int, most_bases: int) -> Iterator[Chunk]:
        """The sequences in chunks, see `Records.chunks`.

        Raises:
            UserError: as there; and where nothing in the whole file can be predicted.
        """
        self.skipped, self.doubled = Skipped(strict=self._strict), DoubledIds()
        return in_chunks(
            self._path, self._rows, skip=skip, most=most, most_bases=most_bases, ids=self.doubled
        )

    def _rows(self, raw: BufferedReader) -> Iterator[SequenceRow]:
        any_given = False
        lines, summits = read_lines(raw, self._path), self.windows.center == "summit"
        for item in read_bed(lines, self._path, summits=summits):
            row = SequenceRow("", "", item) if isinstance(item, Mistake) else self._row(item)
            if row:
                any_given = True
                yield row
        if not any_given:
            self.skipped.require_none(self._path)

    def _row(self, line: BedLine) -> SequenceRow | None:
        """The sequence of an interval; None where it is left out."""
        chromosome, start, end = line.chromosome, line.start, line.end
        length = self._genome.lengths.get(chromosome)
        if length is None:
            mistake = self.skipped.add_missing(chromosome, self._genome, where=line.where)
            return SequenceRow("", "", mistake) if mistake else None
        if end > length:
            rule = f"is beyond {chromosome}, which has {length:,} bases in the genome"
            mistake = Mistake(line.where, end, rule, "give the genome that the file was made with")
            mistake = self.skipped.add(BEYOND, mistake=mistake)
            return SequenceRow("", "", mistake) if mistake else None
        sequence = self._genome.fetch(chromosome, *self.windows.around(line))
        if line.strand == "-":
            sequence = reverse_complement(sequence)
        return SequenceRow(line.name or f"{chromosome}:{start}-{end}", sequence, None)
