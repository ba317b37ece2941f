"""What looks on while training runs: TensorBoard, the progress bar, throughput. None changes a weight."""

import logging
from pathlib import Path

import numpy as np

from lingo_ds.monitor.progress import ProgressBar
from lingo_ds.monitor.rank_statistics import budget_shares
from lingo_ds.monitor.tensorboard import Tracker
from lingo_ds.monitor.throughput import Throughput, device_peak_flops, peak_device_bytes
from lingo_ds.planning.plan import RunPlan
from lingo_ds.rank_sampling.sampler import MaskEvent, RankSampler
from lingo_ds.training.audit import Audit
from lingo_ds.training.traffic import TrafficSum, traffic_scalars
from lingo_ds.training.trainer import StepInfo
from lingo_ds.utils.files import atomic_write
from lingo_ds.utils.units import GIB

logger = logging.getLogger(__name__)

PICTURES = 5
"""About how often ranks are drawn over a run: a picture takes half a second, in which others wait."""


class Watcher:
    """Turns each step into TensorBoard's tags and the progress bar.

    Attributes:
        throughput: counts of the whole job, for the report.
        traffic: bytes of this process, for the report.
    """

    def __init__(
        self,
        tracker: Tracker,
        progress: ProgressBar,
        *,
        plan: RunPlan,
        sampler: RankSampler | None,
        audit: Audit,
        metric: str,
        pictures: Path | None,
    ):
        """Takes what it looks at; `pictures` is the folder for PNG files, None where none are drawn."""
        self._folder = pictures
        self._tracker, self._progress, self._plan = tracker, progress, plan
        self._sampler, self._audit, self._metric = sampler, audit, metric
        self._last_dev = "-"
        self.throughput, self.traffic = Throughput(), TrafficSum()
        self._draw_every = max(2, len(plan.schedule.mask_steps()) // PICTURES) if plan.schedule else 0

    def __call__(self, info: StepInfo) -> None:
        """Observes one step."""
        stats = info.stats
        self.throughput.step(
            examples=stats.examples,
            real_tokens=stats.real_tokens,
            total_tokens=stats.all_tokens,
            shared_tokens=stats.shared_tokens,
            seconds=info.seconds,
            input_seconds=info.input_seconds,
        )
        self.traffic.add(info.traffic)
        self._tracker.scalars(info.step, self._scalars(info) | traffic_scalars(info.traffic))
        self._progress.update(info.step, self._details(info))
        if info.mask_event:
            self._record_masks(info.mask_event)

    def mfu(self) -> float | None:
        """Model FLOP/s over the devices' peak, so far; None on CPU."""
        peak = device_peak_flops()
        return self.throughput.mfu(self._plan.flops_per_token, peak and peak * self._plan.facts.world_size)

    def _details(self, info: StepInfo) -> str:
        """Loss, the last dev metric and the speed, for the progress bar."""
        if info.evaluation and (metric := info.evaluation.metrics[self._metric]) is not None:
            self._last_dev = f"{metric:.3f}"
        speed = f"{self.throughput.recent_tokens_per_second:,.0f} tokens/s"
        return f"loss {info.stats.loss:.4f}  dev {self._metric} {self._last_dev}  {speed}"

    def _scalars(self, info: StepInfo) -> dict[str, float]:
        stats, plan = info.stats, self._plan
        values = {
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
            values |= {
                f"dev/{name}": value for name, value in info.evaluation.metrics.items() if value is not None
            }
        return values

    def _record_masks(self, event: MaskEvent) -> None:
        ranks = self._sampler.kept_ranks()
        shares = budget_shares(ranks)
        values = {"rank/kept": event.kept, "rank/returned": event.returned}
        values |= {f"rank_by_layer/{layer}": share for layer, share in shares["by_layer"].items()}
        values |= {f"rank_by_kind/{kind}": share for kind, share in shares["by_kind"].items()}
        self._tracker.scalars(event.step, values)
        self._tracker.histogram(event.step, "rank/per_site", np.array(list(ranks.values())))
        if self._folder is None or not (event.final or len(self._sampler.events) % self._draw_every == 1):
            return
        try:
            self._draw(event, ranks)
        except Exception as error:  # a picture is not worth a training run that the other processes wait in
            logger.warning("pictures of step %d: %s: %s", event.step, type(error).__name__, error)

    def _draw(self, event: MaskEvent, ranks: dict[str, int]) -> None:
        """Pictures for TensorBoard, those of the final mask also as files."""
        from matplotlib.image import imsave  # slow to import, and not needed before the first mask

        from lingo_ds.monitor.rank_plots import draw_budget, draw_rank_map, draw_scores, draw_shares

        pictures = {
            "map": draw_rank_map(
                ranks, initial_rank=self._plan.schedule.initial // len(ranks), title=f"step {event.step}"
            ),
            "history": draw_budget([(e.step, e.budget, e.kept, e.returned) for e in self._sampler.events]),
        }
        if event.final:
            pictures |= {"shares": draw_shares(ranks), "scores": draw_scores(self._sampler.scores)}
        for name, picture in pictures.items():
            self._tracker.image(event.step, f"rank/{name}", picture)
            if event.final:
                path = self._folder / f"rank_{name}.png"
                atomic_write(path, lambda aside, shown=picture: imsave(aside, shown, format="png"))
