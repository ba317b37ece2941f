"""Notices a run that had learned and is back at chance: by its training loss alone, on any task.

Chance is the loss of the best constant answer. What a run has gained on it must stand out of the noise before
it can be lost, so that a run which never left chance, or hardly, has not collapsed.
"""

import logging
import math
import statistics
from collections import deque
from typing import Any, NamedTuple, Protocol

from lingo_ds.distributed import agreement
from lingo_ds.training.losses import Loss, constant_loss
from lingo_ds.training.setup import RunSetup
from lingo_ds.utils.state import Count, State

logger = logging.getLogger(__name__)

WINDOW, MIN_WINDOW = 50, 10
"""Steps over which the loss is averaged: a twentieth of the run, between these two."""

LEARNED, NOISE = 0.05, 4.0
"""A run has learned once its mean loss lies below chance by this share of it and so many standard errors."""

LOST = 0.9
"""Share of what was gained after whose loss a run has collapsed."""

MOST = 2.0
"""What a step's loss counts at most, in times chance: one bad step among good ones is no collapse."""

MAX_RESTARTS = 3
"""Restarts of a run; after them it is only warned."""


class Collapse(NamedTuple):
    """A collapse, and what followed.

    Attributes:
        step: step at which it was noticed.
        loss: mean loss of the last steps.
        restarted_from: finished steps of the checkpoint that training went back to; None: it went on.
        learning_rate: peak learning rate from then on.
    """

    step: Count
    loss: float
    restarted_from: Count | None
    learning_rate: float


class CollapseState(State):
    """What a `CollapseWatch` remembers."""

    recent: list[float]
    gain: float
    sound_step: Count
    collapses: list[Collapse]


class StepLoss(Protocol):
    """What a watch looks at of a step's statistics."""

    @property
    def loss(self) -> float: ...

    @property
    def skipped(self) -> bool: ...


class CollapseWatch:
    """Follows the mean loss of the last steps.

    The loss is the mean of the whole global batch, so that every process notices the same at the same step.

    Attributes:
        collapses: all that were noticed.
        sound_step: no mean loss of steps up to this one shows a collapse.
    """

    def __init__(self, chance: float, *, steps: int, learning_rate: float):
        """Takes the loss of the best constant answer, and length and peak learning rate of the run."""
        self._chance, self._learning_rate = chance, learning_rate
        self._window = min(WINDOW, max(MIN_WINDOW, steps // 20))
        self.collapses: list[Collapse] = []
        self._forget()

    def _forget(self) -> None:
        self._recent: deque[float] = deque(maxlen=self._window)
        self._gain, self.sound_step = 0.0, 0

    @property
    def restarts(self) -> int:
        """How often training went back to a checkpoint."""
        return sum(one.restarted_from is not None for one in self.collapses)

    @property
    def rate_factor(self) -> float:
        """Factor on the run's learning rate: a half for every restart."""
        return 0.5**self.restarts

    @property
    def given_up(self) -> bool:
        """Whether training went on after a collapse: nothing more is noticed."""
        return any(one.restarted_from is None for one in self.collapses)

    def follow(self, step: int, stats: StepLoss) -> bool:
        """Takes in a step; True where its loss shows that the run has collapsed."""
        if stats.skipped or self.given_up:
            return False
        self._recent.append(min(stats.loss, MOST * self._chance))
        if len(self._recent) < self._window:
            return False
        gain = self._chance - self._mean
        error = statistics.stdev(self._recent) / math.sqrt(self._window)
        if gain > max(LEARNED * self._chance, NOISE * error):
            self._gain = max(self._gain, gain)
        if gain > self._gain / 2:
            self.sound_step = max(step - self._window, 0)
        return self._gain > 0 and gain < (1 - LOST) * self._gain

    @property
    def _mean(self) -> float:
        return statistics.fmean(self._recent)

    def note(self, step: int, *, restarted_from: int | None) -> Collapse:
        """Notes a collapse, and that training goes on or back; what was gained before is forgotten."""
        self.collapses.append(Collapse(step, self._mean, restarted_from, self._learning_rate))
        found = self.collapses[-1]._replace(learning_rate=self._learning_rate * self.rate_factor)
        self.collapses[-1] = found
        self._forget()
        return found

    def told(self, step: int) -> str:
        """A collapse in words."""
        return (
            f"step {step}: the loss is back at chance: {self._mean:.3f} in the last {self._window} steps, "
            f"after {self._chance - self._gain:.3f}; the best constant answer has {self._chance:.3f}"
        )

    def state_dict(self) -> dict[str, Any]:
        """All that it remembers, as plain JSON values."""
        return {
            "recent": list(self._recent),
            "gain": self._gain,
            "sound_step": self.sound_step,
            "collapses": [one._asdict() for one in self.collapses],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` gave.

        Raises:
            ValueError: for anything else.
        """
        found = CollapseState.checked(state)
        self._recent = deque(found.recent, maxlen=self._window)
        self._gain, self.sound_step, self.collapses = found.gain, found.sound_step, list(found.collapses)


def make_collapse_watch(setup: RunSetup, loss: Loss) -> CollapseWatch:
    """Follows a run's loss, beside the same chance on every process."""
    labels, env = setup.data.splits["train"].labels, setup.env
    chance = constant_loss(loss, labels, outputs=setup.data.classes, device=env.device)
    chance = agreement.broadcast_json(chance, env)
    return CollapseWatch(chance, steps=setup.plan.steps, learning_rate=setup.plan.learning_rate)
