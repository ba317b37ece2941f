"""A genome on disk: any stretch of a FASTA file by contig and position, never the whole in memory."""

import gzip
import hashlib
import io
import logging
import zlib
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from io import BufferedReader
from os.path import expanduser
from pathlib import Path
from typing import BinaryIO, NamedTuple

from lingo_ds.data.dna import letters_mistake
from lingo_ds.data.readers.content import cut_short_mistake, foreign_mistake, packing_of, read_head
from lingo_ds.data.readers.fasta_index import (
    Contig,
    index_fasta,
    index_from_text,
    index_to_text,
    require_fit,
)
from lingo_ds.data.readers.lines import line_blocks
from lingo_ds.data.readers.unpacked_bytes import Blocks, UnpackedBytes
from lingo_ds.utils.errors import Mistake, UserError, reason_of
from lingo_ds.utils.files import write_once
from lingo_ds.utils.safe_read import read_regular, require_regular

logger = logging.getLogger(__name__)

READ_AHEAD = 1 << 15
"""Bases read at a time: of ascending places, as in a sorted file, most were read with the one before."""

UNREADABLE = (OSError, EOFError, zlib.error)
"""Exceptions that a damaged file may raise."""

MAX_INDEX_BYTES = 1 << 28
"""Bytes of the largest index that is read; one of a million contigs has some 40 MB."""

UNPACKED, INDEX, BLOCKS = "genome.fa", "genome.fai", "blocks.npy"
"""Files of a genome in the cache."""


class _Stretch(NamedTuple):
    """Bases of a contig from a place on, as they were read last."""

    contig: str
    begin: int
    bases: str


class Genome:
    """A FASTA file read by places, 0-based and half-open: [begin, end). It may be packed with bgzip.

    A file packed with plain gzip cannot be read by places: it is unpacked once, into the cache. What a file
    is, its first bytes say, whatever it is called.

    Attributes:
        path: the file.
        lengths: bases of every contig, by name.
    """

    def __init__(self, path: Path, *, cache: Path, setting: str = "--genome", read_ahead: int = READ_AHEAD):
        """Opens the file by the index beside it (`.fai`) where that fits, or by one made in `cache`.

        With a `read_ahead` of 0 places may come in any order.

        Raises:
            UserError: where the file cannot be read, naming the `setting`, or is no FASTA, naming the line.
        """
        self.path, self._read_ahead = Path(expanduser(path)), read_ahead
        try:
            require_regular(self.path)
            self._file = self.path.open("rb")
        except OSError as error:
            rule = f"cannot be read ({error.strerror or reason_of(error)})"
            raise UserError(Mistake(setting, self.path, rule, "give a FASTA file")) from None
        _require_fasta(self._file, self.path, setting)
        contigs, self._bytes = _indexed(self._file, self.path, cache)
        self._contigs = {contig.name: contig for contig in contigs}
        self._last = _Stretch("", 0, "")
        self.lengths: dict[str, int] = {contig.name: contig.bases for contig in contigs}

    def fetch(self, contig: str, begin: int, end: int) -> str:
        """The end - begin bases of a stretch, upper case; N for each that lies beyond an end of the contig.

        Raises:
            UserError: where the file has something else than bases there, or less than its index says.
        """
        first, last = max(begin, 0), min(end, self.lengths[contig])
        inside = self._inside(contig, first, last) if first < last else ""
        if inside and (mistake := letters_mistake(inside, f"{self.path}, {contig}:{first + 1}-{last}")):
            raise UserError(mistake)
        before = min(max(-begin, 0), end - begin)
        return "N" * before + inside + "N" * (end - begin - before - len(inside))

    def _inside(self, contig: str, begin: int, end: int) -> str:
        """The bases of a stretch that lies inside of a contig."""
        held = self._last
        if held.contig != contig or begin < held.begin or end > held.begin + len(held.bases):
            stop = min(max(end, begin + self._read_ahead), self.lengths[contig])
            held = self._last = _Stretch(contig, begin, self._read(self._contigs[contig], begin, stop))
        return held.bases[begin - held.begin : end - held.begin]

    def _read(self, contig: Contig, begin: int, end: int) -> str:
        where = f"{self.path}, {contig.name}:{begin + 1}-{end}"
        try:
            found = self._bytes.read(contig.place_of(begin), contig.place_of(end - 1) + 1)
        except UNREADABLE as error:
            rule = f"cannot be read ({reason_of(error)})"
            raise UserError(Mistake(where, "bases", rule, "copy the file again")) from None
        bases = found.translate(None, b" \t\r\n").decode("latin-1").upper()
        if len(bases) != end - begin:
            rule = "are not as many as its index says"
            fix = "remove the index beside the file, so that it is made anew"
            raise UserError(Mistake(where, f"{len(bases)} bases", rule, fix))
        return bases

    def other_name(self, contig: str) -> str | None:
        """The name that the genome may have for a contig that it lacks: `1` for `chr1`, or the other way."""
        bare = contig.removeprefix("chr")
        names = [bare] if bare != contig else [f"chr{contig}"]
        if bare in ("M", "MT"):
            names += ["M", "MT", "chrM", "chrMT"]
        return next((name for name in names if name in self.lengths), None)


