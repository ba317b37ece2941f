"""Ids that occur more than once in a file: answers cannot be joined to their sequences by them."""

from array import array

import numpy as np

MAX_NAMED = 1 << 20
"""Ids from the beginning of a file among which the first double one is found by its name."""


class DoubledIds:
    """Counts ids by 8 bytes each."""

    def __init__(self) -> None:
        self._hashes = array("q")
        self._begin: set[int] = set()
        self._first: str | int | None = None

    def add(self, id: str | int) -> None:
        """Takes the id of one more row."""
        known = hash(id)
        self._hashes.append(known)
        if len(self._hashes) <= MAX_NAMED and self._first is None:
            if known in self._begin:
                self._first = id
            self._begin.add(known)

    def remark(self) -> str:
        """What is to be said of them; empty: each is there once."""
        doubled = len(self._hashes) - len(np.unique(np.asarray(self._hashes)))
        if not doubled:
            return ""
        named = "" if self._first is None else f", first {self._first!r}"
        return (
            f"{doubled:,} of {len(self._hashes):,} ids are those of an earlier row{named}: join answers to "
            "sequences by their order, not by id"
        )
