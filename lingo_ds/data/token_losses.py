"""What DNA loses on its way to tokens: bases that are cut off or unknown, and sequences that become equal."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from lingo_ds.utils.errors import Mistake, UserError

MAX_LOST_SHARE = 0.1
"""Share of unknown bases, or of sequences that are like another one, with which nothing useful is learned."""

BASES = np.zeros(128, np.int64)
BASES[[ord(letter) for letter in "ACGTUacgtu"]] = 1
"""1 for the letters whose loss counts: one of N or of an ambiguity code says little."""


@dataclass(frozen=True)
class TokenLosses:
    """What some sequences lost.

    Attributes:
        sequences, bases: number of the sequences and of their bases.
        cut: bases behind the longest length.
        unknown: bases A, C, G, T and U that the tokenizer has no token for, of those that were not cut.
        equal: sequences that have the same tokens as a different one.
    """

    sequences: int = 0
    bases: int = 0
    cut: int = 0
    unknown: int = 0
    equal: int = 0

    def __add__(self, other: "TokenLosses") -> "TokenLosses":
        mine, others = vars(self), vars(other)
        return TokenLosses(**{name: mine[name] + others[name] for name in mine})

    @property
    def unknown_share(self) -> float:
        """Share of the bases that were not cut."""
        return self.unknown / max(self.bases - self.cut, 1)

    @property
    def equal_share(self) -> float:
        """Share of the sequences."""
        return self.equal / max(self.sequences, 1)

    def require_few(self) -> None:
        """Checks that tokens still tell the sequences.

        Raises:
            UserError: where too much is lost.
        """
        if max(self.unknown_share, self.equal_share) > MAX_LOST_SHARE:
            fix = "set data.tokens=nucleotides, or choose a backbone whose tokenizer reads DNA"
            raise UserError(Mistake("data.tokens", "text", f"loses the DNA: {self.in_words()}", fix))

    def in_words(self) -> str:
        """The losses to the tokenizer, e.g. `4.2% of the bases became unknown tokens`; empty: none."""
        words = []
        if self.unknown:
            words.append(f"{_percent(self.unknown_share)} of the bases became unknown tokens")
        if self.equal:
            words.append(
                f"{self.equal:,} of {self.sequences:,} sequences have the same tokens as a different one"
            )
        return ", ".join(words)

    def cut_in_words(self) -> str:
        """The share of bases that were cut off; empty: none."""
        return f"{_percent(self.cut / max(self.bases, 1))} of the bases" if self.cut else ""


class Token(NamedTuple):
    """One token of a text: its id, and the characters from `begin` to `end` that it stands for."""

    id: int
    begin: int
    end: int


def unknown_bases(dna: str, tokens: Sequence[Token], *, start: int, unknown: int | None) -> int:
    """Counts the bases of a text that no token stands for, or only the token of the unknown.

    Args:
        dna: the sequence, at `start` of the text.
        tokens: of the whole text.
        start: number of characters before the sequence.
        unknown: id of the token of the unknown; None: the tokenizer has none.
    """
    before = np.concatenate([[0], BASES[np.frombuffer(dna.encode("ascii"), np.uint8)].cumsum()])
    table = np.array(tokens, np.int64).reshape(-1, 3)
    known = table[table[:, 0] != (-1 if unknown is None else unknown), 1:]
    begin, end = np.clip(known - start, 0, len(dna)).T
    return max(int(before[-1] - (before[end] - before[begin]).sum()), 0)


def _percent(share: float) -> str:
    return f"{share:.1%}" if share >= 0.001 else "less than 0.1%"
