"""The best step on dev: whose adapter is kept, and when training stops early."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from lingo_ds.utils.state import Count, State


@dataclass
class Best:
    """The best evaluation so far.

    Attributes:
        step: step at which it was reached; 0: there is none yet.
        metrics: all metrics on dev at that step.
        at_budget: whether the final mask was in place.
        stale: eligible evaluations in a row that were no better.
    """

    step: int = 0
    metrics: dict[str, float | None] | None = None
    at_budget: bool = False
    stale: int = 0


class Selection:
    """Keeps the best adapter: any at the target budget before any that is not (`selection.after_final_mask`).

    `save` is called, on every process, with each new best.
    """

    def __init__(
        self, metric: str, *, after_final_mask: bool, patience: int | None, save: Callable[[Best], None]
    ):
        """Takes the dev metric, and whether a step before the final mask is second choice."""
        self._metric, self._after_final_mask = metric, after_final_mask
        self._patience, self._save = patience, save
        self.best = Best()

    def consider(self, step: int, metrics: dict[str, float | None], *, at_budget: bool) -> bool:
        """Compares one evaluation with the best; returns True where training should stop early."""
        candidate = Best(step, metrics, at_budget)
        if self._key(candidate) > self._key(self.best):
            self.best = candidate
            self._save(candidate)
        elif self._eligible(at_budget):
            self.best.stale += 1
        return self._patience is not None and self._eligible(at_budget) and self.best.stale >= self._patience

    def _eligible(self, at_budget: bool) -> bool:
        return at_budget or not self._after_final_mask

    def _key(self, best: Best) -> tuple[bool, bool, float]:
        value = (best.metrics or {}).get(self._metric)
        return best.step > 0, self._eligible(best.at_budget), float("-inf") if value is None else value

    def state_dict(self) -> dict[str, Any]:
        """The best evaluation, as plain JSON values."""
        return asdict(self.best)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` gave.

        Raises:
            ValueError: for anything else.
        """
        self.best = Best(**BestState.checked(state).model_dump())

    def reset(self) -> None:
        """Forgets the best evaluation: the next one is kept, whatever it reaches."""
        self.best = Best()


class BestState(State):
    """`Best` as it is saved."""

    step: Count
    metrics: dict[str, float | None] | None
    at_budget: bool
    stale: Count
