"""The training loop."""

import logging
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch

from lingo_ds.config.train_config import CheckpointConfig
from lingo_ds.data.batches import Batch, Prefetcher
from lingo_ds.data.packing import Pack
from lingo_ds.distributed import watchdog
from lingo_ds.distributed.process_group import DistEnv
from lingo_ds.distributed.stop_signals import StopSignals
from lingo_ds.evaluation.evaluate import Evaluation
from lingo_ds.models.adapted_model import AdaptedModel
from lingo_ds.models.adapters.bank import Scalar
from lingo_ds.planning.plan import RunPlan
from lingo_ds.rank_sampling.sampler import MaskEvent, RankSampler
from lingo_ds.training.audit import Audit
from lingo_ds.training.losses import Loss
from lingo_ds.training.optimizer_step import BankUpdate, StepStats
from lingo_ds.training.selection import Selection
from lingo_ds.training.traffic import Meter, StepTraffic
from lingo_ds.utils.errors import Mistake, UserError

logger = logging.getLogger(__name__)


class StepInfo(NamedTuple):
    """What an observer is told after each step; `input_seconds` of `seconds` were a wait for batches."""

    step: int
    stats: StepStats
    learning_rate: float
    seconds: float
    input_seconds: float
    mask_event: MaskEvent | None
    evaluation: Evaluation | None
    traffic: StepTraffic


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
    """Seeds torch's generators from what a resumed run knows as well, so that it drops the same entries."""
    torch.manual_seed(int(np.random.SeedSequence([seed, step, global_rank]).generate_state(1, np.uint64)[0]))


class Trainer:
    """Runs a plan's steps. What changes the weights is a line of `run`; what only looks on is an observer.

    Attributes:
        seed: with step and process, decides dropout.
        skipped: steps whose gradient was not finite.
        skipped_last: how many of them came last, in a row.
    """

    def __init__(
        self,
        *,
        plan: RunPlan,
        seed: int,
        lr: Callable[[int], float],
        env: DistEnv,
        model: AdaptedModel,
        loss: Loss,
        batches: Prefetcher,
        update: BankUpdate,
        sampler: RankSampler | None,
        audit: Audit,
        audit_interval: int,
        evaluate: Callable[[], Evaluation],
        selection: Selection,
        save_checkpoint: Callable[[int], None],
        checkpoints: CheckpointConfig,
        most_skipped: int,
        meter: Meter,
    ):
        self._plan, self.seed, self._lr = plan, seed, lr
        self._env, self._model, self._loss, self._batches = env, model, loss, batches
        self._update, self._sampler, self._audit, self._audit_interval = (
            update,
            sampler,
            audit,
            audit_interval,
        )
        self._evaluate, self._selection = evaluate, selection
        self._save_checkpoint, self._checkpoints, self._most_skipped = (
            save_checkpoint,
            checkpoints,
            most_skipped,
        )
        self._stop, self._meter = StopSignals(), meter
        self.skipped = self.skipped_last = 0

    def run(self, first_step: int, observers: Sequence[Callable[[StepInfo], None]]) -> Outcome:
        """Trains from `first_step` to the plan's end, or until it is asked to stop."""
        step = first_step - 1
        self._audit.check(step)
        with self._stop.installed():
            for step in range(first_step, self._plan.steps + 1):
                start = time.perf_counter()
                batches = self._batches.at(step)
                watchdog.beat()
                input_seconds = time.perf_counter() - start
                self._meter.start()
                stats = self._step(step, batches)
                mask_event = self._sampler.after_step(step) if self._sampler else None
                if audited := self._audit_due(step):
                    self._audit(step)
                traffic = self._meter.finish(
                    micro_batches=len(batches),
                    masked=self._plan.schedule.initial if mask_event else 0,
                    audited=self._audit.parts if audited else 0,
                )
                seconds = time.perf_counter() - start
                evaluation = self._evaluate() if self._eval_due(step, stats.stop) else None
                done = evaluation and self._selection.consider(
                    step, evaluation.metrics, at_budget=self._at_budget(step)
                )
                if stats.stop or self._checkpoint_due(step):
                    self._save_checkpoint(step)
                info = StepInfo(
                    step, stats, self._lr(step), seconds, input_seconds, mask_event, evaluation, traffic
                )
                for observe in observers:
                    observe(info)
                if stats.stop or done:
                    return Outcome(step, self.skipped, "interrupted" if stats.stop else "early stopping")
        return Outcome(step, self.skipped, "finished")

    def _step(self, step: int, batches: Sequence[Batch | Pack]) -> StepStats:
        """Gradient of one global batch, and the update it leads to."""
        seed_dropout(self.seed, step, self._env.global_rank)
        self._model.backbone.train()
        self._model.bank.zero_grad()
        examples = len(self._batches.rows_at(step))
        for batch in batches:
            self._backward(batch, examples)
            watchdog.beat()
        self._model.backbone.require_partitioned()
        self._model.bank.scalars[Scalar.STOP_REQUESTS] += float(self._stop.requested)
        stats = self._update.step(learning_rate=self._lr(step))
        self._count_skipped(step, stats.skipped)
        return stats

    def _count_skipped(self, step: int, skipped: bool) -> None:
        """Takes note of a gradient that was not finite; too many in a row end the run.

        Raises:
            UserError: on every process alike. Overflows that only the loss scale of fp16 made do not count.
        """
        if not skipped:
            self.skipped_last = 0
            return
        self.skipped += 1
        self.skipped_last += self._update.loss_scale.value <= 1
        logger.warning("step %d: gradient is not finite; nothing was changed", step)
        if self.skipped_last >= self._most_skipped:
            rule = f"the gradient was not finite in {self.skipped_last} steps in a row, the last one {step}"
            fix = "lower train.learning_rate, or compute in bf16 or fp32"
            raise UserError(Mistake("train.max_skipped", self._most_skipped, rule, fix), on_all=True)

    def _backward(self, batch: Batch | Pack, examples: int) -> None:
        """Adds one micro-batch's share of the mean loss over `examples` to the gradient."""
        bank = self._model.bank
        logits = batch.logits(self._model)
        weights = batch.weights.to(logits.device)
        loss = self._loss(logits, batch.labels.to(logits.device), weights)
        (loss * (self._update.loss_scale.value / examples)).backward()
        bank.collect_grad()
        bank.scalars[Scalar.LOSS] += loss.detach()
        bank.scalars[Scalar.EXAMPLES] += weights.sum()
        bank.scalars[Scalar.REAL_TOKENS] += batch.real_tokens
        bank.scalars[Scalar.ALL_TOKENS] += batch.computed_tokens
        bank.scalars[Scalar.SHARED_TOKENS] += batch.shared_tokens

    def _eval_due(self, step: int, stopping: bool) -> bool:
        last = step == self._plan.steps
        return last or (step % self._plan.eval_interval == 0 and not stopping)

    def _checkpoint_due(self, step: int) -> bool:
        every, keep_best = self._checkpoints.every, self._checkpoints.keep_best
        if every is None:
            return False
        return (
            step % every == 0 or step == self._plan.steps or (keep_best and step == self._selection.best.step)
        )

    def _audit_due(self, step: int) -> bool:
        """After a final mask at once: processes of different size could not even reduce their gradients."""
        schedule = self._plan.schedule
        final = schedule is not None and step == schedule.final_step
        return final or step % self._audit_interval == 0 or step == self._plan.steps

    def _at_budget(self, step: int) -> bool:
        return self._plan.schedule is None or step >= self._plan.schedule.final_step
