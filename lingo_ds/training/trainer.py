"""The training loop: what changes weights is a line of it, what only observes is a hook."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from lingo_ds.data.batches import Forward, Prefetcher
from lingo_ds.distributed import watchdog
from lingo_ds.distributed.stop_signals import StopSignals
from lingo_ds.evaluation.evaluate import Evaluation
from lingo_ds.models.adapted_model import AdaptedModel
from lingo_ds.models.adapters.bank import Scalar
from lingo_ds.planning.plan import RunPlan
from lingo_ds.rank_sampling.sampler import MaskEvent, RankSampler
from lingo_ds.training.audit import Audit
from lingo_ds.training.losses import Loss
from lingo_ds.training.optimizer_step import OptimizerStep, StepStats
from lingo_ds.training.traffic import StepTraffic
from lingo_ds.utils.transfer import to_device


@dataclass
class StepInfo:
    """What hooks are told after each step; the last three fields are theirs to set, for the hooks after them.

    Attributes:
        step: number of the step, from 1.
        stats: what the optimizer step did.
        learning_rate: rate that it took.
        seconds: duration of the step.
        input_seconds: the part of `seconds` that was spent waiting for batches.
        micro_batches: forwards of this process.
        mask_event: the change of the masks, if there was one.
        audited: whether the processes were compared.
        end: why training ends with this step: `interrupted` or `early stopping`; None: it continues.
        evaluation: the evaluation on dev, if there was one.
        traffic: what the step's collectives moved, if it was counted.
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
        reason: `finished`, `early stopping` or `interrupted`.
    """

    steps: int
    skipped: int
    reason: str


def seed_dropout(seed: int, step: int, global_rank: int) -> None:
    """Seeds torch's generators from what a resumed run also knows, so that it drops the same entries."""
    torch.manual_seed(int(np.random.SeedSequence([seed, step, global_rank]).generate_state(1, np.uint64)[0]))


def _counts(batches: Sequence[Forward]) -> dict[Scalar, float]:
    """What is known of a step's sums before it is computed."""
    return {
        Scalar.EXAMPLES: sum(float(batch.weights.sum()) for batch in batches),
        Scalar.REAL_TOKENS: sum(batch.real_tokens for batch in batches),
        Scalar.ALL_TOKENS: sum(batch.computed_tokens for batch in batches),
        Scalar.SHARED_TOKENS: sum(batch.shared_tokens for batch in batches),
    }


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
        self._stop = StopSignals()

    def add_hook(
        self,
        after: Callable[[StepInfo], None],
        *,
        due: Callable[[StepInfo], bool] = every_step,
        before: Callable[[int], None] | None = None,
    ) -> None:
        """Adds a hook behind those that are there; see `Hook`."""
        self.hooks.append(Hook(after, due, before))

    def run(self, first_step: int) -> Outcome:
        """Trains from `first_step` to the plan's end, or until a signal or a hook ends it."""
        step = first_step - 1
        self._audit.check(step)
        with self._stop.installed():
            for step in range(first_step, self._plan.steps + 1):
                for hook in self.hooks:
                    if hook.before:
                        hook.before(step)
                info = self._step(step)
                for hook in self.hooks:
                    if hook.due(info):
                        hook.after(info)
                if info.end:
                    return Outcome(step, self._optimizer_step.skipped, info.end)
        return Outcome(step, self._optimizer_step.skipped, "finished")

    def _step(self, step: int) -> StepInfo:
        start = time.perf_counter()
        batches = self._batches.at(step)
        watchdog.beat()
        input_seconds = time.perf_counter() - start
        self._compute_gradient(step, batches)
        learning_rate = self._optimizer_step.learning_rate_at(step, self._plan)
        stats = self._optimizer_step.step(learning_rate=learning_rate)
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

    def _compute_gradient(self, step: int, batches: Sequence[Forward]) -> None:
        """Leaves this process's share of the gradient of one global batch in the bank."""
        seed_dropout(self._batches.seed, step, self._audit.env.global_rank)
        self._model.backbone.train()
        self._model.bank.zero_grad(_counts(batches))
        examples = len(self._batches.rows_at(step))
        for batch in batches:
            self._add_gradient(batch, examples)
            watchdog.beat()
        self._model.bank.finish_grad()
        self._model.backbone.require_partitioned()
        if self._stop.requested:
            self._model.bank.scalars[Scalar.STOP_REQUESTS].add_(1)

    def _add_gradient(self, batch: Forward, examples: int) -> None:
        """Adds one micro-batch's share of the mean loss over `examples` to the gradient."""
        bank = self._model.bank
        batch = to_device(batch, bank.device)
        loss = self._loss(batch.logits(self._model), batch.labels, batch.weights)
        loss.backward(torch.full_like(loss, self._optimizer_step.loss_scale.value / examples))
        bank.collect_grad()
        bank.scalars[Scalar.LOSS].add_(loss.detach())

    def _audit_due(self, step: int) -> bool:
        """After a final mask at once: processes of different size could not even reduce their gradients."""
        schedule = self._plan.schedule
        final = schedule is not None and step == schedule.final_step
        return final or step % self._audit.interval == 0 or step == self._plan.steps
