"""Intervals of a BED as sequences of the genome, each on its own strand."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from lingo_ds.data.dna import reverse_complement
from lingo_ds.data.readers.genome import Genome
from lingo_ds.data.readers.lines import read_lines
from lingo_ds.data.sources.bed import WindowRule
from lingo_ds.data.streams.sequences import Chunk, SequenceRow, file_facts, in_chunks, require_readable
from lingo_ds.data.streams.skipped import BEYOND, Skipped
from lingo_ds.utils.errors import Mistake


class Regions:
    """A BED, plain or gzipped: 0-based and half-open; the id is the name, else like `chr1:10-30`.

    Attributes:
        numbered: whether ids are integers: never.
        skipped: what the last call of `chunks` has left out by now.
    """

    numbered = False

    def __init__(self, path: Path, *, genome: Genome, window: int | None = None, strict: bool = False):
        """Takes the file and its genome; `window`: bases around each interval's middle, not the interval.

        Raises:
            UserError: where the file cannot be read.
        """
        self._path, self._genome, self._window, self._strict = path, genome, window, strict
        require_readable(path, fix="give a BED")
        self.skipped = Skipped(strict=strict)

    def fingerprint(self) -> dict[str, Any]:
        """What changes with the files or with how they are read."""
        return {**file_facts(self._path), "genome": file_facts(self._genome.path), "window": self._window}

    def chunks(self, *, skip: int = 0, most: int, most_bases: int) -> Iterator[Chunk]:
        """As `Records.chunks`.

        Raises:
            UserError: as there; and where nothing in the whole file can be predicted.
        """
        self.skipped = Skipped(strict=self._strict)
        return in_chunks(self._path, self._rows, skip=skip, most=most, most_bases=most_bases)

    def _rows(self, raw: BinaryIO) -> Iterator[SequenceRow]:
        given = 0
        for number, line in enumerate(read_lines(raw, self._path), 1):
            text = line.rstrip("\r\n")
            if text.strip() and text.split(maxsplit=1)[0] not in ("track", "browser") and text[0] != "#":
                row = self._row(text.split("\t") if "\t" in text else text.split(), f"{self._path}:{number}")
                given += row is not None
                yield from [row] if row else []
        if not given:
            self.skipped.require_none(self._path)

    def _row(self, fields: list[str], where: str) -> SequenceRow | None:
        """The sequence of a line; None where it is left out."""
        mistake = _field_mistake(fields, where)
        if mistake:
            return SequenceRow("", "", mistake)
        chrom, begin, end = fields[0], int(fields[1]), int(fields[2])
        name = fields[3] if len(fields) > 3 and fields[3] not in ("", ".") else f"{chrom}:{begin}-{end}"
        if chrom not in self._genome.lengths:
            mistake = self.skipped.add_missing(chrom, self._genome, where=where)
            return SequenceRow("", "", mistake) if mistake else None
        if end > self._genome.lengths[chrom]:
            rule = f"is beyond {chrom}, which has {self._genome.lengths[chrom]:,} bases in the genome"
            mistake = Mistake(where, end, rule, "give the genome that the file was made with")
            mistake = self.skipped.add(BEYOND, mistake=mistake)
            return SequenceRow("", "", mistake) if mistake else None
        begin, end = WindowRule(self._window, 0).around(begin, end)
        sequence = self._genome.fetch(chrom, begin, end)
        return SequenceRow(name, reverse_complement(sequence) if fields[5:6] == ["-"] else sequence, None)


def _field_mistake(fields: list[str], where: str) -> Mistake | None:
    if len(fields) < 3:
        return Mistake(
            where, f"{len(fields)} columns", "an interval has contig, begin and end", "complete it"
        )
    begin, end = fields[1:3]
    if not all(place.isascii() and place.isdigit() and len(place) < 12 for place in (begin, end)):
        return Mistake(where, f"{begin} {end}", "begin and end are no whole numbers", "correct the line")
    if int(begin) >= int(end):
        rule = "the end, which is not part of the interval, must be above the begin"
        return Mistake(where, f"{begin} {end}", rule, "count begins from 0 and write end = begin + length")
    if fields[5:6] and fields[5] not in ("+", "-", "."):
        return Mistake(where, fields[5], "is no strand", "write +, - or . in the sixth column")
    return None
