"""Splits that are drawn, and what splits have in common, against sets and loops over all pairs."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lingo_ds.data.remarks import overlaps
from lingo_ds.data.splits import SplitSummary, draw_splits, groups_of
from lingo_ds.utils.errors import UserError


def fill(seen: SplitSummary, sequences: list[str], *, windows: list[dict[str, str]]) -> None:
    rows = len(sequences)
    seen.add(sequences, [None] * rows, cells=[()] * rows, answers=[0] * rows, windows=windows)


def seen_sequences(sequences: list[str]) -> SplitSummary:
    seen = SplitSummary({})
    fill(seen, sequences, windows=[])
    return seen


def seen_windows(windows: list[tuple[str, int, int]]) -> SplitSummary:
    seen = SplitSummary({})
    fields = [{"chromosome": name, "start": str(start), "end": str(end)} for name, start, end in windows]
    fill(seen, ["A"] * len(windows), windows=fields)
    return seen


@given(
    groups=st.lists(st.integers(0, 30), min_size=20, max_size=120),
    dev=st.floats(0.1, 0.4),
    test=st.floats(0.1, 0.4),
    seed=st.integers(0, 5),
)
@settings(deadline=None)
def test_every_row_is_in_one_split_and_groups_are_whole(groups, dev, test, seed):
    groups = np.array(groups)
    try:
        rows = draw_splits(groups, {"dev": dev, "test": test}, seed=seed)
    except UserError:
        return
    assert sorted(np.concatenate(list(rows.values())).tolist()) == list(range(len(groups)))
    for name, share in (("dev", dev), ("test", test)):
        assert 1 <= len(rows[name]) <= max(round(share * len(groups)), 1)
        assert rows[name].tolist() == sorted(rows[name])
    sets = [set(groups[chosen]) for chosen in rows.values()]
    assert sum(map(len, sets)) == len(set.union(*sets)), "no group is in two splits"


def test_drawn_splits_follow_their_seed_alone():
    sequences = [f"{k}" for k in range(200)]
    first, again = (draw_splits(groups_of(seen_sequences(sequences)), {"dev": 0.2}, seed=0) for _ in range(2))
    other = draw_splits(groups_of(seen_sequences(sequences)), {"dev": 0.2}, seed=1)
    assert first["dev"].tolist() == again["dev"].tolist() != other["dev"].tolist()
    assert len(first["dev"]) == len(other["dev"]) == 40


@pytest.mark.parametrize(
    "groups, shares",
    [(np.zeros(50), {"dev": 0.1}), (np.arange(2), {"dev": 0.1, "test": 0.1}), (np.zeros(1), {"dev": 0.5})],
)
def test_what_cannot_be_split_is_refused(groups, shares):
    with pytest.raises(UserError, match="rows cannot be drawn"):
        draw_splits(groups, shares, seed=0)


def test_equal_sequences_are_one_group():
    groups = groups_of(seen_sequences(["A", "C", "A", "G", "C", "A"]))
    assert groups.tolist() == [0, 1, 0, 3, 1, 0]


places = st.tuples(st.sampled_from("ab"), st.integers(-20, 60), st.integers(1, 15)).map(
    lambda place: (place[0], place[1], place[1] + place[2])
)


def touch(one: tuple, other: tuple) -> bool:
    return one[0] == other[0] and one[1] < other[2] and other[1] < one[2]


@given(st.lists(places, min_size=1, max_size=25))
@settings(deadline=None)
def test_windows_that_overlap_are_one_group(windows):
    groups = groups_of(seen_windows(windows)).tolist()
    component = list(range(len(windows)))  # the oracle: join all pairs until nothing changes
    for _ in windows:
        for i, one in enumerate(windows):
            for j, other in enumerate(windows):
                if touch(one, other):
                    component[i] = component[j] = min(component[i], component[j])
    for i in range(len(windows)):
        for j in range(len(windows)):
            assert (groups[i] == groups[j]) == (component[i] == component[j])


@given(st.lists(places, min_size=1, max_size=15), st.lists(places, min_size=1, max_size=15))
@settings(deadline=None)
def test_overlaps_are_those_of_all_pairs(train, test):
    numbers = {"a": 0, "b": 1}
    arrays = {
        name: np.array([[numbers[c], start, end] for c, start, end in windows]).T
        for name, windows in (("train", train), ("test", test))
    }
    words = overlaps(arrays, ["a", "b"])
    count = sum(any(touch(one, other) for one in train) for other in test)
    assert (f"{count} of {len(test)} windows of test overlap windows of train" in words) == (count > 0)
    both = sorted({w[0] for w in train} & {w[0] for w in test})
    assert (f"have {len(both)} chromosomes in common ({', '.join(both)})" in words) == bool(both)