def _require_fasta(file: BufferedReader, path: Path, setting: str) -> None:
    """Checks the first and last bytes of an open file.

    Raises:
        UserError: where it is empty, was cut short, or is of a format that is no FASTA.
    """
    head = read_head(file)
    mistake = foreign_mistake(head, path, where=setting) or cut_short_mistake(file, path)
    if not mistake and not head and packing_of(file.peek(16)) == "none":
        mistake = Mistake(setting, path, "is empty", "give a FASTA")
    if mistake:
        raise UserError(mistake)


# -- what is kept of a genome in the cache


def _indexed(file: BufferedReader, path: Path, cache: Path) -> tuple[list[Contig], UnpackedBytes]:
    """The contigs of a genome, and its bytes to be read by places; what that takes is made in the cache."""
    folder = _place_in(cache, path)
    try:
        write_once(folder, lambda aside: _prepare(file, path, aside))
        unpacked, blocks = folder / UNPACKED, folder / BLOCKS
        if unpacked.is_file():
            file = unpacked.open("rb")
        bytes_of = UnpackedBytes(file, Blocks.load(blocks) if blocks.is_file() else None)
        return index_from_text((folder / INDEX).read_text(encoding="utf-8")), bytes_of
    except OSError as error:
        rule = f"cannot hold the genome's index ({error.strerror or reason_of(error)})"
        fix = "let $LINGO_DS_CACHE or data.cache_dir name a folder that can be written"
        raise UserError(Mistake("cache", folder.parent, rule, fix)) from None


def _place_in(cache: Path, path: Path) -> Path:
    """The folder of a genome in the cache; another one where the file, or an index beside it, has changed."""
    known = []
    for one in (path, *_beside(path)):
        with suppress(OSError):
            facts = one.stat()
            known.append(f"{one.resolve()} {facts.st_size} {facts.st_mtime_ns}")
    return cache / "genomes" / hashlib.sha256("\n".join(known).encode()).hexdigest()[:32]


def _beside(path: Path) -> tuple[Path, Path]:
    """Where samtools puts the indexes of a genome."""
    return path.with_name(f"{path.name}.fai"), path.with_name(f"{path.name}.gzi")


def _prepare(file: BufferedReader, path: Path, aside: Path) -> None:
    """Writes a genome's index into a new folder, with its blocks, or unpacked where it is in plain gzip.

    Raises:
        UserError: where it is no FASTA, or damaged.
    """
    aside.mkdir()
    packing, blocks = packing_of(file.peek(16)), None
    if packing == "bgzip":
        blocks = _blocks_of(file, path)
        blocks.save(aside / BLOCKS)
    contigs = None
    if packing != "gzip":
        contigs = _index_beside(path, UnpackedBytes(file, blocks))
    if contigs is None:
        logger.info("%s %s", "unpacking" if packing == "gzip" else "indexing", path)
        lines = _lines(file, path)
        with (aside / UNPACKED).open("wb") if packing == "gzip" else nullcontext() as copy:
            contigs = index_fasta(_copied(lines, copy) if copy else lines, path)
    (aside / INDEX).write_text(index_to_text(contigs), encoding="utf-8")


def _lines(file: BufferedReader, path: Path) -> Iterator[bytes]:
    r"""All lines of an open file, unpacked, each with its \n."""
    packed = packing_of(file.peek(16)) != "none"
    for block in line_blocks(gzip.GzipFile(fileobj=file) if packed else file, path):
        yield from io.BytesIO(block)


def _copied(lines: Iterator[bytes], copy: BinaryIO) -> Iterator[bytes]:
    for line in lines:
        copy.write(line)
        yield line


def _blocks_of(file: BufferedReader, path: Path) -> Blocks:
    """The blocks of a genome packed with bgzip; a `.gzi` beside it that has others is reported."""
    blocks, (_, index) = Blocks.of_file(file, path), _beside(path)
    if index.is_file() and not blocks.fit(read_regular(index, most=MAX_INDEX_BYTES)):
        _warn(index, path, "it has other blocks")
    return blocks


def _index_beside(path: Path, file: UnpackedBytes) -> list[Contig] | None:
    """The contigs by the `.fai` beside a genome; None where there is none that fits, which is reported."""
    index, _ = _beside(path)
    if not index.is_file():
        return None
    try:
        contigs = index_from_text(read_regular(index, most=MAX_INDEX_BYTES).decode())
        require_fit(contigs, file)
    except (*UNREADABLE, ValueError) as error:
        _warn(index, path, reason_of(error))
        return None
    if index.stat().st_mtime_ns < path.stat().st_mtime_ns:
        logger.info("index %s is older than its file: it is made anew in the cache", index)
        return None
    return contigs


def _warn(index: Path, path: Path, reason: str) -> None:
    logger.warning("index %s does not fit %s: %s; it is made anew in the cache", index, path.name, reason)
