"""Tiles of a genome and the window of bases around each, as a stream that never holds a whole contig.

A contig is tiled from its first base on: tile k of step s is [k s, (k + 1) s), and the last one of a contig
ends with it. So a tile is the same whichever part of the genome is asked for, and every part is made of whole
tiles. The window of a tile is what `predict --window` reads for it as an interval of a BED: it begins
window // 2 bases before the tile's middle, (start + end) // 2, and holds N beyond the ends of its contig.
"""

import difflib
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from lingo_ds.data.dna import reverse_complement
from lingo_ds.data.mistakes import MistakeLog
from lingo_ds.data.readers.bed import read_bed
from lingo_ds.data.readers.genome import Genome
from lingo_ds.data.readers.intervals import merge_intervals
from lingo_ds.data.readers.lines import read_lines
from lingo_ds.data.streams.sequences import file_facts
from lingo_ds.utils.errors import Mistake, UserError

MAX_TILES = 1 << 16
"""Most tiles of a chunk, with those that have no sequence."""

NAMES_SHOWN = 5
"""Names of contigs that are offered in place of one that the genome lacks."""

Strand = Literal["forward", "reverse", "max", "mean"]
"""The strand that is read, or what is taken of the answers for both."""


class Span(NamedTuple):
    """Neighbouring tiles of a contig, [first, end) by their numbers."""

    contig: str
    first: int
    end: int


class TileChunk(NamedTuple):
    """Neighbouring tiles.

    Attributes:
        begin: place of the first one among all tiles that are asked for.
        contigs: (n,) contig of each tile.
        starts, ends: (n,) int64, where each lies; 0-based and half-open.
        places: (k,) int64, those of the n tiles whose windows are predicted; the others have too many N.
        ids: of each sequence, its tile like `chr1:100-150`.
        sequences: k upper-case windows; of both strands, each window is followed by its reverse complement.
        read: share of all tiles that come before the next chunk, 0 to 1.
    """

    begin: int
    contigs: list[str]
    starts: np.ndarray
    ends: np.ndarray
    places: np.ndarray
    ids: list[str]
    sequences: list[str]
    read: float

    @property
    def size(self) -> int:
        """Rows of the output that the chunk makes."""
        return len(self.contigs)


