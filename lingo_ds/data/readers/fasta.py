"""Entries of FASTA files, one by one."""

from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from lingo_ds.data.dna import letters_mistake, sequence_mistake
from lingo_ds.data.missing import is_missing
from lingo_ds.utils.errors import Mistake, UserError

FASTA = (".fa", ".fasta", ".fna", ".fas", ".ffn", ".frn", ".fsa", ".mpfa")


class FastaEntry(NamedTuple):
    """One sequence of a FASTA file.

    Attributes:
        header: the text behind >.
        sequence: all its lines as one.
        line: number of the header's line.
        mistake: what is wrong with the sequence, with its line; None: nothing.
    """

    header: str
    sequence: str
    line: int
    mistake: Mistake | None


def fasta_entries(lines: Iterator[str], path: Path) -> Iterator[FastaEntry]:
    """The entries of a FASTA file; a sequence may have many lines, and lines that begin with ; are comments.

    Raises:
        UserError: for a sequence before the first header.
    """
    header: str | None = None
    parts: list[str] = []
    begin, mistake = 0, None
    for number, line in enumerate(chain(lines, [">"]), 1):
        text = line.strip()
        if text.startswith(">"):
            if header is not None:
                sequence = "".join(parts)
                if is_missing(sequence):
                    mistake = sequence_mistake(sequence, f"{path}:{begin}")
                yield FastaEntry(header, sequence, begin, mistake)
            header, parts, begin, mistake = text[1:].strip(), [], number, None
            if not header:
                rule = "the header has no name"
                mistake = Mistake(f"{path}:{number}", text, rule, "write one after >")
        elif text and not text.startswith(";"):
            where = f"{path}:{number}"
            if header is None:
                rule = "comes before the first header"
                raise UserError(Mistake(where, text, rule, "begin with a line like >name"))
            mistake = mistake or letters_mistake(text, where)
            parts.append(text)
