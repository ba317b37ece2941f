"""Masks from scores: budgets kept exactly, fair draws, all from (seed, step) alone."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lingo_ds.rank_sampling.masks import (
    bernoulli,
    best_triplets,
    draw_generator,
    exchange,
    protected_triplets,
)

CHI2_11 = 31.26
"""The chi-square value that 12 equal cells exceed once in 1,000 times (11 degrees of freedom)."""


def test_best_are_ordered_by_score_then_site_then_slot():
    scores = np.array([1.0, 3.0, 2.0, 3.0, 2.0, 2.0, 0.0])
    chosen = [np.flatnonzero(best_triplets(scores, budget)).tolist() for budget in range(8)]
    assert chosen[:4] == [[], [1], [1, 3], [1, 2, 3]]
    assert chosen[4:] == [[1, 2, 3, 4], [1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5, 6]]
    many = np.tile([0.0, 1.0, 2.0], 1000)
    assert np.array_equal(best_triplets(many, 1500), (many == 2) | ((many == 1) & (np.arange(3000) < 1500)))


@st.composite
def situations(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Scores as importance makes them (never negative, often 0, of any size) and the best of them."""
    score = st.one_of(st.just(0.0), st.floats(0, 1e30), st.floats(0, 1e-30), st.floats(0, 1))
    scores = np.array(draw(st.lists(score, min_size=1, max_size=40)))
    return scores, best_triplets(scores, draw(st.integers(0, len(scores))))


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    situations(),
    st.floats(0, 0.999),
    st.sampled_from(["uniform", "score"]),
    st.integers(0, 2**63 - 1),
    st.integers(1, 10**7),
)
def test_any_exchange_keeps_the_budget_exactly(
    situation: tuple[np.ndarray, np.ndarray], rho: float, reintroduction: str, seed: int, step: int
):
    scores, best = situation
    before = best.copy()
    generator = draw_generator(seed, step)
    kept = exchange(best, scores, rho=rho, reintroduction=reintroduction, generator=generator)
    assert (kept.dtype, kept.shape) == (np.dtype(bool), best.shape)
    assert kept.sum() == best.sum()
    assert np.array_equal(best, before)
    if best.all() or not best.any():
        assert np.array_equal(kept, best)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(situations(), st.sampled_from(["uniform", "score"]), st.integers(0, 1000))
def test_rho_zero_gives_the_best(situation: tuple[np.ndarray, np.ndarray], reintroduction: str, seed: int):
    scores, best = situation
    generator = draw_generator(seed, 1)
    kept = exchange(best, scores, rho=0.0, reintroduction=reintroduction, generator=generator)
    assert np.array_equal(kept, best)


@pytest.mark.parametrize("reintroduction", ["uniform", "score"])
@pytest.mark.parametrize("rho", [0.1, 0.35])
def test_members_leave_with_probability_rho(rho: float, reintroduction: str):
    draws, scores = 3000, np.linspace(2, 1, 24)
    best, left = best_triplets(scores, 12), np.zeros(24)
    for step in range(draws):
        generator = draw_generator(0, step)
        left += best & ~exchange(best, scores, rho=rho, reintroduction=reintroduction, generator=generator)
    assert not left[12:].any()
    deviation = (left[:12] - draws * rho) / np.sqrt(draws * rho * (1 - rho))
    assert np.abs(deviation).max() < 4  # each of them
    assert abs(deviation.sum()) / np.sqrt(12) < 4  # and on the whole


def returned(
    scores: np.ndarray, budget: int, reintroduction: str, *, draws: int, only: int | None
) -> Counter:
    """How often each triplet came back, over all draws or over those with `only` so many of them."""
    best, count = best_triplets(scores, budget), Counter()
    for step in range(draws):
        generator = draw_generator(7, step)
        kept = exchange(best, scores, rho=0.1, reintroduction=reintroduction, generator=generator)
        back = np.flatnonzero(kept & ~best).tolist()
        if only is None or len(back) == only:
            count.update(back)
    return count


def test_return_is_uniform_whatever_the_score():
    scores = np.concatenate([np.full(12, 10.0), np.linspace(5, 0, 12)])
    count = returned(scores, 12, "uniform", draws=6000, only=None)
    found = np.array([count[index] for index in range(12, 24)])
    assert found.sum() == count.total() > 5000
    assert ((found - found.mean()) ** 2 / found.mean()).sum() < CHI2_11


