"""Which triplets stay, from their scores: the best, an exchange, or a Bernoulli draw; pure numpy."""

from collections.abc import Sequence

import numpy as np

REFERENCE_DROP = 0.1
"""Share of the best triplets that the published code zeroes as well."""


def protected_triplets(scores: np.ndarray, ranks: Sequence[int], min_rank: int) -> np.ndarray:
    """The `min_rank` best triplets of every site, which are never pruned, (triplets,) of bool.

    Args:
        scores: (triplets,), site after site.
        ranks: triplets of each site.
        min_rank: triplets that every site keeps at least.
    """
    protected = np.zeros(len(scores), bool)
    ends = np.cumsum(ranks)
    for start, end in zip(ends - ranks, ends, strict=True):
        protected[start + np.argsort(-scores[start:end], kind="stable")[:min_rank]] = True
    return protected


def best_triplets(scores: np.ndarray, budget: int, protected: np.ndarray | None = None) -> np.ndarray:
    """The set A: the `budget` best of `scores` (triplets,), equal ones in site order, then by slot.

    Protected triplets (triplets,) come first. Returns (triplets,) of bool.
    """
    best = np.zeros(len(scores), bool)
    order = np.argsort(-scores, kind="stable")
    if protected is not None:
        order = order[np.argsort(~protected[order], kind="stable")]
    best[order[:budget]] = True
    return best


def exchange(
    best: np.ndarray,
    scores: np.ndarray,
    *,
    rho: float,
    reintroduction: str,
    generator: np.random.Generator,
    protected: np.ndarray | None = None,
) -> np.ndarray:
    """Draws for mode `exact`: each of the best leaves with probability rho, as many return from outside.

    Args:
        best: (triplets,) of bool, the set A.
        scores: (triplets,), used where `reintroduction` is `score`.
        rho: probability that a member of A leaves.
        reintroduction: `uniform` or `score` (in proportion to the score).
        generator: source of all draws.
        protected: (triplets,) of bool, members of A that never leave.

    Returns:
        (triplets,) of bool with exactly as many True as `best`.
    """
    inside = np.flatnonzero(best if protected is None else best & ~protected)
    outside = np.flatnonzero(~best)
    leaving = inside[generator.random(len(inside)) < rho]
    leaving = generator.permutation(leaving)[: len(outside)]
    weights = None
    if reintroduction == "score":
        floor = np.finfo(np.float64).tiny + 1e-12 * scores.max(initial=0.0)  # every triplet stays possible
        weights = (scores[outside] + floor) / (scores[outside] + floor).sum()
    kept = best.copy()
    kept[leaving] = False
    if len(leaving):
        kept[generator.choice(outside, len(leaving), replace=False, p=weights)] = True
    return kept


def bernoulli(best: np.ndarray, *, rho: float, generator: np.random.Generator) -> np.ndarray:
    """Draws for mode `bernoulli`, as the paper reads: members of A stay with 1 - rho, others return with rho.

    The budget holds in expectation only where A is half of all triplets. Returns (triplets,) of bool.
    """
    return best ^ (generator.random(len(best)) < rho)


def draw_generator(seed: int, step: int) -> np.random.Generator:
    """The generator of one mask step, from (seed, step) alone, so that resuming gives the same draws."""
    return np.random.Generator(np.random.Philox(key=[seed, step]))
