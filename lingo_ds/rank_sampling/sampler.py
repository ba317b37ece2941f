"""Adaptive rank sampling (arXiv 2402.08075): the best triplets by score, some exchanged by chance."""

import logging
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch

from lingo_ds import distributed
from lingo_ds.adapters.bank import AdapterBank
from lingo_ds.config import RankSamplingConfig
from lingo_ds.distributed import DistEnv
from lingo_ds.rank_sampling.schedule import BudgetSchedule

logger = logging.getLogger(__name__)


class MaskEvent(NamedTuple):
    """What one change of the masks did.

    Attributes:
        step: optimizer step after which the masks changed.
        budget: b(t).
        kept: triplets kept, over all sites.
        returned: of these, how many were pruned before.
        final: True where the pruned triplets left storage.
    """

    step: int
    budget: int
    kept: int
    returned: int
    final: bool


def best_triplets(scores: np.ndarray, budget: int) -> np.ndarray:
    """The `budget` best of `scores` (triplets,), ties in site order, then by slot: (triplets,) of bool."""
    best = np.zeros(len(scores), bool)
    best[np.argsort(-scores, kind="stable")[:budget]] = True
    return best


def exchange(
    best: np.ndarray, scores: np.ndarray, *, rho: float, reintroduction: str, generator: np.random.Generator
) -> np.ndarray:
    """Mode `exact`: each of the best leaves with probability rho, and as many come back from outside.

    Args:
        best: (triplets,) of bool, the set A.
        scores: (triplets,), used where `reintroduction` is `score`.
        rho: probability that a member of A leaves.
        reintroduction: `uniform` or `score` (in proportion to the score).
        generator: source of all draws.

    Returns:
        (triplets,) of bool with exactly as many True as `best`.
    """
    inside, outside = np.flatnonzero(best), np.flatnonzero(~best)
    leaving = inside[generator.random(len(inside)) < rho]
    leaving = generator.permutation(leaving)[: len(outside)]
    weights = None
    if reintroduction == "score":
        floor = np.finfo(np.float64).tiny + 1e-12 * scores.max(initial=0.0)  # every triplet stays possible
        weights = (scores[outside] + floor) / (scores[outside] + floor).sum()
    kept = best.copy()
    kept[leaving] = False
    kept[generator.choice(outside, len(leaving), replace=False, p=weights) if len(leaving) else leaving] = (
        True
    )
    return kept


def draw_generator(seed: int, step: int) -> np.random.Generator:
    """Counter-based randomness of one mask step, from (seed, step) alone: resuming gives the same draws."""
    return np.random.Generator(np.random.Philox(key=[seed, step]))


class RankSampler:
    """Decides the masks on global rank 0 and applies them on every process.

    Attributes:
        events: all changes of the masks so far.
    """

    def __init__(
        self,
        bank: AdapterBank,
        schedule: BudgetSchedule,
        config: RankSamplingConfig,
        *,
        seed: int,
        env: DistEnv,
        on_compact: Callable[[], None],
    ):
        self._bank, self._schedule, self._config = bank, schedule, config
        self._seed, self._env, self._on_compact = seed, env, on_compact
        self.kept = np.ones(schedule.initial, bool)
        self.events: list[MaskEvent] = []

    def after_step(self, step: int) -> MaskEvent | None:
        """Changes the masks where `step` (1-based, just finished) is a mask step."""
        if not self._schedule.is_mask_step(step):
            return None
        budget, final = self._schedule.budget_at(step), step == self._schedule.final_step
        kept = self._agree(self._decide(step, budget, final) if self._env.is_main else None)
        event = MaskEvent(step, budget, int(kept.sum()), int((kept & ~self.kept).sum()), final)
        self.kept = kept
        self.events.append(event)
        if final:
            self._bank.compact(kept)
            self._on_compact()
        elif self._config.pruned_value == "zero":
            self._bank.zero_lam(kept)
        else:
            self._bank.set_mask(kept)
        logger.debug("masks changed: %s", event)
        return event

    def _decide(self, step: int, budget: int, final: bool) -> np.ndarray:
        config = self._config
        scores = self._bank.scores().double().cpu().numpy()
        best = best_triplets(scores, budget)
        if final or config.mode == "deterministic":
            return best
        rho = self._schedule.rho_at(step, rho=config.rho, rho_final=config.rho_final)
        generator = draw_generator(self._seed, step)
        return exchange(best, scores, rho=rho, reintroduction=config.reintroduction, generator=generator)

    def _agree(self, kept: np.ndarray | None) -> np.ndarray:
        """Global rank 0's decision, on every process, sent as packed bits."""
        bits = np.zeros(-(-self._schedule.initial // 8), np.uint8) if kept is None else np.packbits(kept)
        sent = distributed.broadcast_(torch.from_numpy(bits).to(self._env.device))
        return np.unpackbits(sent.cpu().numpy(), count=self._schedule.initial).astype(bool)

    def restore(self, kept: np.ndarray, events: list[MaskEvent]) -> None:
        """Takes up the state of a checkpoint; the bank holds its own."""
        self.kept, self.events = kept, events
