"""Packs: what is in them, who computes which, and that the next step's are built meanwhile."""

import threading
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from unittest import mock

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lingo_ds.data import batches, packing
from lingo_ds.data.batches import PackBudget, Prefetcher, TrainBatches
from lingo_ds.data.packing import Pack, assign_to_ranks, common_prefix, eval_packs, make_pack
from lingo_ds.data.tokenized import COUNTS, SCHEMA, TokenizedSplit
from lingo_ds.utils.transfer import pinned


def split_of(examples: Sequence[Sequence[int]]) -> TokenizedSplit:
    """Rows of given tokens; row r has label r % 3."""
    rows = range(len(examples))
    table = {
        "input_ids": [list(example) for example in examples],
        "label": [row % 3 for row in rows],
        **{name: [0] * len(examples) for name in COUNTS},
    }
    return TokenizedSplit(pa.table(table, schema=SCHEMA))


def with_prefix(prefix: int, lengths: Sequence[int]) -> TokenizedSplit:
    """Examples that begin with the same tokens; the first of row r's own tokens is 1000 + r."""
    return split_of([[7] * prefix + list(range(1000 + r, 1000 + r + n)) for r, n in enumerate(lengths)])


def unpacked(pack: Pack) -> list[list[int]]:
    """Every example's tokens, by what the class says of its parts."""
    tokens = pack.input_ids.tolist()
    prefix, own = tokens[: pack.prefix], tokens[pack.prefix :]
    ends = np.cumsum([0, *pack.lengths]).tolist()
    assert ends[-1] == len(own)
    return [prefix + own[begin:end] for begin, end in pairwise(ends)]


def counted(packs: Sequence[Pack]) -> list[int]:
    """Rows of weight 1."""
    pairs = [pair for pack in packs for pair in zip(pack.rows.tolist(), pack.weights.tolist(), strict=True)]
    return [row for row, weight in pairs if weight]


# -- the common prefix


def assert_prefix(examples: list[list[int]], expected: int) -> None:
    assert common_prefix(split_of(examples), np.arange(len(examples))) == expected


def test_prefix_is_found_in_the_tokens():
    assert_prefix([[1, 2, 3, 4], [1, 2, 9, 4], [1, 2, 3, 5]], 2)
    assert_prefix([[1, 2, 3, 4], [1, 2, 3, 9], [1, 2, 3, 5]], 3)
    assert_prefix([[1, 2, 3], [2, 2, 3]], 0)
    assert_prefix([[1, 2, 3], [1, 5, 3], [2, 2, 3]], 0)


def test_prefix_leaves_every_example_a_token():
    assert_prefix([[1, 2, 3]] * 4, 2)
    assert_prefix([[1, 2, 3, 4, 5], [1, 2], [1, 2, 3]], 1)
    assert_prefix([[1, 2, 3], [1]], 0)
    assert_prefix([[4, 5, 6]], 2)


def test_prefix_is_that_of_the_rows_asked_for():
    split = split_of([[8, 8], [1, 2, 3, 4], [1, 2, 3, 5], [9, 9]])
    assert common_prefix(split, np.array([2, 1])) == 3
    assert common_prefix(split, np.array([1, 2, 3])) == 0


SOME = st.lists(st.lists(st.integers(1, 2), min_size=1, max_size=7), min_size=1, max_size=9)
"""Examples of two different tokens, so that many begin alike."""


@given(examples=SOME, compared=st.integers(1, 4))
@example(examples=[[1, 1, 1], [1, 1, 2], [2, 1, 1]], compared=2)
@example(examples=[[1, 1, 1], [1, 1, 2], [1, 2, 1], [1, 1, 1], [1, 1, 1]], compared=2)
@settings(deadline=None, max_examples=80)
def test_prefix_is_the_longest(examples, compared):
    expected = max(
        n for n in range(min(map(len, examples))) if all(e[:n] == examples[0][:n] for e in examples)
    )
    with mock.patch.object(packing, "ROWS_COMPARED", compared):
        assert_prefix(examples, expected)


