"""What a file is by its first bytes, whatever its name says; and how to convert what is not read here."""

import re
import zlib
from io import BufferedReader
from pathlib import Path
from typing import Literal, NamedTuple

from lingo_ds.utils.errors import Mistake

GZIP = b"\x1f\x8b"
EXTRA_FLAG, BGZIP_FIELD = 4, b"BC"
"""The flag of a packed file with extra fields, and the one that only bgzip writes (SAM format, 4.1)."""

BGZIP_END = bytes.fromhex("1f8b08040000000000ff0600424302001b0003000000000000000000")
"""The empty block that ends every file of bgzip; where it is missing, the file was cut short."""

HEAD_BYTES = 1 << 16
"""Unpacked bytes from which a format is recognised."""

Packing = Literal["none", "gzip", "bgzip"]


class Foreign(NamedTuple):
    """A format that is not read here: its name with an article, and the way out."""

    name: str
    fix: str


MAGIC = (
    (GZIP + b"\x08", Foreign("packed by gzip twice", "unpack it once: gunzip FILE")),
    (b"BCF\2", Foreign("a BCF", "convert it: bcftools view -O z -o NAME.vcf.gz FILE")),
    (b"BAM\1", Foreign("a BAM", "convert it: samtools fasta FILE > NAME.fa")),
    (b"CRAM\3", Foreign("a CRAM", "convert it: samtools fasta FILE > NAME.fa")),
    (b"\x43\x27\x41\x1a", Foreign("a 2bit", "convert it: twoBitToFa FILE NAME.fa")),
    (b"\x1a\x41\x27\x43", Foreign("a 2bit", "convert it: twoBitToFa FILE NAME.fa")),
    (b"\x26\xfc\x8f\x88", Foreign("a bigWig", "give intervals as BED, or sequences")),
    (b"\x88\x8f\xfc\x26", Foreign("a bigWig", "give intervals as BED, or sequences")),
    (b"\xeb\xf2\x89\x87", Foreign("a bigBed", "convert it: bigBedToBed FILE NAME.bed")),
    (b"\x87\x89\xf2\xeb", Foreign("a bigBed", "convert it: bigBedToBed FILE NAME.bed")),
    (b"PK\3\4", Foreign("a ZIP archive or an Excel sheet", "unpack it, or save the sheet as CSV")),
    (b"\xd0\xcf\x11\xe0", Foreign("an Excel sheet", "save it as CSV")),
    (b"BZh", Foreign("packed by bzip2", "unpack it, or pack it with gzip: bzcat FILE | gzip > NAME.gz")),
    (b"\xfd7zXZ", Foreign("packed by xz", "unpack it, or pack it with gzip: xzcat FILE | gzip > NAME.gz")),
    (
        b"\x28\xb5\x2f\xfd",
        Foreign("packed by zstd", "unpack it, or pack it with gzip: zstdcat FILE | gzip > NAME.gz"),
    ),
    (b"7z\xbc\xaf\x27\x1c", Foreign("a 7z archive", "unpack it")),
    (b"Rar!", Foreign("a RAR archive", "unpack it")),
    (
        b"version https://git-lfs",
        Foreign("a pointer of git-lfs, not the file itself", "fetch the file: git lfs pull"),
    ),
    (b"SQLite format 3", Foreign("an SQLite database", "export the table as CSV")),
    (b"\x89HDF", Foreign("an HDF5 file", "write its rows as CSV or Parquet")),
    (b"ARROW1", Foreign("an Arrow file", "write it as Parquet")),
    (b"Obj\1", Foreign("an Avro file", "write it as Parquet")),
    (b"\x93NUMPY", Foreign("a NumPy array", "write the sequences as CSV, or one-hot arrays as .npz")),
    (b"%PDF", Foreign("a PDF", "give the data itself")),
    (b"GGUF\3\0", Foreign("model weights (GGUF)", "give a file of DNA")),
    (b"LOCUS  ", Foreign("a GenBank file", "convert it to FASTA: seqret -sequence FILE -outseq NAME.fa")),
    (b"@HD\t", Foreign("a SAM", "convert it: samtools fasta FILE > NAME.fa")),
    (b"@SQ\t", Foreign("a SAM", "convert it: samtools fasta FILE > NAME.fa")),
    (b"##gff-version", Foreign("a GFF", "convert it: gff2bed < FILE > NAME.bed")),
    (b"##gtf", Foreign("a GTF", "convert it: gtf2bed < FILE > NAME.bed")),
)
"""Formats by their first bytes, once unpacked."""