def test_return_by_score_is_in_proportion():
    scores = np.concatenate([np.full(12, 20.0), np.arange(12, 0, -1.0)])
    count = returned(scores, 12, "score", draws=6000, only=1)  # later draws of one step know no proportion
    found, expected = np.array([count[index] for index in range(12, 24)]), scores[12:] / scores[12:].sum()
    expected *= found.sum()
    assert found.sum() == count.total() > 1500
    assert ((found - expected) ** 2 / expected).sum() < CHI2_11
    uniform = np.full(12, found.mean())
    assert ((found - uniform) ** 2 / uniform).sum() > 5 * CHI2_11  # the test can tell them apart


def test_return_by_score_takes_triplets_without_score_when_it_must():
    scores = np.array([1.0, 1.0, 0.5, 0.0, 0.0])
    best, seen = best_triplets(scores, 2), set()
    for step in range(300):
        generator = draw_generator(0, step)
        kept = exchange(best, scores, rho=0.9, reintroduction="score", generator=generator)
        seen.add(tuple(np.flatnonzero(kept).tolist()))
    assert {(2, 3), (2, 4)} <= seen  # both left: the one with a score and another
    assert (3, 4) not in seen


def test_where_few_are_outside_all_members_leave_alike():
    """More leave than can come back: which of them stay is a matter of chance, not of order."""
    scores, left = np.linspace(2, 1, 14), np.zeros(12)
    best = best_triplets(scores, 12)
    for step in range(4000):
        generator = draw_generator(0, step)
        kept = exchange(best, scores, rho=0.5, reintroduction="uniform", generator=generator)
        left += ~kept[:12]
    assert left.sum() > 1.95 * 4000
    assert ((left - left.mean()) ** 2 / left.mean()).sum() < CHI2_11


def test_bernoulli_lets_members_leave_and_others_return_with_rho():
    draws, rho, best = 3000, 0.2, np.arange(24) < 10
    changed = np.zeros(24)
    for step in range(draws):
        changed += bernoulli(best, rho=rho, generator=draw_generator(0, step)) != best
    deviation = (changed - draws * rho) / np.sqrt(draws * rho * (1 - rho))
    assert np.abs(deviation).max() < 4
    for part in (deviation[:10], deviation[10:]):
        assert abs(part.sum()) / np.sqrt(len(part)) < 4
    assert np.array_equal(bernoulli(best, rho=0.0, generator=draw_generator(0, 0)), best)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.lists(st.integers(1, 6), min_size=1, max_size=6), st.integers(0, 4), st.data())
def test_any_protected_triplets_are_the_best_of_their_site_and_never_leave(
    ranks: list[int], min_rank: int, data: st.DataObject
):
    n = sum(ranks)
    scores = np.array(data.draw(st.lists(st.floats(0, 3), min_size=n, max_size=n)))
    protected = protected_triplets(scores, ranks, min_rank)
    ends = np.cumsum(ranks)
    for start, end in zip(ends - ranks, ends, strict=True):
        own, safe = scores[start:end], protected[start:end]
        assert safe.sum() == min(min_rank, len(own))
        if safe.any() and not safe.all():
            assert own[safe].min() >= own[~safe].max()
    budget = data.draw(st.integers(int(protected.sum()), n))
    best = best_triplets(scores, budget, protected)
    assert best.sum() == budget
    assert best[protected].all()
    inside, outside = scores[best & ~protected], scores[~best]
    assert not len(inside) or not len(outside) or inside.min() >= outside.max()
    generator = draw_generator(data.draw(st.integers(0, 99)), 1)
    kept = exchange(best, scores, rho=0.9, reintroduction="uniform", generator=generator, protected=protected)
    assert kept.sum() == budget
    assert kept[protected].all()


def test_draws_come_from_seed_and_step_alone():
    def draw(seed: int, step: int) -> list[float]:
        return draw_generator(seed, step).random(8).tolist()

    first = draw(3, 5)
    np.random.seed(0)
    draw(3, 6)
    assert draw(3, 5) == first
    others = [draw(3, 6), draw(4, 5), draw(5, 3), draw(2**63 - 1, 5), draw(3, 2**31)]
    assert len({tuple(numbers) for numbers in [first, *others]}) == 6
