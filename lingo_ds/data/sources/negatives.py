"""Windows without an interval: drawn at random, each like a positive one in length and GC share."""

import logging
from array import array
from collections.abc import Iterable, Iterator
from itertools import islice

import numpy as np

from lingo_ds.data.dna import reverse_complement
from lingo_ds.data.examples import Example
from lingo_ds.data.readers.genome import Genome
from lingo_ds.data.readers.intervals import merge_intervals

logger = logging.getLogger(__name__)

TRIES = 100
"""Free places compared for a window; the best of them is taken."""

DRAWS = 10
"""Draws of `TRIES` places each, until as many free ones are found."""

GC_CLOSE = 0.02
"""Difference of GC shares that ends the search."""

MAX_N_SHARE = 0.1
"""Share of N that a window may have at most."""


class Negatives:
    """Draws windows off all intervals of a genome, each on the chromosome of an interval it is drawn for.

    It holds the merged intervals in memory: 16 bytes for each interval before they are merged.
    """

    def __init__(self, genome: Genome, occupied: Iterable[tuple[str, int, int]], *, seed: int):
        """Takes chromosome, start and end of the intervals to avoid, in any order."""
        self._genome, self._rng = genome, np.random.default_rng(seed)
        self._drawn = self._not_placed = 0
        self._owed = self._gc_distance = 0.0
        bounds: dict[str, tuple[array, array]] = {}
        for chromosome, start, end in occupied:
            starts, ends = bounds.setdefault(chromosome, (array("q"), array("q")))
            starts.append(start)
            ends.append(end)
        self._occupied = {
            name: merge_intervals(np.asarray(starts), np.asarray(ends))
            for name, (starts, ends) in bounds.items()
        }

    def like(self, positive: Example, *, per_interval: float) -> Iterator[Example]:
        """Windows for a positive one: `per_interval` of them, which is an average and may be a fraction."""
        self._owed += per_interval
        while self._owed >= 1:
            self._owed -= 1
            if drawn := self._draw(positive):
                self._drawn += 1
                yield drawn
            else:
                self._not_placed += 1

    def log_summary(self) -> None:
        """Logs how many windows were drawn and how close their GC shares are."""
        mean = self._gc_distance / max(self._drawn, 1)
        logger.info(
            "drew %d windows off the intervals; their GC share differs by %.3f on average", self._drawn, mean
        )
        if self._not_placed:
            logger.warning("%d windows found no place off the intervals in %d tries", self._not_placed, TRIES)

    def _draw(self, positive: Example) -> Example | None:
        chromosome, strand = positive.fields["chromosome"], positive.fields["strand"]
        width, wanted = len(positive.sequence), gc_share(positive.sequence)
        best, closest = None, 2.0
        for start in islice(self._free_places(chromosome, width), TRIES):
            sequence = self._genome.fetch(chromosome, start, start + width)
            if sequence.count("N") > MAX_N_SHARE * width:
                continue
            distance = abs(gc_share(sequence) - wanted)
            if distance < closest:
                best, closest = (start, sequence), distance
                if distance <= GC_CLOSE:
                    break
        if best is None:
            return None
        self._gc_distance += closest
        start, sequence = best
        if strand == "-":
            sequence = reverse_complement(sequence)
        fields = {
            "chromosome": chromosome,
            "start": str(start),
            "end": str(start + width),
            "strand": strand,
        }
        return Example(sequence, ("0",), f"drawn for {positive.where}", fields=fields)

    def _free_places(self, chromosome: str, width: int) -> Iterator[int]:
        """Random starts of windows off all intervals, drawn as they are asked for."""
        room = self._genome.lengths[chromosome] - width
        for _ in range(DRAWS if room >= 0 else 0):
            drawn = self._rng.integers(0, room + 1, TRIES)
            yield from drawn[~self._occupied[chromosome].overlap(drawn, drawn + width)].tolist()


def gc_share(sequence: str) -> float:
    """Share of G and C among A, C, G and T of upper-case DNA; 0 where there is none of these."""
    gc = sequence.count("G") + sequence.count("C")
    return gc / max(gc + sequence.count("A") + sequence.count("T"), 1)
