"""A genome on disk: any stretch of a FASTA file by contig and position, never the whole in memory."""

import gzip
import hashlib
import logging
import shutil
import zlib
from pathlib import Path

from pyfaidx import Faidx, FastaIndexingError, FetchError

from lingo_ds.data.dna import sequence_mistake
from lingo_ds.utils.errors import Mistake, UserError, reason_of
from lingo_ds.utils.files import write_once
from lingo_ds.utils.safe_read import require_regular

logger = logging.getLogger(__name__)

READ_AHEAD = 1 << 15
"""Bases read at a time: of ascending places, as in a sorted file, most were read with the one before."""

UNREADABLE = (OSError, EOFError, ValueError, zlib.error)
"""Exceptions that a damaged file or index may raise."""

GZIP_MAGIC, BGZIP_FIELD = b"\x1f\x8b", b"BC"
"""First bytes of a packed file, and the field that only bgzip has, at byte 12 (SAM specification, 4.1)."""


class Genome:
    """A FASTA file read by places, 0-based and half-open: [begin, end). It may be packed with bgzip.

    A file packed with plain gzip cannot be read by places: it is unpacked once, into the cache.

    Attributes:
        path: the file.
        lengths: bases of every contig, by name.
    """

    def __init__(self, path: Path, *, cache: Path, setting: str = "--genome", read_ahead: int = READ_AHEAD):
        """Opens the file by the index beside it (`.fai`, of bgzip also `.gzi`), or by one made in `cache`.

        With a `read_ahead` of 0 places may come in any order.

        Raises:
            UserError: where the file cannot be read; it names the `setting`.
        """
        self.path = path
        try:
            require_regular(path)
            readable = _unpacked(path, cache)
            self._fasta = Faidx(
                readable,
                **_indexes(readable, cache),
                build_index=False,
                rebuild=False,
                as_raw=True,
                sequence_always_upper=True,
                read_ahead=read_ahead,
            )
        except (*UNREADABLE, FastaIndexingError) as error:
            rule = f"cannot be read as a FASTA ({getattr(error, 'strerror', None) or reason_of(error)})"
            fix = "give a whole FASTA with lines of one length, plain or packed with bgzip or gzip"
            raise UserError(Mistake(setting, path, rule, fix)) from None
        self.lengths: dict[str, int] = {name: entry.rlen for name, entry in self._fasta.index.items()}

    def fetch(self, contig: str, begin: int, end: int) -> str:
        """The end - begin bases of a stretch, upper case; N for each that lies beyond an end of the contig.

        Raises:
            UserError: where the file has something else than bases there, or less than its index says.
        """
        first, last = max(begin, 0), min(end, self.lengths[contig])
        where = f"{self.path}, {contig}:{first + 1}-{last}"
        try:
            inside = self._fasta.fetch(contig, first + 1, last) if first < last else ""
        except (*UNREADABLE, OverflowError, FetchError) as error:
            rule, fix = f"cannot be read ({reason_of(error)})", "copy the file again, and remove its index"
            raise UserError(Mistake(where, "bases", rule, fix)) from None
        if len(inside) != max(last - first, 0):
            fix = "remove the index, so that it is made again"
            raise UserError(Mistake(where, f"{len(inside)} bases", "the index beside the file is wrong", fix))
        if inside and (mistake := sequence_mistake(inside, where)):
            raise UserError(mistake)
        before = min(max(-begin, 0), end - begin)
        return "N" * before + inside + "N" * (end - begin - before - len(inside))

    def other_name(self, contig: str) -> str | None:
        """The name that the genome may have for a contig that it lacks: `1` for `chr1`, or the other way."""
        bare = contig.removeprefix("chr")
        names = [bare] if bare != contig else [f"chr{contig}"]
        if bare in ("M", "MT"):
            names += ["M", "MT", "chrM", "chrMT"]
        return next((name for name in names if name in self.lengths), None)


def _unpacked(path: Path, cache: Path) -> Path:
    """The file to read: the user's own, or an unpacked copy in the cache of one in plain gzip."""
    with path.open("rb") as file:
        head = file.read(16)
    if head[:2] != GZIP_MAGIC or head[12:14] == BGZIP_FIELD:
        return path
    folder = _place_in(cache, path)

    def unpack(aside: Path) -> None:
        logger.info("unpacking %s", path)
        aside.mkdir()
        with gzip.open(path, "rb") as packed, (aside / "genome.fa").open("wb") as out:
            shutil.copyfileobj(packed, out, 1 << 20)

    write_once(folder, unpack)
    return folder / "genome.fa"


def _place_in(cache: Path, path: Path) -> Path:
    """The folder of a genome in the cache."""
    facts = path.stat()
    known = f"{path.resolve()} {facts.st_size} {facts.st_mtime_ns}"
    return cache / "genomes" / hashlib.sha256(known.encode()).hexdigest()[:32]


def _indexes(path: Path, cache: Path) -> dict[str, Path]:
    """Paths of the indexes as arguments of `Faidx`: beside the file unless older than it, else in `cache`."""
    endings = {"indexname": ".fai"}
    if path.name.lower().endswith((".gz", ".bgz")):
        endings["gzi_indexname"] = ".gzi"
    facts = path.stat()
    beside = {option: path.with_name(path.name + ending) for option, ending in endings.items()}
    if all(one.is_file() and one.stat().st_mtime_ns >= facts.st_mtime_ns for one in beside.values()):
        return beside
    folder = _place_in(cache, path)

    def build(aside: Path) -> None:
        logger.info("indexing %s", path)
        aside.mkdir()
        indexes = {option: aside / f"genome{ending}" for option, ending in endings.items()}
        Faidx(path, **indexes).close()

    write_once(folder, build)
    return {option: folder / f"genome{ending}" for option, ending in endings.items()}
