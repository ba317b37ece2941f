"""Peaks of a track: runs of tiles above a threshold, as narrowPeak (a BED of six columns and four more)."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from lingo_ds.interpret.target import Target
from lingo_ds.interpret.tracks import scores

PEAK_SUFFIXES = (".bed", ".narrowpeak")
"""Endings of a file of peaks."""


class Peak(NamedTuple):
    """Neighbouring tiles, all above the threshold.

    Attributes:
        contig, start, end: the tiles, 0-based and half-open.
        value: the largest of theirs.
        summit: middle of the first tile that has it.
        strand: that tile's.
    """

    contig: str
    start: int
    end: int
    value: float
    summit: int
    strand: str


def find_peaks(tables: Iterable[pa.Table], *, threshold: float) -> Iterator[Peak]:
    """The peaks of a track; a gap of the track or the end of a contig ends one.

    Args:
        tables: the tiles with a value in the order of the genome, see `tracks.SCHEMA`; a peak may go on from
            one table to the next.
        threshold: the value above which a tile is of a peak.
    """
    last: Peak | None = None
    for table in tables:
        for peak in _peaks_of(table.filter(np.array(table["value"]) > threshold)):
            if last and (last.contig, last.end) == (peak.contig, peak.start):
                best = max(last, peak, key=lambda one: one.value)  # of equals the first
                last = best._replace(start=last.start, end=peak.end)
                continue
            if last:
                yield last
            last = peak
    if last:
        yield last


def _peaks_of(above: pa.Table) -> Iterator[Peak]:
    """The peaks of one table's tiles, which are all above the threshold."""
    if not len(above):
        return
    contigs, strands = np.array(above["contig"]), np.array(above["strand"])
    starts, ends, values = (above[name].to_numpy() for name in ("start", "end", "value"))
    apart = (starts[1:] != ends[:-1]) | (contigs[1:] != contigs[:-1])
    first = np.concatenate([[0], apart.nonzero()[0] + 1])
    for begin, end in zip(first, [*first[1:], len(above)], strict=True):
        top = begin + int(values[begin:end].argmax())
        summit = int(starts[top] + ends[top]) // 2
        value = float(values[top])
        yield Peak(
            str(contigs[begin]), int(starts[begin]), int(ends[end - 1]), value, summit, str(strands[top])
        )


def write_peaks(path: Path, peaks: Iterable[Peak], target: Target) -> int:
    """Writes peaks as narrowPeak, without a header; returns how many there were.

    Columns: contig, start, end, name, score (see `tracks.scores`), strand, the largest value, -1 and -1, as
    there are no p-values, and the bases from start to the summit.
    """
    count = 0
    with path.open("w", encoding="utf-8") as file:
        for count, peak in enumerate(peaks, 1):
            value = np.float32(peak.value)
            (score,) = scores(np.array([value]), target)
            columns = (
                *(peak.contig, peak.start, peak.end, f"peak_{count}", score, peak.strand),
                *(value, -1, -1, peak.summit - peak.start),
            )
            file.write("\t".join(map(str, columns)) + "\n")
    return count
