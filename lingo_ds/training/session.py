"""One training run: the parts of its loop, what a checkpoint holds of them, what the report says."""

import logging
from collections.abc import Generator, Sequence
from contextlib import closing
from functools import partial
from typing import Any

from lingo_ds.data.batches import MicroBatches, PackBudget, Prefetcher, TrainBatches, ready
from lingo_ds.data.task import Task
from lingo_ds.distributed import agreement
from lingo_ds.evaluation.evaluate import Evaluation, evaluate_split
from lingo_ds.models.adapted_model import AdaptedModel
from lingo_ds.monitor.progress import Progress
from lingo_ds.monitor.tensorboard import Tracker
from lingo_ds.planning.remedies import remedy_of_run
from lingo_ds.planning.traffic import sharding_of_plan
from lingo_ds.rank_sampling.sampler import RankSampler
from lingo_ds.training.audit import Audit, Seeded, Seeds
from lingo_ds.training.callbacks import (
    RankWatcher,
    Watcher,
    checkpoints,
    collapse_watch,
    dev_evaluation,
    loss_watch,
    skip_limit,
    traffic_count,
)
from lingo_ds.training.checkpoint import Checkpoint, RunState, load_bank, load_parts
from lingo_ds.training.collapse import make_collapse_watch
from lingo_ds.training.joint_pass import Work
from lingo_ds.training.losses import make_loss
from lingo_ds.training.optimizer_step import OptimizerStep
from lingo_ds.training.report import make_report
from lingo_ds.training.resume import checkpoint_store, find_checkpoint, fixed_state
from lingo_ds.training.saved_adapter import adapter_folder, copy_best, load_saved, save_best
from lingo_ds.training.selection import Best, Selection
from lingo_ds.training.setup import RunSetup
from lingo_ds.training.traffic import Meter
from lingo_ds.training.trainer import Hook, Outcome, Trainer
from lingo_ds.utils.out_of_memory import report_out_of_memory
from lingo_ds.utils.state import Stateful

logger = logging.getLogger(__name__)