PATTERNS = (
    (
        re.compile(rb"\s*<(!doctype|html|\?xml|head\b)", re.IGNORECASE),
        Foreign("a web page, not data", "download the file itself: on GitHub and the hub, its raw form"),
    ),
    (
        re.compile(rb"@[^\n]*\n[A-Za-z.*-]+\r?\n\+[^\n]*\r?\n"),
        Foreign("a FASTQ", "convert it: seqtk seq -a FILE > NAME.fa"),
    ),
    (
        re.compile(rb"ID   \S+; SV "),
        Foreign("an EMBL file", "convert it to FASTA: seqret -sequence FILE -outseq NAME.fa"),
    ),
    (
        re.compile(rb"\x80[\x02-\x05][}\])(KXcU\x8c\x95]"),
        Foreign("a pickle, which may run code when it is read", "write the data as CSV or Parquet"),
    ),
    (
        re.compile(rb"(#[^\n]*\n)*[^\t\n]+\t[^\t\n]*\t[A-Za-z]\w*\t\d+\t\d+\t[^\t\n]+\t[-+.?]\t[012.]\t"),
        Foreign("a GTF or GFF", "convert it: gtf2bed < FILE > NAME.bed (or gff2bed)"),
    ),
)
"""Formats by how their first lines read."""

TAR = slice(257, 262), b"ustar"


def packing_of(head: bytes) -> Packing:
    """How a file is packed, from its first 16 bytes."""
    if head[:2] != GZIP:
        return "none"
    has_extra = len(head) > 3 and head[3] & EXTRA_FLAG
    return "bgzip" if has_extra and head[12:14] == BGZIP_FIELD else "gzip"


def read_head(raw: BufferedReader) -> bytes:
    """The first bytes of an open file, unpacked where it is gzipped; the file stays at its beginning.

    What cannot be unpacked is left out: it is reported when it is read.
    """
    packed = raw.read(HEAD_BYTES)
    raw.seek(0)
    if packing_of(packed) == "none":
        return packed
    head, rest = b"", packed
    try:
        while rest and len(head) < HEAD_BYTES:
            one = zlib.decompressobj(wbits=31)
            head += one.decompress(rest, HEAD_BYTES)
            rest = one.unused_data
    except zlib.error:
        pass
    return head


def foreign_format(head: bytes) -> Foreign | None:
    """The format of a file that is not read here, from its first bytes; None: it may be one that is."""
    for begin, foreign in MAGIC:
        if head.startswith(begin):
            return foreign
    place, ustar = TAR
    if head[place] == ustar:
        return Foreign("a TAR archive", "unpack it")
    return next((foreign for pattern, foreign in PATTERNS if pattern.match(head)), None)


def foreign_mistake(head: bytes, path: Path, *, where: str | None = None) -> Mistake | None:
    """The mistake of giving a file of a foreign format; None: it is of none. `where`: instead of the path."""
    if (foreign := foreign_format(head)) is None:
        return None
    fix = foreign.fix.replace("FILE", path.name).replace("NAME", path.name.split(".")[0] or "new")
    return Mistake(where or str(path), path.name, f"is {foreign.name}", fix)


def cut_short_mistake(raw: BufferedReader, path: Path) -> Mistake | None:
    """The mistake in a file of bgzip that lacks its end; None: it is whole, or of another packing.

    The file is left at its beginning. Without this, half a file reads like a whole one: each of its blocks
    is complete.
    """
    packing = packing_of(raw.read(16))
    raw.seek(0)
    if packing != "bgzip":
        return None
    size = raw.seek(0, 2)
    raw.seek(max(size - len(BGZIP_END), 0))
    whole = raw.read() == BGZIP_END
    raw.seek(0)
    if whole:
        return None
    fix = f"copy the file again; if nothing is missing, pack it anew: gzip -dc {path.name} | bgzip > NEW"
    return Mistake(str(path), path.name, "was cut short: it lacks the end block that bgzip writes", fix)
