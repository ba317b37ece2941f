"""One training run put together: the loop's parts, what a checkpoint holds of them, what the report says."""

import json
import logging
import shutil
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lingo_ds.data.batches import PackBudget, Prefetcher, TrainBatches
from lingo_ds.data.task import Task
from lingo_ds.distributed import agreement, watchdog
from lingo_ds.evaluation.evaluate import Evaluation, evaluate_split
from lingo_ds.export.adapter_card import BackboneCard, Card, DataCard, SavedAdapter
from lingo_ds.export.adapter_folder import save_adapter
from lingo_ds.export.model_card import CardNotes, task_frame
from lingo_ds.export.peft_format import CARD
from lingo_ds.models.adapted_model import AdaptedModel
from lingo_ds.models.backbone.hub import backbone_address, public_address
from lingo_ds.monitor.progress import ProgressBar
from lingo_ds.monitor.rank_statistics import ScoreHistogram
from lingo_ds.monitor.tensorboard import Tracker
from lingo_ds.rank_sampling.sampler import RankSampler
from lingo_ds.training.audit import Audit, HostState
from lingo_ds.training.callbacks import Watcher
from lingo_ds.training.checkpoint import Checkpoint, RunProgress, RunState, load_bank
from lingo_ds.training.losses import make_loss
from lingo_ds.training.optimizer_step import BankUpdate
from lingo_ds.training.report import make_report
from lingo_ds.training.resume import checkpoint_store, fixed_state
from lingo_ds.training.saved_adapter import replace_with_saved
from lingo_ds.training.selection import Best, Selection
from lingo_ds.training.setup import RunSetup, sharding_numbers
from lingo_ds.training.traffic import Meter
from lingo_ds.training.trainer import Outcome, Trainer
from lingo_ds.utils.errors import Mistake, UserError
from lingo_ds.utils.files import atomic_write

logger = logging.getLogger(__name__)


