"""Observers of a training run: limits, evaluation, checkpoints, traffic, TensorBoard.

Nothing here changes a weight.
"""

import logging
import math
from collections import deque
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from lingo_ds.config.train_config import CheckpointConfig
from lingo_ds.evaluation.evaluate import Evaluation
from lingo_ds.monitor.progress import Progress
from lingo_ds.monitor.rank_statistics import budget_shares
from lingo_ds.monitor.tensorboard import Tracker
from lingo_ds.monitor.throughput import Throughput, device_peak_flops, peak_device_bytes
from lingo_ds.planning.plan import RunPlan
from lingo_ds.rank_sampling.sampler import MaskEvent, RankSampler
from lingo_ds.rank_sampling.schedule import BudgetSchedule
from lingo_ds.training.audit import Audit
from lingo_ds.training.collapse import MAX_RESTARTS, CollapseWatch
from lingo_ds.training.optimizer_step import OptimizerStep
from lingo_ds.training.selection import Selection
from lingo_ds.training.traffic import Meter, TrafficSum, traffic_scalars
from lingo_ds.training.trainer import UNFINISHED, Hook, StepInfo
from lingo_ds.utils.errors import Mistake, UserError
from lingo_ds.utils.files import atomic_write
from lingo_ds.utils.units import GIB

logger = logging.getLogger(__name__)

LOSS_STEPS = 10
"""Steps over which the loss is averaged before it is judged."""

EXPLODED_FACTOR, EXPLODED_MORE = 2.0, 0.5
"""A loss has exploded when it is above so many times its lowest mean, and by so much more."""

PICTURES = 5
"""Approximate number of pictures of a run: each takes half a second, in which other processes wait."""


def skip_limit(optimizer_step: OptimizerStep, max_skipped: int, *, backbone: str) -> Hook:
    """Warns of each step whose gradient was not finite, and ends a run in which too many came in a row.

    Already the first loss tells a `backbone` that is not finite: its adapters add nothing yet.
    """

    def after(info: StepInfo) -> None:
        if info.step == 1 and not math.isfinite(info.stats.loss):
            rule = "gives values that are not finite before anything is learned"
            fix = "check its weights and its config.json, or set backbone.dtype=fp32 or bf16"
            raise UserError(Mistake("backbone.path", backbone, rule, fix), on_all=True)
        logger.warning("step %d: gradient is not finite; nothing was changed", info.step)
        in_a_row = optimizer_step.skipped_in_a_row
        if in_a_row >= max_skipped:
            rule = f"the gradient was not finite in {in_a_row} steps in a row, the last one {info.step}"
            fix = "lower train.learning_rate, or compute in bf16 or fp32"
            raise UserError(Mistake("train.max_skipped", max_skipped, rule, fix), on_all=True)

    return Hook(after, due=lambda info: info.stats.skipped)


def loss_watch(learning_rate: float) -> Hook:
    """Warns once of a loss that explodes: its mean over `LOSS_STEPS` is far above the lowest such mean."""
    recent: deque[float] = deque(maxlen=LOSS_STEPS)
    lowest, warned = math.inf, False

    def after(info: StepInfo) -> None:
        nonlocal lowest, warned
        recent.append(info.stats.loss)
        if len(recent) < LOSS_STEPS:
            return
        mean = sum(recent) / LOSS_STEPS
        lowest = min(lowest, mean)
        if not warned and mean > EXPLODED_FACTOR * lowest + EXPLODED_MORE:
            warned = True
            logger.warning(
                "step %d: the loss rose from %.3f to %.3f: lower train.learning_rate, which is %g",
                info.step,
                lowest,
                mean,
                learning_rate,
            )

    return Hook(after, due=lambda info: not info.stats.skipped)