# -- one pack


@given(examples=SOME, share=st.booleans(), data=st.data())
@settings(deadline=None, max_examples=80)
def test_pack_holds_its_examples_and_nothing_else(examples, share, data):
    rows = data.draw(st.lists(st.sampled_from(range(len(examples))), min_size=1, unique=True))
    weights = data.draw(st.lists(st.sampled_from([0.0, 1.0]), min_size=len(rows), max_size=len(rows)))
    split = split_of(examples)
    pack = make_pack(split, np.array(rows), np.array(weights), share_prefix=share)
    assert unpacked(pack) == [examples[row] for row in pack.rows.tolist()]
    assert sorted(pack.rows.tolist()) == sorted(rows)
    assert pack.labels.tolist() == [row % 3 for row in pack.rows.tolist()]
    assert dict(zip(pack.rows.tolist(), pack.weights.tolist(), strict=True)) == dict(
        zip(rows, weights, strict=True)
    )
    assert list(pack.lengths) == sorted(pack.lengths) and min(pack.lengths) > 0
    longest = common_prefix(split, np.array(rows)) if share and len(rows) > 1 else 0
    assert pack.prefix == longest
    assert pack.computed_tokens == pack.prefix + sum(pack.lengths)
    assert pack.real_tokens == sum(len(examples[row]) for row in counted([pack]))
    if all(weights):  # what is real is computed, or shared with an example that is
        assert pack.real_tokens - pack.shared_tokens == pack.computed_tokens


def test_tokens_of_a_pack_are_counted():
    split = with_prefix(5, [4, 2, 3])
    pack = make_pack(split, np.arange(3), np.array([1.0, 1.0, 0.0]), share_prefix=True)
    assert pack.lengths == (2, 3, 4)
    assert (pack.real_tokens, pack.computed_tokens, pack.shared_tokens) == (9 + 7, 5 + 9, 5)
    assert pack.input_ids.dtype == pack.labels.dtype == pack.rows.dtype == torch.int64
    filler = make_pack(split, np.array([1]), np.zeros(1), share_prefix=True)
    assert (filler.prefix, filler.lengths) == (0, (7,))
    assert (filler.real_tokens, filler.computed_tokens, filler.shared_tokens) == (0, 7, 0)
    alone = make_pack(split, np.arange(3), np.ones(3), share_prefix=False)
    assert (alone.prefix, alone.lengths, alone.shared_tokens) == (0, (7, 8, 9), 0)


# -- who computes which


def loads(lengths: np.ndarray, parts: list[np.ndarray]) -> list[int]:
    return [int(lengths[part].sum()) for part in parts]


