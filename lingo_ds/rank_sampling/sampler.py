"""Adaptive rank sampling (arXiv 2402.08075): the best triplets by score, some exchanged by chance."""

import logging
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Annotated, Any, NamedTuple, Protocol

import numpy as np
from pydantic import Field
from torch import Tensor

from lingo_ds.config.adapter_config import RankSamplingConfig
from lingo_ds.distributed import process_group
from lingo_ds.distributed.process_group import DistEnv
from lingo_ds.monitor.rank_statistics import SCORE_BINS, ScoreHistogram, score_histogram
from lingo_ds.rank_sampling.masks import (
    REFERENCE_DROP,
    bernoulli,
    best_triplets,
    draw_generator,
    exchange,
    protected_triplets,
)
from lingo_ds.rank_sampling.schedule import BudgetSchedule
from lingo_ds.utils.state import Count, State
from lingo_ds.utils.transfer import upload

logger = logging.getLogger(__name__)


class NamedSite(Protocol):
    """One adapted map, as the sampler knows it."""

    @property
    def name(self) -> str: ...


class TripletLayout(Protocol):
    """The adapted maps and how many triplets each of them has."""

    @property
    def sites(self) -> Sequence[NamedSite]: ...

    @property
    def ranks(self) -> Sequence[int]: ...


class TripletBank(Protocol):
    """What the sampler uses of the bank of adapters: triplets lie site after site, `kept` is (triplets,)."""

    @property
    def layout(self) -> TripletLayout: ...

    def scores(self) -> Tensor:
        """Importance of every triplet, (triplets,)."""
        ...

    def set_mask(self, kept: np.ndarray) -> None:
        """Masks all triplets but the kept ones; their values stay."""
        ...

    def zero_lam(self, kept: np.ndarray) -> None:
        """Sets lam to 0 outside the kept triplets."""
        ...

    def compact(self, kept: np.ndarray) -> None:
        """Stores only the kept triplets."""
        ...


class MaskEvent(NamedTuple):
    """What one change of the masks did.

    Attributes:
        step: optimizer step after which the masks changed.
        budget: b(t), the triplets to be kept.
        kept: number of triplets kept, over all sites.
        returned: number of these that were pruned before.
        final: True where the pruned triplets left storage.
    """

    step: Count
    budget: Count
    kept: Count
    returned: Count
    final: bool


class SamplerState(State):
    """`kept` as text, one 0 or 1 for each triplet, and all events."""

    kept: Annotated[str, Field(pattern="^[01]*$")]
    events: list[MaskEvent]


class ScoreState(State):
    """The histogram of `LastScores`."""

    histogram: ScoreHistogram | None


class LastScores:
    """The scores at the last change of the masks, on global rank 0 alone, for reports and pictures.

    Attributes:
        histogram: None before the first change, and on other processes.
    """

    def __init__(self) -> None:
        self.histogram: ScoreHistogram | None = None

    def state_dict(self) -> dict[str, Any]:
        """The histogram, as plain JSON values."""
        return {"histogram": self.histogram and self.histogram._asdict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` gave.

        Raises:
            ValueError: for anything else.
        """
        found = ScoreState.checked(state).histogram
        if found and [len(part) for part in found[1:]] != [SCORE_BINS + 1, SCORE_BINS, SCORE_BINS]:
            raise ValueError(f"histogram: {SCORE_BINS} bins are needed")
        self.histogram = found


class RankSampler:
    """Decides the masks on global rank 0 and applies them on every process.

    Attributes:
        seed: decides every draw, with the step.
        kept: (triplets,) of bool, those that the last change of the masks kept.
        events: all changes of the masks so far.
        scores: scores at the last change, for reports and pictures.
    """

    def __init__(
        self,
        bank: TripletBank,
        schedule: BudgetSchedule,
        config: RankSamplingConfig,
        *,
        seed: int,
        env: DistEnv,
        on_compact: Callable[[], None],
    ):
        self._bank, self._schedule, self._config = bank, schedule, config
        self.seed, self._env, self._on_compact = seed, env, on_compact
        self._initial = bank.layout
        self.kept = np.ones(schedule.initial, bool)
        self.events: list[MaskEvent] = []
        self.scores = LastScores()

    def after_step(self, step: int) -> MaskEvent | None:
        """Changes the masks where `step` (1-based, just finished) is a mask step."""
        if not self._schedule.is_mask_step(step):
            return None
        budget, final = self._schedule.budget_at(step), step == self._schedule.final_step
        decided = None
        if self._env.is_main:
            scores = self._bank.scores().double().cpu().numpy()
            decided = self._decide(scores, step, budget, final)
            self.scores.histogram = score_histogram(scores, decided, step=step)
        kept = self._agree(decided)
        event = MaskEvent(step, budget, int(kept.sum()), int((kept & ~self.kept).sum()), final)
        self.kept = kept
        self.events.append(event)
        if final:
            self._bank.compact(kept)
            self._on_compact()
        elif self._config.pruned_value == "zero" or self._config.mode == "reference":
            self._bank.zero_lam(kept)
        else:
            self._bank.set_mask(kept)
        logger.debug("masks changed: %s", event)
        return event

    def _decide(self, scores: np.ndarray, step: int, budget: int, final: bool) -> np.ndarray:
        config = self._config
        protected = protected_triplets(scores, self._bank.layout.ranks, config.min_rank)
        best = best_triplets(scores, budget, protected)
        if final or config.mode == "deterministic" or budget == len(scores):
            return best
        rho = self._schedule.rho_at(step, rho=config.rho, rho_final=config.rho_final)
        generator = draw_generator(self.seed, step)
        if config.mode == "bernoulli":
            return bernoulli(best, rho=rho, generator=generator) | protected
        if config.mode == "reference":
            return best & (protected | (generator.random(len(best)) >= REFERENCE_DROP))
        return exchange(
            best,
            scores,
            rho=rho,
            reintroduction=config.reintroduction,
            generator=generator,
            protected=protected,
        )

    def _agree(self, kept: np.ndarray | None) -> np.ndarray:
        """Global rank 0's decision, on every process, sent as packed bits."""
        bits = np.zeros(-(-self._schedule.initial // 8), np.uint8) if kept is None else np.packbits(kept)
        sent = process_group.broadcast_(upload(bits, self._env.device), what="masks")
        return np.unpackbits(sent.cpu().numpy(), count=self._schedule.initial).astype(bool)

    def kept_ranks(self) -> dict[str, int]:
        """Triplets of each site that the last change of the masks kept, by the name of its map."""
        starts = pairwise([0, *np.cumsum(self._initial.ranks)])
        return {
            site.name: int(self.kept[start:end].sum())
            for site, (start, end) in zip(self._initial.sites, starts, strict=True)
        }

    def state_dict(self) -> dict[str, Any]:
        """What was kept and all events, as plain JSON values; values and masks are in the bank."""
        return {
            "kept": "".join("01"[int(value)] for value in self.kept),
            "events": [event._asdict() for event in self.events],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` gave.

        Raises:
            ValueError: for anything else, the state of a run with another number of triplets included.
        """
        found = SamplerState.checked(state)
        if len(found.kept) != self._schedule.initial:
            raise ValueError(f"kept: one of 0 and 1 for each of {self._schedule.initial} triplets is needed")
        self.kept = np.array([char == "1" for char in found.kept], bool)
        self.events = found.events
