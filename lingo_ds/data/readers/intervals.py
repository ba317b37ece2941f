"""Which intervals overlap, by one sort and one sweep; all are half-open: [start, end)."""

from typing import NamedTuple

import numpy as np


class MergedIntervals(NamedTuple):
    """The union of intervals as intervals that neither overlap nor touch.

    Attributes:
        starts, ends: (n,) int64, ascending.
    """

    starts: np.ndarray
    ends: np.ndarray

    def overlap(self, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
        """(m,) bool: which of other intervals overlap the union."""
        before = np.searchsorted(self.starts, ends) - 1  # the last one that begins before the other's end
        return (before >= 0) & (self.ends[before] > starts)


def merge_intervals(starts: np.ndarray, ends: np.ndarray) -> MergedIntervals:
    """The union of intervals, one or more; those that touch become one."""
    _, starts, reach = _sweep(starts, ends)
    first = np.concatenate([[True], starts[1:] > reach[:-1]])
    last = np.concatenate([first[1:], [True]])
    return MergedIntervals(starts[first], reach[last])


def overlap_groups(starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """(n,) int64 group of each interval: those that overlap, also through others, are in one group.

    Intervals that only touch are in different groups.
    """
    order, starts, reach = _sweep(starts, ends)
    groups = np.empty(len(starts), dtype=np.int64)
    groups[order] = np.cumsum(np.concatenate([[True], starts[1:] >= reach[:-1]])) - 1
    return groups


class _Sweep(NamedTuple):
    """Intervals by their starts: (n,) their places before, starts, and the largest end up to each."""

    order: np.ndarray
    starts: np.ndarray
    reach: np.ndarray


def _sweep(starts: np.ndarray, ends: np.ndarray) -> _Sweep:
    order = np.argsort(starts, kind="stable")
    return _Sweep(order, starts[order], np.maximum.accumulate(ends[order]))
