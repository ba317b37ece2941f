"""The format of a file: by its first bytes where they tell it, else by the ending of its name."""

import re
from pathlib import Path
from typing import Literal

from lingo_ds.data.readers.bed import BED_SUFFIXES
from lingo_ds.data.readers.content import foreign_format, foreign_mistake, read_head
from lingo_ds.data.readers.fasta import FASTA
from lingo_ds.data.readers.lines import opened, suffix_of
from lingo_ds.data.readers.tables import TABLE_SUFFIXES
from lingo_ds.utils.errors import Mistake

Format = Literal["table", "fasta", "bed", "vcf"]

ENDINGS: dict[Format, tuple[str, ...]] = {
    "table": TABLE_SUFFIXES,
    "fasta": FASTA,
    "bed": BED_SUFFIXES,
    "vcf": (".vcf",),
}

_MARK = rb"(\xef\xbb\xbf)?"
BEGINNINGS: tuple[tuple[Format, re.Pattern[bytes]], ...] = (
    ("table", re.compile(rb"PAR1")),
    ("table", re.compile(_MARK + rb'\s*\{\s*["}]')),
    ("vcf", re.compile(_MARK + rb"(##fileformat=VCF|(##[^\n]*\n)*#CHROM\s+POS\s)")),
    ("fasta", re.compile(_MARK + rb"\s*(;[^\n]*\n\s*)*>")),
)
"""Formats that are known by how a file begins: Parquet, JSON lines, VCF and FASTA."""


def format_of(path: Path) -> Format | None:
    """The format of a file; None: none of these, see `unread_mistake`.

    Raises:
        UserError: where it cannot be read.
    """
    with opened(path) as raw:
        head = read_head(raw)
    if foreign_format(head):
        return None
    for format, beginning in BEGINNINGS:
        if beginning.match(head):
            return format
    return next((format for format, endings in ENDINGS.items() if suffix_of(path) in endings), None)


def unread_mistake(path: Path, *, where: str) -> Mistake:
    """The mistake of giving, as the option or setting `where`, a file for which `format_of` knows no format.

    Raises:
        UserError: where it cannot be read.
    """
    with opened(path) as raw:
        foreign = foreign_mistake(read_head(raw), path, where=where)
    known = ", ".join(ending for endings in ENDINGS.values() for ending in endings)
    rule = f"the ending is none of {known} (or .gz after one of text)"
    return foreign or Mistake(where, path, rule, "rename or convert the file")
