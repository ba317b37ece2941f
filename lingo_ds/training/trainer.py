"""The training loop: what changes weights is a line of it, what only observes is a hook."""

import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from lingo_ds.data.batches import Prefetcher
from lingo_ds.distributed import watchdog
from lingo_ds.evaluation.evaluate import Evaluation
from lingo_ds.models.adapted_model import AdaptedModel
from lingo_ds.planning.plan import RunPlan
from lingo_ds.rank_sampling.sampler import MaskEvent, RankSampler
from lingo_ds.training.audit import Audit
from lingo_ds.training.joint_pass import Work
from lingo_ds.training.losses import Loss
from lingo_ds.training.optimizer_step import OptimizerStep, StepStats
from lingo_ds.training.traffic import StepTraffic


@dataclass
class StepInfo:
    """What hooks are told after each step; the last four fields are theirs to set, for the hooks after them.

    Attributes:
        step: number of the step, from 1.
        stats: what the optimizer step did.
        learning_rate: rate that it took.
        seconds: duration of the step.
        input_seconds: the part of `seconds` that was spent waiting for batches.
        micro_batches: forwards of this process.
        mask_event: the change of the masks, if there was one.
        audited: whether the processes were compared.
        end: why training ends with this step: `interrupted`, `paused` or `early stopping`; None: it
            continues.
        evaluation: the evaluation on dev, if there was one.
        traffic: what the step's collectives moved, if it was counted.
        collapsed: whether training is to go back to an earlier state after this step.
    """

    step: int
    stats: StepStats
    learning_rate: float
    seconds: float
    input_seconds: float
    micro_batches: int
    mask_event: MaskEvent | None
    audited: bool
    end: str | None = None
    evaluation: Evaluation | None = None
    traffic: StepTraffic | None = None
    collapsed: bool = False


UNFINISHED = ("interrupted", "paused")
"""Ends of training after which a run is to go on from its last checkpoint."""


def every_step(info: StepInfo) -> bool:
    """The rhythm of a hook that is called after every step."""
    return True


class Hook(NamedTuple):
    """An observer of the loop.

    Attributes:
        after: called after a step for which `due` is True.
        due: asked after every step, once the hooks before this one were called.
        before: called with the number of every step that begins.
    """

    after: Callable[[StepInfo], None]
    due: Callable[[StepInfo], bool] = every_step
    before: Callable[[int], None] | None = None


class Outcome(NamedTuple):
    """How training ended.

    Attributes:
        steps: the last finished step.
        skipped: steps whose gradient was not finite.
        reason: `finished`, `early stopping`, `paused` or `interrupted`.
    """

    steps: int
    skipped: int
    reason: str


class Trainer:
    """Runs a plan's steps; it holds no state of its own, so that its parts are all there is to save.

    Attributes:
        hooks: observers, called in this order.
    """

    def __init__(
        self,
        *,
        plan: RunPlan,
        model: AdaptedModel,
        batches: Prefetcher,
        loss: Loss,
        optimizer_step: OptimizerStep,
        sampler: RankSampler | None,
        audit: Audit,
        hooks: Sequence[Hook] = (),
    ):
        self._plan, self._model, self._batches, self._loss = plan, model, batches, loss
        self._optimizer_step, self._sampler, self._audit = optimizer_step, sampler, audit
        self.hooks = list(hooks)

    def add_hook(
        self,
        after: Callable[[StepInfo], None],
        *,
        due: Callable[[StepInfo], bool] = every_step,
        before: Callable[[int], None] | None = None,
    ) -> None:
        """Adds a hook behind those that are there; see `Hook`."""
        self.hooks.append(Hook(after, due, before))

    def steps(
        self,
        first_step: int,
        *,
        pause_after: int | None = None,
        restart: Callable[[int], int] = lambda step: step,
    ) -> Generator[Work, Sequence[float], Outcome]:
        """Trains from `first_step` to the plan's end, or until a signal or a hook ends it.

        Args:
            first_step: the first one, from 1.
            pause_after: step after which the run pauses, to go on later from a checkpoint; None: it does not.
            restart: takes a step at which the run has collapsed, goes back to an earlier state, and returns
                the number of steps that this one has taken.

        Yields:
            What the next step needs; it takes back what `OptimizerStep.measure` gave of the gradient.
        """
        step, last = first_step - 1, min(pause_after or self._plan.steps, self._plan.steps)
        self._audit.check(step)
        while step < last:
            step += 1
            for hook in self.hooks:
                if hook.before:
                    hook.before(step)
            info = yield from self._step(step)
            if step == last < self._plan.steps:
                info.end = info.end or "paused"
            for hook in self.hooks:
                if hook.due(info):
                    hook.after(info)
            if info.end:
                return Outcome(step, self._optimizer_step.skipped, info.end)
            if info.collapsed:
                step = restart(step)
        return Outcome(
            step, self._optimizer_step.skipped, "finished" if step >= self._plan.steps else "paused"
        )

    def _step(self, step: int) -> Generator[Work, Sequence[float], StepInfo]:
        start = time.perf_counter()
        batches = self._batches.at(step)
        watchdog.beat()
        input_seconds = time.perf_counter() - start
        measured = yield Work(
            self._model,
            batches,
            examples=len(self._batches.rows_at(step)),
            loss=self._loss,
            optimizer_step=self._optimizer_step,
            tokens=self._plan.forward_tokens,
            seed=(self._batches.seed, step, self._audit.env.global_rank),
        )
        learning_rate = self._optimizer_step.learning_rate_at(step, self._plan)
        stats = self._optimizer_step.move(measured, learning_rate=learning_rate)
        mask_event = self._sampler.after_step(step) if self._sampler else None
        if audited := self._audit_due(step):
            self._audit(step)
        return StepInfo(
            step=step,
            stats=stats,
            learning_rate=learning_rate,
            seconds=time.perf_counter() - start,
            input_seconds=input_seconds,
            micro_batches=len(batches),
            mask_event=mask_event,
            audited=audited,
            end="interrupted" if stats.stop else None,
        )

    def _audit_due(self, step: int) -> bool:
        """After a final mask at once: processes of different size could not even reduce their gradients."""
        schedule = self._plan.schedule
        final = schedule is not None and step == schedule.final_step
        return final or step % self._audit.interval == 0 or step == self._plan.steps
