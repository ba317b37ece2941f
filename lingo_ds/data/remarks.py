"""What is odd in the rows of a data set: windows that splits share, and labels that contradict each other."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np

from lingo_ds.data.examples import Example
from lingo_ds.data.readers.intervals import merge_intervals
from lingo_ds.data.sources.base import Source, in_own_split
from lingo_ds.data.splits import SplitSummary


def remark_on_overlaps(windows: Mapping[str, np.ndarray], chromosomes: Sequence[str]) -> Iterator[str]:
    """Says what splits have in common of a genome; nothing where that is nothing.

    Args:
        windows: (3, rows) chromosome, start and end, by split.
        chromosomes: names by number.
    """
    if common := overlaps(windows, chromosomes):
        yield (
            f"splits are not independent: {common}; whole chromosomes are, see "
            "data.intervals.dev_chromosomes and test_chromosomes"
        )


def remark_on_contradictions(summaries: Mapping[str, SplitSummary], source: Source) -> Iterator[str]:
    """Names two rows that no model can both get right; the source is read again for their places."""
    found = _find_contradictions(
        {name: np.asarray(summary.questions) for name, summary in summaries.items()},
        {name: np.asarray(summary.answers) for name, summary in summaries.items()},
    )
    if found:
        one, other = _places(source, found.first)
        yield (
            f"{found.texts:,} sequences have different labels in different rows, e.g. in {one} and "
            f"{other}: correct the labels, or remove these rows"
        )


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


class _Contradictions(NamedTuple):
    """Rows that ask the same and have different answers.

    Attributes:
        texts: number of the sequences that have more than one answer.
        first: two such rows, each as its split and its number there.
    """

    texts: int
    first: tuple[tuple[str, int], tuple[str, int]]


def _find_contradictions(
    questions: Mapping[str, np.ndarray], answers: Mapping[str, np.ndarray]
) -> _Contradictions | None:
    """Rows of all splits with the same question and different answers; None: there are none."""
    asked, answered = (np.concatenate([*of_split.values()]) for of_split in (questions, answers))
    order = np.lexsort((answered, asked))
    asked, answered = asked[order], answered[order]
    differs = np.flatnonzero((asked[1:] == asked[:-1]) & (answered[1:] != answered[:-1]))
    if not len(differs):
        return None
    ends = np.cumsum([len(rows) for rows in questions.values()])

    def place(row: int) -> tuple[str, int]:
        split = int(np.searchsorted(ends, row, side="right"))
        return list(questions)[split], row - int(ends[split - 1] if split else 0)

    at = differs[np.argmin(np.maximum(order[differs], order[differs + 1]))]
    one, other = sorted((int(order[at]), int(order[at + 1])))
    return _Contradictions(len(np.unique(asked[differs])), (place(one), place(other)))


def _places(source: Source, rows: Sequence[tuple[str, int]]) -> list[str]:
    """The places of rows, each given as its split and its number there; the source is read again for them."""
    counts: Counter[str] = Counter()
    places = {}
    for split, item in in_own_split(source.examples()):
        if isinstance(item, Example):
            if (split, counts[split]) in rows:
                places[split, counts[split]] = item.where
            counts[split] += 1
        if len(places) == len(rows):
            break
    return [places[row] for row in rows]
