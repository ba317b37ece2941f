"""Checks of DNA, its reverse complement, pairs of sequences, and the mistakes of a file."""

import re
from pathlib import Path

from lingo_ds.utils.errors import Mistake, UserError

IUPAC = "ACGTUNRYSWKMBDHV"
MAX_MISTAKES_PER_FILE = 20
"""Mistakes reported per file; the rest is counted."""

_LETTERS = (IUPAC + IUPAC.lower()).encode()
_ILLEGAL = re.compile(f"[^{_LETTERS.decode()}]")
_COMPLEMENT = str.maketrans("ACGTURYSWKMBDHVN", "TGCAAYRSWMKVHDBN")


def join(sequence: str, pair: str | None, separator: str) -> str:
    """The two sequences of a pair with the separator between them, or the only sequence."""
    return sequence if pair is None else sequence + separator + pair


def first_bases(sequence: str, pair: str | None, bases: int) -> tuple[str, str | None]:
    """An example shortened to so many bases; the two of a pair lose the same share of their ends."""
    if pair is None:
        return sequence[:bases], None
    of_pair = bases * len(pair) // (len(sequence) + len(pair))
    return sequence[: bases - of_pair], pair[:of_pair]


def reverse_complement(sequence: str) -> str:
    """The other strand, read in its own direction; `sequence` is upper-case IUPAC, U counts as T."""
    return sequence.translate(_COMPLEMENT)[::-1]


def sequence_mistake(sequence: str, where: str) -> Mistake | None:
    """The mistake in the sequence at `where`: it is empty, or has a letter that is no base."""
    if not sequence:
        return Mistake(where, sequence, "sequence is empty", "remove the row or fill it")
    if sequence.isascii() and not sequence.encode().translate(None, _LETTERS):  # as the regex, much faster
        return None
    if (illegal := _ILLEGAL.search(sequence)) is None:
        return None
    rule = f"position {illegal.start() + 1} is no IUPAC nucleotide ({IUPAC})"
    return Mistake(where, illegal.group(), rule, "correct the letter, or write N")


def raise_if_any(mistakes: list[Mistake], path: Path) -> None:
    """Raises the mistakes of a file, the first `MAX_MISTAKES_PER_FILE` of them.

    Raises:
        UserError: where there are mistakes.
    """
    if len(mistakes) > MAX_MISTAKES_PER_FILE:
        more = len(mistakes) - MAX_MISTAKES_PER_FILE
        rest = Mistake(str(path), f"{more} more rows", "have mistakes too", "fix the errors above first")
        mistakes = [*mistakes[:MAX_MISTAKES_PER_FILE], rest]
    if mistakes:
        raise UserError(mistakes)


def file_of(where: str) -> str:
    """The file of a place like `train.csv:17` or `train.parquet, row 16`."""
    return re.sub(r"(:\d+|, row \d+)$", "", where)
