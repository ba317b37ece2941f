"""Tracks over a genome: a value for each tile, kept in parts while a scan runs, and written as its file."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from lingo_ds.data.streams.tiles import TileChunk, Tiles
from lingo_ds.evaluation.prediction_file import text_file
from lingo_ds.evaluation.prediction_tables import PredictionTable
from lingo_ds.evaluation.predictor import Predicted
from lingo_ds.interpret.extras import import_extra
from lingo_ds.interpret.target import Target

BIGWIG = (".bw", ".bigwig")
BEDGRAPH = (".bedgraph", ".bdg", ".bg", ".bedgraph.gz", ".bdg.gz", ".bg.gz")
BED = (".bed", ".bed.gz")
TRACK_SUFFIXES = (*BIGWIG, *BEDGRAPH, *BED)
"""Endings of a track, by format."""

SCHEMA = pa.schema(
    [
        ("contig", pa.string()),
        ("start", pa.int64()),
        ("end", pa.int64()),
        ("value", pa.float32()),
        ("strand", pa.string()),
    ]
)
"""Columns of a part, a row per tile; the value is null where the track has a gap."""

_TEXT = pacsv.WriteOptions(include_header=False, delimiter="\t", quoting_style="none")
"""Lines of a BED; each number as short as the same float32 is read back from it."""


class TrackTable(PredictionTable[TileChunk]):
    """Makes the rows of a part from tiles and the answers for their windows."""

    unit = "bases"

    def __init__(self, target: Target, tiles: Tiles, *, stranded: bool):
        """Takes the output that is looked at, and the tiles.

        Args:
            target: the output.
            tiles: the tiles.
            stranded: False where the adapter reads both strands itself: its answers are of none.
        """
        super().__init__(target.task, SCHEMA)
        self._target, self._tiles, self._stranded = target, tiles, stranded

    def amount(self, rows: int) -> int:
        return self._tiles.bases(rows)

    def rows(self, predicted: Predicted[TileChunk]) -> pa.Table:
        chunk, found = predicted.chunk, predicted.answers[:, self._target.place]
        strand, signs = self._tiles.strand, np.array([".", "+", "-"])
        which = np.full(len(found), {"forward": 1, "reverse": 2}.get(strand, 0))
        if strand in ("max", "mean"):
            both = found.reshape(-1, 2)
            found = both.max(1) if strand == "max" else both.mean(1)
            which = both.argmax(1) + 1 if strand == "max" else which[::2]
        values, strands = np.full(chunk.size, np.nan, np.float32), np.full(chunk.size, ".")
        values[chunk.places] = found
        if self._stranded:
            strands[chunk.places] = signs[which]
        columns = [chunk.contigs, chunk.starts, chunk.ends, values, strands]
        arrays = [
            pa.array(column, field.type, from_pandas=True)
            for column, field in zip(columns, SCHEMA, strict=True)
        ]
        return pa.Table.from_arrays(arrays, schema=SCHEMA)


def read_parts(parts: Iterable[Path]) -> Iterator[pa.Table]:
    """The tiles of each part that have a value."""
    for part in parts:
        table = pq.read_table(part, schema=SCHEMA)
        yield table.filter(table["value"].is_valid())


class _Track(Protocol):
    """A file that takes tile after tile."""

    def add(self, tiles: pa.Table) -> None:
        """Writes the values of tiles that have one."""


class TrackFormat:
    """How the parts of a track are written, and joined to a bigWig, bedGraph or BED."""

    def __init__(self, path: Path, target: Target, lengths: Mapping[str, int]):
        """Takes the file, whose ending is one of `TRACK_SUFFIXES`, and what its header and columns hold.

        Args:
            path: the file.
            target: the output that its values are of.
            lengths: bases of every contig of the genome, in its order.

        Raises:
            UserError: for a bigWig without pyBigWig.
        """
        self._name, self._target, self._lengths = path.name.lower(), target, lengths
        if self._name.endswith(BIGWIG):
            require_bigwig()

    def write(self, table: pa.Table, path: Path) -> None:
        """Writes the rows of one part."""
        pq.write_table(table, path)

    def join(self, parts: list[Path], path: Path) -> None:
        """Writes the file of all parts, one part in memory at a time."""
        with self._opened(path) as track:
            for tiles in read_parts(parts):
                if len(tiles):
                    track.add(tiles)

    @contextmanager
    def _opened(self, path: Path) -> Iterator[_Track]:
        if self._name.endswith(BIGWIG):
            file = require_bigwig().open(str(path), "w")
            file.addHeader(list(self._lengths.items()))
            try:
                yield _BigWig(file)
            finally:
                file.close()
            return
        with text_file(path, gzipped=self._name.endswith(".gz")) as text:
            yield _Bed(text, self._target) if self._name.endswith(BED) else _BedGraph(text)


class _BigWig:
    def __init__(self, file: Any):
        self._file = file

    def add(self, tiles: pa.Table) -> None:
        starts, ends, values = (tiles[name].to_numpy() for name in ("start", "end", "value"))
        self._file.addEntries(
            tiles["contig"].to_pylist(), starts.tolist(), ends=ends.tolist(), values=values.tolist()
        )


class _BedGraph:
    """Columns contig, start, end and value."""

    def __init__(self, file: BinaryIO):
        self._file = file

    def add(self, tiles: pa.Table) -> None:
        pacsv.write_csv(tiles.select(["contig", "start", "end", "value"]), self._file, _TEXT)


class _Bed:
    """Columns contig, start, end, name, score, strand and value."""

    def __init__(self, file: BinaryIO, target: Target):
        self._file, self._target = file, target

    def add(self, tiles: pa.Table) -> None:
        columns = {
            "contig": tiles["contig"],
            "start": tiles["start"],
            "end": tiles["end"],
            "name": pa.array(["."] * len(tiles)),
            "score": pa.array(scores(tiles["value"].to_numpy(), self._target)),
            "strand": tiles["strand"],
            "value": tiles["value"],
        }
        pacsv.write_csv(pa.table(columns), self._file, _TEXT)


def scores(values: np.ndarray, target: Target) -> np.ndarray:
    """Scores of a BED, 0 to 1000: 1000 times a probability, rounded; 0 for values, which have no scale."""
    if not target.is_probability:
        return np.zeros(len(values), np.int64)
    return np.rint(values.astype(np.float64) * 1000).astype(np.int64)


def require_bigwig() -> Any:
    """The library that writes bigWig.

    Raises:
        UserError: where it is not installed.
    """
    return import_extra("pyBigWig", option="--output", otherwise="write a .bedgraph, which needs no library")