class Tiles:
    """The tiles of some parts of a genome, in the order of the genome.

    Attributes:
        step: bases of a tile.
        window: bases that are read around the middle of each.
        strand: which strands are read.
        count: number of tiles.
    """

    def __init__(
        self, genome: Genome, spans: Sequence[Span], *, step: int, window: int, strand: Strand, max_n: float
    ):
        """Takes the genome and the parts of it, in its order.

        Args:
            genome: the genome.
            spans: the parts.
            step: bases of a tile, with which the spans were made.
            window: bases of a window.
            strand: which strands are read.
            max_n: largest share of N in a window that is predicted, 0 to 1.
        """
        self._genome, self._spans, self._max_n = genome, spans, max_n
        self.step, self.window, self.strand = step, window, strand
        self._before = [0, *accumulate(span.end - span.first for span in spans)]
        self._bases = [0, *accumulate(self._end(s, s.end - 1) - s.first * step for s in spans)]
        self.count = self._before[-1]

    def fingerprint(self) -> dict[str, Any]:
        """Facts that change with the genome, its parts, or how they are read."""
        return {
            "genome": file_facts(self._genome.path),
            "spans": [list(span) for span in self._spans],
            "step": self.step,
            "window": self.window,
            "strand": self.strand,
            "max_n": self._max_n,
        }

    @property
    def contigs(self) -> list[str]:
        """The contigs that have tiles, each once."""
        return list(dict.fromkeys(span.contig for span in self._spans))

    def bases(self, count: int) -> int:
        """Bases of the first `count` tiles."""
        if count == self.count:
            return self._bases[-1]
        at = bisect_right(self._before, count) - 1
        return self._bases[at] + (count - self._before[at]) * self.step

    def chunks(self, *, skip: int = 0, most: int, most_bases: int) -> Iterator[TileChunk]:
        """All tiles after the first `skip`, in chunks that end by `most` sequences or `most_bases` bases."""
        strands = 2 if self.strand in ("max", "mean") else 1
        most_windows = max(1, min(most, most_bases // self.window) // strands)
        tiles = self._tiles(skip)
        for begin, rows in _grouped(tiles, most_windows, first=skip):
            contigs, starts, ends, windows = zip(*rows, strict=True)
            places = [k for k, window in enumerate(windows) if window is not None]
            ids = [f"{contigs[k]}:{starts[k]}-{ends[k]}" for k in places for _ in range(strands)]
            sequences = [one for k in places for one in self._strands(windows[k] or "")]
            yield TileChunk(
                begin,
                list(contigs),
                np.array(starts, np.int64),
                np.array(ends, np.int64),
                np.array(places, np.int64),
                ids,
                sequences,
                (begin + len(rows)) / self.count,
            )

    def _tiles(self, skip: int) -> Iterator[tuple[str, int, int, str | None]]:
        """Contig, start, end and window of each tile after the first `skip`; None: it has too many N."""
        most_n = self._max_n * self.window
        at = bisect_right(self._before, skip) - 1
        for place in range(at, len(self._spans)):
            span = self._spans[place]
            for number in range(span.first + max(skip - self._before[place], 0), span.end):
                start, end = number * self.step, self._end(span, number)
                begin = (start + end) // 2 - self.window // 2
                window = self._genome.fetch(span.contig, begin, begin + self.window)
                yield span.contig, start, end, None if window.count("N") > most_n else window

    def _end(self, span: Span, number: int) -> int:
        return min((number + 1) * self.step, self._genome.lengths[span.contig])

    def _strands(self, window: str) -> tuple[str, ...]:
        if self.strand == "forward":
            return (window,)
        if self.strand == "reverse":
            return (reverse_complement(window),)
        return window, reverse_complement(window)


def _grouped(
    tiles: Iterator[tuple[str, int, int, str | None]], most: int, *, first: int
) -> Iterator[tuple[int, list[tuple[str, int, int, str | None]]]]:
    """Groups of tiles with at most so many windows, each with the place of its first tile."""
    rows: list[tuple[str, int, int, str | None]] = []
    windows = 0
    for tile in tiles:
        rows.append(tile)
        windows += tile[3] is not None
        if windows == most or len(rows) == MAX_TILES:
            yield first, rows
            first, rows, windows = first + len(rows), [], 0
    if rows:
        yield first, rows


def spans_of_contigs(genome: Genome, contigs: Sequence[str], *, step: int) -> list[Span]:
    """The tiles of whole contigs, in the order of the genome; without any named, those of all.

    Raises:
        UserError: naming each contig that the genome lacks, with names that are like it.
    """
    unknown = [name for name in dict.fromkeys(contigs) if name not in genome.lengths]
    if unknown:
        raise UserError([_unknown(name, genome, where="--contig") for name in unknown])
    chosen = set(contigs) or set(genome.lengths)
    return [
        Span(name, 0, -(-length // step))
        for name, length in genome.lengths.items()
        if name in chosen and length
    ]


def spans_of_regions(path: Path, genome: Genome, *, step: int) -> list[Span]:
    """The tiles that overlap the intervals of a BED, each once, in the order of the genome.

    Raises:
        UserError: naming each line that is no interval of the genome, or the file where it cannot be read or
            has no interval.
    """
    found: dict[str, list[tuple[int, int]]] = {}
    mistakes = MistakeLog()
    try:
        with path.open("rb") as raw, mistakes.of_what_ends_early():
            for line in read_bed(read_lines(raw, path), path):
                if isinstance(line, Mistake):
                    mistakes.add(line)
                elif line.chromosome not in genome.lengths:
                    mistakes.add(_unknown(line.chromosome, genome, where=line.where))
                elif line.end > (length := genome.lengths[line.chromosome]):
                    rule = f"is beyond {line.chromosome}, which has {length:,} bases in {genome.path.name}"
                    mistakes.add(Mistake(line.where, line.end, rule, "give the genome of these regions"))
                else:
                    found.setdefault(line.chromosome, []).append((line.start // step, -(-line.end // step)))
    except OSError as error:
        rule = error.strerror or "cannot be read"
        raise UserError(Mistake("--regions", path, rule, "give a BED file")) from None
    mistakes.raise_if_any()
    if not found:
        raise UserError(Mistake("--regions", path, "has no interval", "give a BED file with intervals"))
    spans = []
    for contig in genome.lengths:
        if contig in found:
            merged = merge_intervals(*np.array(found[contig], np.int64).T)
            spans += [
                Span(contig, int(first), int(end))
                for first, end in zip(merged.starts, merged.ends, strict=True)
            ]
    return spans


def _unknown(name: str, genome: Genome, *, where: str) -> Mistake:
    """The mistake of a contig that the genome lacks, with the names that it may have been."""
    other = genome.other_name(name)
    near = difflib.get_close_matches(name, genome.lengths, n=NAMES_SHOWN, cutoff=0.6)
    names = list(dict.fromkeys(([other] if other else []) + near)) or list(genome.lengths)[:NAMES_SHOWN]
    more = "" if len(names) == len(genome.lengths) else f" (it has {len(genome.lengths):,} contigs)"
    fix = f"give one of its contigs, e.g. {', '.join(names)}{more}"
    return Mistake(where, name, f"is no contig of {genome.path.name}", fix)