class Session:
    """The parts of one training run.

    Attributes:
        model: the adapted backbone.
        batches: the training examples of every step.
        loss: the task's loss.
        optimizer_step: moves the bank.
        sampler: changes the masks; None without rank sampling.
        selection: which evaluation on dev is the best.
        collapse: notices that the run has lost what it had learned.
        audit: compares the processes.
        trainer: the loop over all of these.
        best_on_dev: the answers of the best step on dev; None where another process found it.
    """

    def __init__(self, setup: RunSetup, model: AdaptedModel, *, alone: bool = True):
        """Makes the parts; a run that is not `alone` counts no traffic, which then is that of several."""
        config, env, plan = setup.config, setup.env, setup.plan
        self._alone, self._restarts = alone, config.train.on_collapse == "restart"
        self._setup, self.model = setup, model
        self.batches = _train_batches(setup, model)
        self.loss = make_loss(setup.task, config.task, setup.data.splits["train"].labels, env.device)
        self.collapse = make_collapse_watch(setup, self.loss)
        self.optimizer_step = OptimizerStep(model.bank, config)
        self.sampler = None
        if plan.schedule:
            self.sampler = RankSampler(
                model.bank,
                plan.schedule,
                config.rank_sampling,
                seed=config.seed,
                env=env,
                on_compact=self._follow_new_tensors,
            )
        self.selection = Selection(
            config.metric,
            after_final_mask=config.selection.after_final_mask,
            patience=config.train.early_stopping,
            save=self._save_best,
        )
        self.audit = Audit(
            model.bank,
            env,
            config.rank_sampling.on_divergence,
            parts=self._audited_parts(),
            interval=config.rank_sampling.audit_interval,
            on_new_tensors=self._follow_new_tensors,
        )
        self.best_on_dev: Evaluation | None = None
        self._last_on_dev: Evaluation | None = None
        self._task, self._store, self._fixed_state = setup.task, checkpoint_store(setup), fixed_state(setup)
        self.trainer = Trainer(
            plan=plan,
            model=model,
            batches=self.batches,
            loss=self.loss,
            optimizer_step=self.optimizer_step,
            sampler=self.sampler,
            audit=self.audit,
            hooks=self._hooks(),
        )

    def _hooks(self) -> list[Hook]:
        """Observers, in an order that matters: later ones read what earlier ones found."""
        setup = self._setup
        config, plan = setup.config, setup.plan
        sharding = sharding_of_plan(plan, setup.profile, setup.dtype)
        meter = Meter(self.model, setup.spec.weights, sharding)
        return [
            skip_limit(self.optimizer_step, config.train.max_skipped, backbone=config.backbone.path),
            loss_watch(plan.learning_rate),
            collapse_watch(self.collapse, restarts=self._restarts),
            *([traffic_count(meter, plan, self.audit)] if self._alone else []),
            dev_evaluation(plan, self._evaluate_on_dev, self.selection),
            checkpoints(
                config.checkpoint, plan, self.selection, self._save_checkpoint, restarts=self._restarts
            ),
        ]

    def _audited_parts(self) -> dict[str, Stateful]:
        """What must agree between processes beside the bank."""
        seeded: dict[str, Seeded] = {"batches": self.batches}
        parts: dict[str, Stateful] = {"optimizer": self.optimizer_step, "selection": self.selection}
        if self.sampler:
            seeded["masks"] = self.sampler
            parts["kept triplets"] = self.sampler
        return {"seed": Seeds(seeded), **parts}

    def _saved_parts(self) -> dict[str, Stateful]:
        """What a checkpoint holds beside the bank."""
        parts: dict[str, Stateful] = {
            "optimizer": self.optimizer_step,
            "selection": self.selection,
            "audit": self.audit,
            "collapse": self.collapse,
        }
        if self.sampler:
            parts |= {"sampler": self.sampler, "scores": self.sampler.scores}
        return parts

    def train(
        self, first_step: int, tracker: Tracker, progress: Progress, *, pause_after: int | None = None
    ) -> Generator[Work, Sequence[float], Outcome]:
        """Trains from `first_step` on, see `Trainer.steps`."""
        config, plan = self._setup.config, self._setup.plan
        self._tracker = tracker
        self._watcher = Watcher(tracker, progress, plan=plan, audit=self.audit, metric=config.metric)
        self.trainer.add_hook(self._watcher)
        if self.sampler and plan.schedule:
            folder = config.run_dir / "pictures" if self._setup.env.is_main else None
            self.trainer.add_hook(RankWatcher(tracker, self.sampler, plan.schedule, folder=folder))
        if self._restarts and first_step == 1:
            self._save_checkpoint(0)
        try:
            in_words = report_out_of_memory("training", partial(remedy_of_run, config, plan))
            with closing(self.batches), in_words:
                return (
                    yield from self.trainer.steps(first_step, pause_after=pause_after, restart=self._restart)
                )
        finally:
            self._store.finish()

    @property
    def best(self) -> Best:
        """The evaluation whose adapter is in `adapter/`."""
        return self.selection.best

    def evaluate_best(self, split: str) -> Evaluation:
        """Evaluates the adapter as saved: it is read back from disk, so that both are the same."""
        task = load_saved(self.model, self._setup, adapter_folder(self._setup))
        return self._evaluate(split, task)

    def _evaluate_on_dev(self) -> Evaluation:
        """Evaluates the bank as it is now; the thresholds that are chosen here are saved with it."""
        choose = self._setup.config.task.threshold == "dev"
        metric = self._setup.config.metric if choose else None
        evaluation = self._evaluate("dev", self._setup.task, choose_thresholds_for=metric)
        self._task, self._last_on_dev = evaluation.task, evaluation
        return evaluation

    def _save_best(self, best: Best) -> None:
        """Keeps the adapter of the evaluation that was just made, and what it answered."""
        save_best(self._setup, self.model.bank, self._task, best)
        self.best_on_dev = self._last_on_dev

    def _evaluate(self, split: str, task: Task, *, choose_thresholds_for: str | None = None) -> Evaluation:
        setup = self._setup
        return evaluate_split(
            self.model,
            setup.data.splits[split],
            name=split,
            task=task,
            config=setup.config,
            plan=setup.plan,
            env=setup.env,
            choose_thresholds_for=choose_thresholds_for,
        )

    def resume(self, checkpoint: Checkpoint) -> None:
        """Restores the bank and all other parts from a checkpoint.

        Raises:
            UserError: on every process, where its parts do not fit this run.
        """
        self._load(checkpoint)
        self.optimizer_step.rate_factor = self.collapse.rate_factor
        if copy_best(checkpoint.path, self._setup) != self.best.step:
            self.selection.reset()
        logger.info("resumed from %s, continuing with step %d", checkpoint.path, checkpoint.state.step + 1)

    def _load(self, checkpoint: Checkpoint) -> None:
        load_bank(checkpoint, self.model.bank, self._setup.env)
        self.model.follow_bank()
        with agreement.errors_raised_on_all(self._setup.env):
            load_parts(checkpoint, self._saved_parts())

    def _restart(self, step: int) -> int:
        """Goes back to the best checkpoint, or to the start where there is none of before the collapse.

        Returns:
            Steps that were taken at that state; those after it follow at half the learning rate.
        """
        self._store.finish()
        told = self.collapse.told(step)
        steps = [self.best.step] if self.best.step <= self.collapse.sound_step else []
        checkpoint = find_checkpoint(self._store, [*steps, 0], self._setup.env)
        if checkpoint is None:
            self.collapse.note(step, restarted_from=None)
            logger.warning("%s; no checkpoint to go back to could be read: training goes on", told)
            return step
        counts, so_far, back = self.audit.state_dict(), self.collapse.state_dict(), checkpoint.state.step
        self._load(checkpoint)
        self.audit.load_state_dict(counts)
        self.collapse.load_state_dict(so_far)
        found = self.collapse.note(step, restarted_from=back)
        self.optimizer_step.rate_factor = self.collapse.rate_factor
        self._save_checkpoint(back)  # which now knows of the restart, before those after it are gone
        self._store.finish()
        if self._setup.env.is_main:
            self._store.remove_after(back)
        told = f"{told}; training goes back to step {back} at learning rate {found.learning_rate:g}"
        logger.warning("%s", told)
        self._tracker.rewind(back + 1)
        self._tracker.text(back + 1, "run/restart", told)
        return back

    def report(self, outcome: Outcome, test: Evaluation | None) -> dict[str, Any]:
        """The contract's report, plain JSON values; call on all processes."""
        report = make_report(
            self._setup,
            outcome=outcome,
            best=self.best,
            test=test,
            sampler=self.sampler,
            audit=self.audit,
            watcher=self._watcher,
            checkpoints=self._store.counts,
        )
        return report | {"collapses": [one._asdict() for one in self.collapse.collapses]}

    def _follow_new_tensors(self) -> None:
        self.optimizer_step.rebuild()
        self.model.follow_bank()

    def _save_checkpoint(self, step: int) -> None:
        if not self._setup.env.is_main:
            return
        bank = self.model.bank
        state = RunState(
            step=step,
            examples=step * self._setup.plan.global_batch_size,
            ranks=list(bank.layout.ranks),
            parts={name: part.state_dict() for name, part in self._saved_parts().items()},
            **self._fixed_state,
        )
        self._store.save(state, bank, best_step=self.best.step)


def _train_batches(setup: RunSetup, model: AdaptedModel) -> Prefetcher:
    """The training examples of every step, read ahead in a thread, ready for the model."""
    config, env, plan = setup.config, setup.env, setup.plan
    forwards: MicroBatches | PackBudget = MicroBatches(plan.micro_batch_size, plan.accumulation)
    if plan.micro_batch_tokens is not None:
        forwards = PackBudget(plan.micro_batch_tokens, plan.shared_prefix, config.train.micro_batch_size)
    batches = TrainBatches(
        setup.data.splits["train"],
        seed=config.seed,
        batch=plan.global_batch_size,
        forwards=forwards,
        rank=env.global_rank,
        world=env.world_size,
        either_strand=config.data.augments,
    )
    return Prefetcher(batches, last_step=plan.steps, ready=lambda forward: ready(forward, model, env.device))
