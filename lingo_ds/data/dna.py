"""Checks of DNA, its reverse complement, and pairs of sequences."""

import re
from collections.abc import Sequence
from itertools import pairwise

from lingo_ds.data.missing import is_missing
from lingo_ds.utils.errors import Mistake, UserError

IUPAC = "ACGTUNRYSWKMBDHV"

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
    """The mistake in the whole sequence at `where`: it is missing, or no DNA."""
    if is_missing(sequence):
        return Mistake(where, sequence, "sequence is missing", "remove the row or fill it")
    return letters_mistake(sequence, where)


def require_dna(sequences: Sequence[str]) -> None:
    """Checks sequences from Python.

    Raises:
        UserError: naming each that is empty or contains a letter that is no nucleotide.
    """
    checked = [sequence_mistake(one, f"sequences[{k}]") for k, one in enumerate(sequences)]
    if mistakes := [mistake for mistake in checked if mistake]:
        raise UserError(mistakes)


def letters_mistake(text: str, where: str) -> Mistake | None:
    """The mistake in a piece of a sequence: a letter that is no base."""
    if text.isascii() and not text.encode().translate(None, _LETTERS):  # as the regex, much faster
        return None
    if (illegal := _ILLEGAL.search(text)) is None:
        return None
    if words := _kmers(text):
        rule, fix = f"is a list of {len(words[0])}-mers", "give the plain sequence"
        return Mistake(
            where, text, rule, f"{fix}, here {words[0]}{''.join(word[-1] for word in words[1:9])}.."
        )
    rule = f"position {illegal.start() + 1} is no IUPAC nucleotide ({IUPAC})"
    return Mistake(where, illegal.group(), rule, "correct the letter, or write N")


def _kmers(text: str) -> list[str]:
    """The words of a text of overlapping k-mers, each one base further than the one before; else none."""
    words = text.split()
    k = len(words[0]) if words else 0
    if k < 2 or len(words) < 2 or any(map(_ILLEGAL.search, words)):
        return []
    overlap = all(len(b) == k and a[1:] == b[:-1] for a, b in pairwise(words))
    return words if overlap else []