def collapse_watch(watch: CollapseWatch, *, restarts: bool) -> Hook:
    """Warns of a loss that is back at chance after the run had learned, or asks for a restart.

    Args:
        watch: follows the loss.
        restarts: whether the run goes back to its best checkpoint, as often as it may.
    """

    def after(info: StepInfo) -> None:
        if not watch.follow(info.step, info.stats):
            return
        if restarts and watch.restarts < MAX_RESTARTS:
            info.collapsed = info.end is None
        else:
            told, found = watch.told(info.step), watch.note(info.step, restarted_from=None)
            fix = "set train.on_collapse=restart, or lower train.learning_rate, which is %g"
            if restarts:
                fix = f"{MAX_RESTARTS} restarts did not help: lower train.learning_rate, which is %g by now"
            logger.warning(f"%s; {fix}", told, found.learning_rate)

    return Hook(after)


def traffic_count(meter: Meter, plan: RunPlan, audit: Audit) -> Hook:
    """Counts what each step's collectives moved; what follows a step, evaluations above all, is left out."""

    def after(info: StepInfo) -> None:
        info.traffic = meter.finish(
            micro_batches=info.micro_batches,
            masked=plan.schedule.initial if plan.schedule and info.mask_event else 0,
            audited=audit.fingerprints if info.audited else 0,
        )

    return Hook(after, before=lambda step: meter.start())


def dev_evaluation(plan: RunPlan, evaluate: Callable[[], Evaluation], selection: Selection) -> Hook:
    """Evaluates on dev as planned, at the last step, and where a run pauses to be compared with others.

    Keeps the best; ends a run that gets no better.
    """

    def due(info: StepInfo) -> bool:
        if info.step == plan.steps or info.end == "paused":
            return True
        return info.step % plan.eval_interval == 0 and info.end is None

    def after(info: StepInfo) -> None:
        at_budget = plan.schedule is None or info.step >= plan.schedule.final_step
        info.evaluation = evaluate()
        if selection.consider(info.step, info.evaluation.metrics, at_budget=at_budget):
            info.end = info.end or "early stopping"

    return Hook(after, due)


def checkpoints(
    settings: CheckpointConfig,
    plan: RunPlan,
    selection: Selection,
    save: Callable[[int], None],
    *,
    restarts: bool = False,
) -> Hook:
    """Saves every so many steps, at each new best one, at the last one, and where a run is to go on later.

    A run that `restarts` saves each new best one in any case.
    """

    def due(info: StepInfo) -> bool:
        if info.end in UNFINISHED:
            return True
        is_best = info.step == selection.best.step
        if settings.every is None:
            return restarts and is_best
        new_best = (settings.keep_best or restarts) and is_best
        return new_best or info.step % settings.every == 0 or info.step == plan.steps

    return Hook(lambda info: save(info.step), due)


class Watcher:
    """Turns each step into TensorBoard's tags and the progress bar.

    Attributes:
        throughput: counts of the whole job, for the report.
        traffic: bytes of this process, for the report.
    """

    def __init__(self, tracker: Tracker, progress: Progress, *, plan: RunPlan, audit: Audit, metric: str):
        self._tracker, self._progress, self._plan = tracker, progress, plan
        self._audit, self._metric = audit, metric
        self._last_dev, self._kept = "-", ""
        self.throughput, self.traffic = Throughput(), TrafficSum()

    def __call__(self, info: StepInfo) -> None:
        """Records one step."""
        stats = info.stats
        self.throughput.step(
            examples=stats.examples,
            real_tokens=stats.real_tokens,
            total_tokens=stats.all_tokens,
            shared_tokens=stats.shared_tokens,
            seconds=info.seconds,
            input_seconds=info.input_seconds,
        )
        values = self._scalars(info)
        if info.traffic:
            self.traffic.add(info.traffic)
            values |= traffic_scalars(info.traffic)
        self._tracker.scalars(info.step, values)
        self._progress.update(info.step, self._details(info))

    def mfu(self) -> float | None:
        """Model FLOP/s over the devices' peak, so far; None on CPU."""
        peak = device_peak_flops()
        return self.throughput.mfu(self._plan.flops_per_token, peak and peak * self._plan.facts.world_size)

    def _details(self, info: StepInfo) -> str:
        """Loss, the last dev metric, kept triplets and the speed, for the progress bar."""
        if info.mask_event:
            self._kept = f"kept {info.mask_event.kept:,}  "
        if info.evaluation and (metric := info.evaluation.metrics[self._metric]) is not None:
            self._last_dev = f"{metric:.3f}"
        speed = f"{self.throughput.recent_tokens_per_second:,.0f} tokens/s"
        return f"loss {info.stats.loss:.4f}  dev {self._metric} {self._last_dev}  {self._kept}{speed}"

    def _scalars(self, info: StepInfo) -> dict[str, float]:
        stats, plan = info.stats, self._plan
        values: dict[str, float] = {
            "train/loss": stats.loss,
            "train/penalty": stats.penalty,
            "train/grad_norm": stats.grad_norm,
            "train/lr": info.learning_rate,
            "sync/divergences": self._audit.divergences,
            "throughput/tokens_per_second": self.throughput.recent_tokens_per_second,
            "throughput/input_wait": self.throughput.input_wait_fraction,
        }
        if plan.schedule:
            values["rank/budget"] = plan.schedule.budget_at(info.step)
        if (mfu := self.mfu()) is not None:
            values["throughput/mfu"] = mfu
        if (peak := peak_device_bytes()) is not None:
            values["memory/device_gib"] = peak / GIB
        if info.evaluation:
            dev = info.evaluation.metrics
            values |= {f"dev/{name}": value for name, value in dev.items() if value is not None}
        return values


