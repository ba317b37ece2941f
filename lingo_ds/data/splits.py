"""Splits drawn from the training rows where the data has none, and what splits have in common."""

from array import array
from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np

from lingo_ds.data.examples import SPLITS
from lingo_ds.data.readers.intervals import merge_intervals, overlap_groups
from lingo_ds.utils.errors import Mistake, UserError


class SplitSummary:
    """What splits are compared by, of each row: 12 bytes, and 24 more of a window.

    Attributes:
        hashes: of each row's sequence or pair, the same where the sequence is.
        lengths: bases of each row's sequence.
    """

    def __init__(self, chromosomes: dict[str, int]):
        """Takes the numbers of chromosomes by name, shared by all splits and filled as chromosomes come."""
        self.hashes, self.lengths = array("q"), array("I")
        self._chromosomes = chromosomes
        self._windows = array("q"), array("q"), array("q")

    def __len__(self) -> int:
        return len(self.hashes)

    def add(
        self, sequences: Sequence[str], pairs: Sequence[str | None], fields: Sequence[Mapping[str, str]]
    ) -> None:
        """Adds rows; `fields` are those of the rows that are windows."""
        if any(pairs):
            self.hashes.extend(map(hash, zip(sequences, pairs, strict=True)))
        else:
            self.hashes.extend(map(hash, sequences))
        self.lengths.extend(map(len, sequences))
        for window in fields:
            number = self._chromosomes.setdefault(window["chromosome"], len(self._chromosomes))
            place = number, int(window["start"]), int(window["end"])
            for column, value in zip(self._windows, place, strict=True):
                column.append(value)

    def windows(self) -> np.ndarray | None:
        """(3, rows) int64: chromosome, start, end; None where rows are no windows."""
        windows = np.array([np.asarray(column) for column in self._windows])
        return windows if windows.size else None


def groups_of(seen: SplitSummary) -> np.ndarray:
    """(rows,) the group of each row, which stays in one split: overlapping windows, else equal sequences."""
    if (windows := seen.windows()) is None:
        _, first, group = np.unique(np.asarray(seen.hashes), return_index=True, return_inverse=True)
        return first[group]  # named by its first row, since hashes differ between processes
    chromosome, start, end = windows
    offset = chromosome * (1 << 44)  # beyond any chromosome, so that none reaches into the next
    return overlap_groups(offset + start, offset + end)


def draw_splits(groups: np.ndarray, shares: Mapping[str, float], *, seed: int) -> dict[str, np.ndarray]:
    """Draws splits from the training rows, each of whole groups.

    Args:
        groups: (rows,) the group of each row.
        shares: of all rows, by the name of the split.
        seed: of the draw.

    Returns:
        Ascending rows of each split, and of `train` what is left.

    Raises:
        UserError: where groups are too large for that.
    """
    _, group, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    order = np.random.default_rng(seed).permutation(len(sizes))
    owner = np.zeros(len(sizes), dtype=np.int64)  # 0: train
    for number, (name, share) in enumerate(shares.items(), 1):
        wanted = max(round(share * len(groups)), 1)
        free = order[(owner[order] == 0) & (sizes[order] <= wanted)]
        chosen = free[np.cumsum(sizes[free]) <= wanted]
        owner[chosen] = number
        if not len(chosen) or not (owner == 0).any():
            rule = (
                f"of {len(groups)} rows cannot be drawn: they make {len(sizes)} groups of equal sequences "
                "or overlapping windows"
            )
            fix = "give the data a split of its own, e.g. chromosomes in data.intervals"
            raise UserError(Mistake(f"data.{name}_fraction", share, rule, fix))
    names = ["train", *shares]
    return {name: np.flatnonzero(owner[group] == number) for number, name in enumerate(names)}


def count_duplicates(hashes: Mapping[str, np.ndarray]) -> dict[str, int]:
    """Counts rows whose sequence is there twice: inside train, or in dev or test and an earlier split."""
    train, dev, test = (np.sort(hashes[name]) for name in SPLITS)
    return {
        "train": int((train[1:] == train[:-1]).sum()),
        "dev_in_train": _count_in(train, dev),
        "test_in_train": _count_in(train, test),
        "test_in_dev": _count_in(dev, test),
    }


def _count_in(ascending: np.ndarray, values: np.ndarray) -> int:
    """Counts the values that are among others; np.isin takes ten times as long."""
    places = np.searchsorted(ascending, values)
    return int((ascending[np.minimum(places, len(ascending) - 1)] == values).sum())


def overlaps(windows: Mapping[str, np.ndarray], chromosomes: Sequence[str]) -> str:
    """A text on what splits have in common of the genome; empty where that is nothing.

    Args:
        windows: (3, rows) chromosome, start and end, by split.
        chromosomes: names by number.
    """
    found = []
    for one, other in combinations(windows, 2):
        both = np.intersect1d(windows[one][0], windows[other][0])
        shared = sum(_count_overlaps(_on(windows[one], k), _on(windows[other], k)) for k in both)
        if shared:
            total = windows[other].shape[1]
            found.append(f"{shared} of {total} windows of {other} overlap windows of {one}")
        if len(both):
            some = ", ".join([chromosomes[k] for k in both[:3]] + [".."] * (len(both) > 3))
            found.append(f"{one} and {other} have {len(both)} chromosomes in common ({some})")
    return "; ".join(found)


def _on(windows: np.ndarray, chromosome: int) -> np.ndarray:
    return windows[1:, windows[0] == chromosome]


def _count_overlaps(one: np.ndarray, other: np.ndarray) -> int:
    """Counts windows of `other`, (2, m), that overlap one of `one`, (2, n)."""
    return int(merge_intervals(*one).overlap(*other).sum())
