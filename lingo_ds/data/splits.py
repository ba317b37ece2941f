"""Splits drawn from the training rows where the data has none, and what splits have in common."""

from array import array
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from lingo_ds.data.examples import SPLITS
from lingo_ds.data.readers.intervals import overlap_groups
from lingo_ds.utils.errors import Mistake, UserError


class SplitSummary:
    """What splits are compared by, of each row: 28 bytes, and 24 more of a window.

    Attributes:
        hashes: of each row's sequence or pair, the same where the sequence is.
        questions: of each row's whole text, the same where sequence and cells of the prompt's columns are.
        answers: of each row's target, the same for the same target.
        lengths: bases of each row's sequence.
    """

    def __init__(self, chromosomes: dict[str, int]):
        """Takes the numbers of chromosomes by name, shared by all splits and filled as chromosomes come."""
        self.hashes, self.questions, self.answers, self.lengths = (
            array("q"),
            array("q"),
            array("q"),
            array("I"),
        )
        self._chromosomes = chromosomes
        self._windows = array("q"), array("q"), array("q")

    def __len__(self) -> int:
        return len(self.hashes)

    def add(
        self,
        sequences: Sequence[str],
        pairs: Sequence[str | None],
        *,
        cells: Sequence[Sequence[str]],
        answers: Iterable[int],
        windows: Sequence[Mapping[str, str]],
    ) -> None:
        """Adds rows with the cells that prompts read; `windows` are fields of the rows that are windows."""
        hashes = list(map(hash, zip(sequences, pairs, strict=True) if any(pairs) else sequences))
        self.hashes.extend(hashes)
        asked = zip(hashes, map(tuple, cells), strict=True)
        self.questions.extend(map(hash, asked) if any(cells) else hashes)
        self.answers.extend(answers)
        self.lengths.extend(map(len, sequences))
        for window in windows:
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