class RankWatcher:
    """Turns each change of the masks into TensorBoard's tags and pictures."""

    def __init__(
        self, tracker: Tracker, sampler: RankSampler, schedule: BudgetSchedule, *, folder: Path | None
    ):
        """Takes the `folder` for the final mask's pictures; with None no pictures are drawn."""
        self._tracker, self._sampler, self._schedule, self._folder = tracker, sampler, schedule, folder
        self._draw_every = max(2, len(schedule.mask_steps()) // PICTURES)

    def __call__(self, info: StepInfo) -> None:
        """Records the change of the masks in one step, if there was one."""
        event = info.mask_event
        if event is None:
            return
        ranks = self._sampler.kept_ranks()
        shares = budget_shares(ranks)
        values: dict[str, float] = {"rank/kept": event.kept, "rank/returned": event.returned}
        values |= {f"rank_by_layer/{layer}": share for layer, share in shares["by_layer"].items()}
        values |= {f"rank_by_kind/{kind}": share for kind, share in shares["by_kind"].items()}
        self._tracker.scalars(event.step, values)
        self._tracker.histogram(event.step, "rank/per_site", np.array(list(ranks.values())))
        if self._folder is None or not (event.final or len(self._sampler.events) % self._draw_every == 1):
            return
        try:
            self._draw(event, ranks, self._folder)
        except Exception as error:  # a picture is not worth a training run that the other processes wait in
            logger.warning("pictures of step %d: %s: %s", event.step, type(error).__name__, error)

    def _draw(self, event: MaskEvent, ranks: dict[str, int], folder: Path) -> None:
        """Draws pictures for TensorBoard, those of the final mask also into files."""
        from matplotlib.image import imsave  # slow to import, and not needed before the first mask

        from lingo_ds.monitor.rank_plots import draw_budget, draw_rank_map, draw_scores, draw_shares

        initial_rank = self._schedule.initial // len(ranks)
        pictures = {
            "map": draw_rank_map(ranks, initial_rank=initial_rank, title=f"step {event.step}"),
            "history": draw_budget([(e.step, e.budget, e.kept, e.returned) for e in self._sampler.events]),
        }
        scores = self._sampler.scores.histogram
        if event.final:
            pictures["shares"] = draw_shares(ranks)
        if event.final and scores:
            pictures["scores"] = draw_scores(scores)
        for name, picture in pictures.items():
            self._tracker.image(event.step, f"rank/{name}", picture)
            if event.final:
                atomic_write(folder / f"rank_{name}.png", partial(imsave, arr=picture, format="png"))