class Session:
    """The parts of one training run.

    Attributes:
        model: adapted backbone.
    """

    def __init__(self, setup: RunSetup, model: AdaptedModel):
        config, env, plan = setup.config, setup.env, setup.plan
        self._setup, self.model, self._folder = setup, model, config.run_dir
        self._update = BankUpdate(model.bank, config)
        self._sampler = None
        if plan.schedule:
            self._sampler = RankSampler(
                model.bank, plan.schedule, config.rank_sampling,
                seed=config.seed, env=env, on_compact=self._follow_new_tensors,
            )  # fmt: skip
        self._audit = Audit(
            model.bank, env, config.rank_sampling.on_divergence,
            host=self._host_state(), on_new_tensors=self._follow_new_tensors,
        )  # fmt: skip
        self._selection = Selection(
            config.metric,
            after_final_mask=config.selection.after_final_mask,
            patience=config.train.early_stopping,
            save=self._save_best,
        )
        self._task = setup.task
        train = setup.data.splits["train"]
        self._store, self._fixed_state = checkpoint_store(setup), fixed_state(setup)
        batches = TrainBatches(
            train, seed=config.seed, batch=plan.global_batch_size,
            micro_batch=plan.micro_batch_size, accumulation=plan.accumulation,
            rank=env.global_rank, world=env.world_size,
            packing=PackBudget(plan.micro_batch_tokens, plan.shared_prefix, config.train.micro_batch_size)
            if plan.packed else None,
            either_strand=config.data.augments,
        )  # fmt: skip
        self._prefetcher = Prefetcher(batches, last_step=plan.steps, pin=env.device.type == "cuda")
        self._trainer = Trainer(
            plan=plan,
            seed=config.seed,
            lr=lambda step: (
                config.train.learning_rate * plan.learning_rate_factor(step, config.train.lr_schedule)
            ),
            env=env,
            model=model,
            loss=make_loss(setup.task, config.task, train.labels, env.device),
            batches=self._prefetcher,
            update=self._update,
            sampler=self._sampler,
            audit=self._audit,
            audit_interval=config.rank_sampling.audit_interval,
            evaluate=self._evaluate_on_dev,
            selection=self._selection,
            save_checkpoint=self._save_checkpoint,
            checkpoints=config.checkpoint,
            most_skipped=config.train.max_skipped,
            meter=Meter(model, setup.spec.weights, sharding_numbers(setup)),
        )
        self._seeded = [part for part in (self._trainer, self._prefetcher, self._sampler) if part]

    def train(self, first_step: int, tracker: Tracker, progress: ProgressBar) -> Outcome:
        """Runs the loop from `first_step` on."""
        self._watcher = Watcher(
            tracker,
            progress,
            plan=self._setup.plan,
            sampler=self._sampler,
            audit=self._audit,
            metric=self._setup.config.metric,
            pictures=self._folder / "pictures" if self._setup.env.is_main else None,
        )
        try:
            with closing(self._prefetcher), watchdog.judging(self._setup.config.train.timeout):
                return self._trainer.run(first_step, observers=[self._watcher])
        finally:
            self._store.finish()

    @property
    def best(self) -> Best:
        """The evaluation whose adapter is in `adapter/`."""
        return self._selection.best

    def evaluate_best(self, split: str) -> Evaluation:
        """Logits and metrics of the adapter as saved: read back from disk, so that both are the same."""
        task = replace_with_saved(self.model, self._setup, self._folder / "adapter")
        return self._evaluate(split, task)

    def _evaluate_on_dev(self) -> Evaluation:
        """Of the bank as it is now; the thresholds that are chosen here are saved with it."""
        choose = self._setup.config.task.threshold == "dev"
        metric = self._setup.config.metric if choose else None
        evaluation = self._evaluate("dev", self._setup.task, choose_thresholds_for=metric)
        self._task = evaluation.task
        return evaluation

    def _evaluate(self, split: str, task: Task, *, choose_thresholds_for: str | None = None) -> Evaluation:
        setup = self._setup
        return evaluate_split(
            self.model,
            setup.data.splits[split],
            task=task,
            config=setup.config,
            plan=setup.plan,
            env=setup.env,
            choose_thresholds_for=choose_thresholds_for,
        )

    def resume(self, checkpoint: Checkpoint) -> None:
        """Puts bank, optimizer, masks and counts where the checkpoint has them.

        Raises:
            UserError: on every process, where its parts do not fit this run.
        """
        progress = checkpoint.state.progress
        load_bank(checkpoint, self.model.bank, self._setup.env)
        self.model.follow_bank()
        with agreement.errors_raised_on_all(self._setup.env):
            try:
                self._update.restore(progress.update)
                self._selection.restore(progress.best)
                self._audit.audits, self._audit.divergences, self._audit.repairs = progress.audit
                self._trainer.skipped, self._trainer.skipped_last = progress.skipped
                if self._sampler:
                    self._sampler.restore(progress.sampler)
                    self._sampler.scores = progress.scores and ScoreHistogram(*progress.scores)
            except (ValueError, TypeError) as error:
                rule = f"does not fit this run ({str(error).splitlines()[0]})"
                raise UserError(
                    Mistake("checkpoint.resume", checkpoint.path, rule, "name another one")
                ) from None
        self._copy_best(checkpoint.path)
        logger.info("resumed from %s; going on with step %d", checkpoint.path, checkpoint.state.step + 1)

    def _copy_best(self, checkpoint: Path) -> None:
        """A run that goes on in another folder takes the best adapter along, or looks for a new best."""
        theirs, ours = checkpoint.parent.parent / "adapter", self._folder / "adapter"
        step = None
        if self._setup.env.is_main:
            if theirs.is_dir() and theirs.resolve() != ours.resolve():
                atomic_write(ours, lambda aside: shutil.copytree(theirs, aside))
            card = ours / CARD
            step = json.loads(card.read_text())["step"] if card.is_file() else 0
        if agreement.broadcast_json(step, self._setup.env) != self.best.step:
            self._selection.restore(asdict(Best()))

    def report(self, outcome: Outcome, test: Evaluation | None) -> dict[str, Any]:
        """The contract's report, plain JSON values; call on all processes."""
        return make_report(
            self._setup,
            outcome=outcome,
            best=self.best,
            test=test,
            sampler=self._sampler,
            audit=self._audit,
            watcher=self._watcher,
            written=self._store.written,
        )

    def _host_state(self) -> list[HostState]:
        """What must agree between processes beside the bank."""
        update, sampler = self._update, self._sampler
        parts = [
            HostState("seed", lambda: [part.seed for part in self._seeded], self._adopt_seeds),
            HostState("optimizer", update.progress, update.restore),
            HostState("selection", lambda: self._selection.state(), lambda s: self._selection.restore(s)),
        ]
        if sampler:
            parts.append(HostState("kept triplets", sampler.state, sampler.restore))
        return parts

    def _adopt_seeds(self, seeds: list[int]) -> None:
        for part, seed in zip(self._seeded, seeds, strict=True):
            part.seed = seed

    def _follow_new_tensors(self) -> None:
        self._update.rebuild()
        self.model.follow_bank()

    def _save_best(self, best: Best) -> None:
        setup, config = self._setup, self._setup.config
        if not setup.env.is_main:
            return
        layout, values = self.model.bank.kept_values()
        card = Card(
            task=self._task,
            pooling=config.head.pooling,
            backbone=BackboneCard(
                path=backbone_address(config.backbone.path),
                fingerprint=setup.backbone_fingerprint,
                revision=config.backbone.revision,
                quantization=config.backbone.quantization,
            ),
            step=best.step,
            at_budget=best.at_budget,
            dev=best.metrics,
            data=DataCard(
                name=Path(config.data.path).name,
                fingerprint=setup.data.fingerprint,
                rows=setup.data.facts()["rows"],
                bases=setup.data.bases,
            ),
            average_strands=config.data.averages,
        )
        adapter = SavedAdapter(layout, values.detach(), config.adapter.alpha, config.adapter.rank, card)
        save_adapter(
            self._folder / "adapter", adapter, spec=setup.spec,
            backbone_path=public_address(config.backbone.path, setup.spec.folder),
            settings=self._peft_settings(),
            notes=CardNotes(frame=task_frame(setup.task, setup.spec, setup.tokenizer.loaded)),
        )  # fmt: skip

    def _peft_settings(self) -> dict[str, Any]:
        """How the adapter came about, in the words of PEFT's AdaLoraConfig or LoraConfig."""
        config, plan = self._setup.config, self._setup.plan
        sampling, schedule = config.rank_sampling, plan.schedule
        common = {"revision": config.backbone.revision, "lora_dropout": config.adapter.dropout}
        if not self._setup.layout.has_lam:
            return common
        return common | {
            "target_r": sampling.target_rank if schedule else config.adapter.rank,
            "tinit": schedule.t_init if schedule else 0,
            "tfinal": schedule.t_final if schedule else 0,
            "deltaT": sampling.interval,
            "beta1": sampling.beta1,
            "beta2": sampling.beta2,
            # PEFT refuses 0; it has no effect on inference
            "orth_reg_weight": sampling.orthogonality or 1e-12,
            "total_step": plan.steps,
        }

    def _save_checkpoint(self, step: int) -> None:
        setup = self._setup
        if not setup.env.is_main:
            return
        progress = RunProgress(
            update=self._update.progress(),
            best=self._selection.state(),
            audit=(self._audit.audits, self._audit.divergences, self._audit.repairs),
            skipped=(self._trainer.skipped, self._trainer.skipped_last),
            sampler=self._sampler and self._sampler.state(),
            scores=self._sampler.scores if self._sampler else None,
        )
        state = RunState(
            step=step,
            examples=step * setup.plan.global_batch_size,
            ranks=self.model.bank.layout.ranks,
            progress=progress,
            **self._fixed_state,
        )
        self._store.save(state, self.model.bank, best_step=self.best.step)