@given(
    lengths=st.lists(st.integers(1, 60), min_size=1, max_size=40),
    world=st.integers(1, 4),
    budget=st.integers(60, 200),
    most=st.none() | st.integers(1, 9),
    turn=st.integers(0, 9),
)
@settings(deadline=None, max_examples=120)
def test_examples_are_dealt_evenly(lengths, world, budget, most, turn):
    lengths = np.array(lengths)
    shares = assign_to_ranks(lengths, world=world, budget=budget, most=most, turn=turn)
    assert len(shares) == world
    assert len({len(packs) for packs in shares}) == 1, "as many forwards on every process"
    dealt = [place for packs in shares for pack in packs for place in pack.tolist()]
    assert sorted(dealt) == list(range(len(lengths)))
    for packs in shares:
        assert all(len(pack) <= (most or len(lengths)) for pack in packs)
        assert all(load <= budget for load in loads(lengths, packs))
        assert np.ptp(loads(lengths, packs)) <= lengths.max()
    by_process = [sum(loads(lengths, packs)) for packs in shares]
    assert np.ptp(by_process) <= lengths.max()
    if most is None and budget > lengths.max():  # no more packs than can be needed
        assert len(shares[0]) <= max(1, -(-max(by_process) // (budget - lengths.max())))


def test_the_longest_are_dealt_first():
    lengths = np.array([1, 1, 1, 1, 1, 1, 1, 1, 8])
    assert [sum(loads(lengths, packs)) for packs in assign_to_ranks(lengths, world=2, budget=99)] == [8, 8]


def test_packs_are_as_few_as_budget_and_most_allow():
    alike = np.full(24, 10)
    assert [len(packs) for packs in assign_to_ranks(alike, world=2, budget=40)] == [3, 3]
    assert [len(packs) for packs in assign_to_ranks(alike, world=2, budget=1000)] == [1, 1]
    assert [len(packs) for packs in assign_to_ranks(alike, world=2, budget=1000, most=5)] == [3, 3]


def test_example_longer_than_the_budget_has_a_pack_to_itself():
    (packs,) = assign_to_ranks(np.array([25, 1, 1]), world=1, budget=10)
    assert [0] in [pack.tolist() for pack in packs]


def test_example_far_longer_than_the_budget_has_a_pack_to_itself():
    (packs,) = assign_to_ranks(np.array([100, 1, 1]), world=1, budget=10)
    assert [0] in [pack.tolist() for pack in packs]


def test_the_process_that_has_more_takes_turns():
    lengths = np.array([5, 5, 5, 5])
    first = [sum(loads(lengths, assign_to_ranks(lengths, world=3, budget=99, turn=t)[0])) for t in range(6)]
    assert sorted(first[:3]) == [5, 5, 10]
    assert first[3:] == first[:3]


def mixed(rows: int) -> list[int]:
    """Lengths as of several tasks, and some without a plan."""
    draw = np.random.default_rng(5)
    tasks = draw.choice([70, 101, 300, 500], rows)
    lengths = draw.lognormal(4.8, 0.6, rows).astype(int).clip(10, 900)
    return np.where(draw.random(rows) < 0.6, tasks, lengths).tolist()


def trainers(
    split: TokenizedSplit, *, world: int, batch: int = 32, budget: int = 4000, most: int | None = None
) -> list[TrainBatches]:
    """One per process."""
    return [
        TrainBatches(
            split,
            seed=3,
            batch=batch,
            rank=rank,
            world=world,
            forwards=PackBudget(budget, common_prefix(split, np.arange(len(split))), most),
        )
        for rank in range(world)
    ]


@pytest.fixture(scope="module")
def real() -> TokenizedSplit:
    return with_prefix(15, mixed(500))


@pytest.mark.parametrize("world", [2, 3, 4])
@pytest.mark.parametrize("lengths", [mixed(500), [100] * 500], ids=["mixed", "alike"])
def test_processes_have_the_same_tokens_over_an_epoch(lengths, world):
    split = with_prefix(15, lengths)
    processes = trainers(split, world=world)
    (alone,) = trainers(split, world=1)
    tokens, seen = np.zeros(world), []
    steps = -(-len(split) // 32)
    for step in range(1, steps + 1):
        shares = [process.at(step) for process in processes]
        assert len({len(share) for share in shares}) == 1
        rows = [row for share in shares for row in counted(share)]
        assert len(rows) == (32 if step < steps else len(split) - 32 * (steps - 1))
        assert sorted(rows) == sorted(counted(alone.at(step))) == sorted(alone.rows_at(step).tolist())
        assert all(pack.computed_tokens <= 4000 and pack.prefix >= 15 for share in shares for pack in share)
        tokens += [sum(pack.computed_tokens for pack in share) for share in shares]
        seen += rows
    assert sorted(seen) == list(range(len(split)))
    assert np.ptp(tokens) < 0.03 * tokens.mean()


def test_prefix_counts_once_towards_the_budget():
    (alone,) = trainers(with_prefix(50, [10] * 16), world=1, batch=16, budget=90)
    assert [(pack.prefix, pack.lengths) for pack in alone.at(1)] == [(50, (10,) * 4)] * 4


def test_small_packs_hold_the_batch_too(real):
    for world in (1, 3):
        shares = [process.at(2) for process in trainers(real, world=world, budget=1000, most=3)]
        assert len(shares[0]) > 2
        assert len({len(share) for share in shares}) == 1
        assert sorted(row for share in shares for row in counted(share)) == sorted(
            trainers(real, world=1)[0].rows_at(2).tolist()
        )
        assert all(len(pack.rows) <= 3 and pack.computed_tokens <= 1000 for share in shares for pack in share)


def test_fillers_stand_in_where_examples_are_fewer_than_packs():
    split = with_prefix(4, [9, 5, 7])
    shares = [process.at(1) for process in trainers(split, world=4)]
    assert [len(share) for share in shares] == [1] * 4
    assert sorted(row for share in shares for row in counted(share)) == [0, 1, 2]
    (filler,) = [pack for share in shares for pack in share if not pack.weights.any()]
    assert filler.real_tokens == 0 and filler.computed_tokens > 0


# -- evaluation


@given(
    lengths=st.lists(st.integers(1, 60), min_size=1, max_size=40),
    budget=st.integers(62, 300),
    world=st.integers(1, 6),
)
@example(lengths=[1] * 30 + [60] * 10, budget=200, world=1)
@settings(deadline=None, max_examples=80)
def test_evaluation_has_every_row_once_in_packs_of_like_length(lengths, budget, world):
    split = with_prefix(2, lengths)
    shares = [
        list(eval_packs(split, budget=budget, rank=rank, world=world, share_prefix=True))
        for rank in range(world)
    ]
    assert len({len(share) for share in shares}) == 1, "as many forwards on every process"
    in_turn = [pack for packs in zip(*shares, strict=True) for pack in packs]
    rows = counted(in_turn)
    assert sorted(rows) == list(range(len(lengths)))
    assert [lengths[row] for row in rows] == sorted(lengths)
    whole = split.lengths
    assert whole.sum() <= budget * len(in_turn)
    for pack in in_turn:
        assert unpacked(pack) == [split.tokens(row).tolist() for row in pack.rows.tolist()]
        assert whole[pack.rows].sum() <= whole.sum() / len(in_turn) + whole[pack.rows].max()
        assert pack.prefix == (2 if len(pack.rows) > 1 else 0)
        assert pack.weights.all() or (len(pack.rows) == 1 and not pack.weights.any())
    assert len(shares[0]) <= -(-max(1, -(-int(whole.sum()) // budget)) // world)


def test_tiny_split_on_many_processes():
    split = with_prefix(2, [3, 5])
    shares = [
        list(eval_packs(split, budget=1000, rank=rank, world=5, share_prefix=True)) for rank in range(5)
    ]
    assert [len(share) for share in shares] == [1] * 5
    assert sorted(row for share in shares for row in counted(share)) == [0, 1]


# -- ahead of the step


class Watched(TrainBatches):
    """Notes which step is built in which thread, and does something first, if it is told to."""

    def __init__(self, split: TokenizedSplit):
        super().__init__(split, seed=3, batch=6, forwards=PackBudget(1000, 3), rank=0, world=1)
        self.built: list[tuple[int, str]] = []
        self.before: Callable[[int], None] = lambda step: None
        self._changed = threading.Condition()

    def at(self, step: int) -> list[Pack]:
        self.before(step)
        packs = super().at(step)
        with self._changed:
            self.built.append((step, threading.current_thread().name))
            self._changed.notify_all()
        return packs

    def wait_for(self, step: int) -> str:
        """Which thread built it."""
        with self._changed:
            assert self._changed.wait_for(lambda: step in dict(self.built), timeout=20)
        return dict(self.built)[step]


@pytest.fixture
def watched() -> Watched:
    return Watched(with_prefix(3, mixed(40)))


@pytest.fixture
def prefetch(watched) -> Iterator[Prefetcher]:
    prefetch = Prefetcher(watched, last_step=30, ready=lambda pack: pack)
    yield prefetch
    prefetch.close()


def content(packs: list[Pack]) -> list[tuple]:
    return [(p.input_ids.tolist(), p.prefix, p.lengths, p.rows.tolist(), p.weights.tolist()) for p in packs]


@pytest.mark.parametrize("steps", [range(1, 31), [5, 6, 2, 3, 3, 4, 30, 29, 30, 1, 8, 9]], ids=["all", "any"])
def test_batches_are_those_of_the_step_in_any_order(watched, prefetch, steps):
    plain = Watched(watched._split)
    for step in steps:
        assert content(prefetch.at(step)) == content(plain.at(step))
        assert prefetch.rows_at(step).tolist() == plain.rows_at(step).tolist()


def test_next_step_is_built_meanwhile_and_once(watched, prefetch):
    main = threading.current_thread().name
    prefetch.at(1)
    assert watched.wait_for(2) != main  # before anybody asked
    for step in (2, 3, 4):
        prefetch.at(step)
    assert watched.wait_for(5) != main
    assert [step for step, _ in watched.built] == [1, 2, 3, 4, 5]
    prefetch.at(30)
    assert watched.wait_for(30) == main
    prefetch._worker.submit(int).result()  # whatever else was to be built is built now
    assert max(step for step, _ in watched.built) == 30  # nothing is after the last step


def test_batches_of_another_seed_are_not_used(watched, prefetch):
    plain = Watched(watched._split)
    for step, seed in enumerate([3, 3, 8, 8, 3, 9, 9], start=1):
        prefetch.seed = plain.seed = seed
        assert prefetch.seed == seed
        assert content(prefetch.at(step)) == content(plain.at(step))
        watched.wait_for(step + 1)


def test_seed_that_changes_while_the_next_epoch_is_drawn(watched, prefetch, monkeypatch):
    """An audit may repair the seed at any time."""
    begun, changed, draw = threading.Event(), threading.Event(), batches.epoch_order

    def slow(rows: int, *, seed: int, epoch: int) -> np.ndarray:
        order = draw(rows, seed=seed, epoch=epoch)
        if threading.current_thread() is not threading.main_thread():
            begun.set()
            assert changed.wait(20)
        return order

    plain = Watched(watched._split)
    prefetch.at(6)  # the first epoch has 7 steps
    watched.wait_for(7)
    monkeypatch.setattr(batches, "epoch_order", slow)
    prefetch.at(7)
    assert begun.wait(20)
    prefetch.seed = plain.seed = 8
    changed.set()
    watched.wait_for(8)
    assert content(prefetch.at(8)) == content(plain.at(8))


def test_mistake_in_the_background_reaches_the_loop(watched, prefetch):
    def fail(step: int) -> None:
        if step == 3:
            raise OSError("the file is gone")

    watched.before = fail
    prefetch.at(1)
    assert content(prefetch.at(2)) == content(Watched(watched._split).at(2))
    with pytest.raises(OSError, match="the file is gone"):
        prefetch.at(3)


def test_close_ends_the_thread(watched):
    before = set(threading.enumerate())
    prefetch = Prefetcher(watched, last_step=30, ready=lambda pack: pack)
    prefetch.at(1)
    watched.wait_for(2)
    assert set(threading.enumerate()) > before
    prefetch.close()
    assert set(threading.enumerate()) == before


@pytest.mark.gpu
def test_pinned_batches_are_the_same(watched):
    prefetch, plain = Prefetcher(watched, last_step=3, ready=pinned), Watched(watched._split)
    for step in (1, 2):
        packs = prefetch.at(step)
        assert all(pack.input_ids.is_pinned() and pack.labels.is_pinned() for pack in packs)
        assert content(packs) == content(plain.at(step))
    prefetch.close()
