"""What looks on while training runs: TensorBoard, the progress bar, throughput. None changes a weight."""

import numpy as np

from lingo_ds.adapters.bank import AdapterBank
from lingo_ds.monitor.progress import Progress
from lingo_ds.monitor.rank_map import draw_budget, draw_rank_map
from lingo_ds.monitor.throughput import Throughput, device_peak_flops, peak_device_bytes
from lingo_ds.monitor.tracker import Tracker
from lingo_ds.plan import GIB, RunPlan
from lingo_ds.rank_sampling.sampler import RankSampler
from lingo_ds.training.audit import Audit
from lingo_ds.training.trainer import StepInfo

PICTURES = 5
"""Maps of ranks drawn over a run: one takes half a second, in which the other processes wait."""


class Watcher:
    """Turns each step into TensorBoard's tags and the progress bar.

    Attributes:
        throughput: counts of the whole job, for the report.
    """

    def __init__(
        self,
        tracker: Tracker,
        progress: Progress,
        *,
        plan: RunPlan,
        bank: AdapterBank,
        sampler: RankSampler | None,
        audit: Audit,
        metric: str,
    ):
        self._tracker, self._progress, self._plan = tracker, progress, plan
        self._bank, self._sampler, self._audit, self._metric = bank, sampler, audit, metric
        self.throughput = Throughput()
        self._draw_every = max(2, len(plan.schedule.mask_steps()) // PICTURES) if plan.schedule else 0

    def __call__(self, info: StepInfo) -> None:
        """Observes one step."""
        stats = info.stats
        self.throughput.step(
            examples=stats.examples,
            real_tokens=stats.real_tokens,
            total_tokens=stats.all_tokens,
            seconds=info.seconds,
        )
        self._tracker.scalars(info.step, self._scalars(info))
        dev = info.evaluation.metrics[self._metric] if info.evaluation else None
        self._progress.update(
            info.step,
            loss=stats.loss,
            dev_metric=dev,
            tokens_per_second=self.throughput.recent_tokens_per_second,
        )
        if info.mask_event:
            self._tracker.scalars(
                info.step, {"rank/kept": info.mask_event.kept, "rank/returned": info.mask_event.returned}
            )
            if info.mask_event.final or len(self._sampler.events) % self._draw_every == 1:
                self._draw(info.step)

    def mfu(self) -> float | None:
        """Model FLOP/s over the devices' peak, so far; None on CPU."""
        peak = device_peak_flops()
        return self.throughput.mfu(self._plan.flops_per_token, peak and peak * self._plan.facts.world_size)

    def _scalars(self, info: StepInfo) -> dict[str, float]:
        stats, plan = info.stats, self._plan
        values = {
            "train/loss": stats.loss,
            "train/penalty": stats.penalty,
            "train/grad_norm": stats.grad_norm,
            "train/lr": info.learning_rate,
            "sync/divergences": self._audit.divergences,
            "throughput/tokens_per_second": self.throughput.recent_tokens_per_second,
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

    def _draw(self, step: int) -> None:
        ranks = kept_ranks(self._bank)
        self._tracker.image(
            step, "rank/map", draw_rank_map(ranks, initial_rank=self._initial_rank, title=f"step {step}")
        )
        self._tracker.histogram(step, "rank/per_site", np.array(list(ranks.values())))
        events = [(e.step, e.budget, e.kept, e.returned) for e in self._sampler.events]
        self._tracker.image(step, "rank/history", draw_budget(events))

    @property
    def _initial_rank(self) -> int:
        return self._plan.schedule.initial // self._plan.facts.sites


def kept_ranks(bank: AdapterBank) -> dict[str, int]:
    """Triplets of each site that the forward pass uses now, by module name."""
    layout, _ = bank.kept_values()
    return {site.name: rank for site, rank in zip(layout.sites, layout.ranks, strict=True)}
