"""A run's report.json: its content at the end of a run, and the part of it that later runs read."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from lingo_ds.data.pipeline import remarks_on
from lingo_ds.data.summary import count_by_output
from lingo_ds.distributed import agreement
from lingo_ds.distributed.process_group import DistEnv
from lingo_ds.evaluation.evaluate import Evaluation
from lingo_ds.export.adapter_folder import load_adapter
from lingo_ds.monitor.rank_statistics import budget_shares
from lingo_ds.monitor.throughput import peak_device_bytes, peak_host_bytes
from lingo_ds.rank_sampling.sampler import RankSampler
from lingo_ds.training.audit import Audit
from lingo_ds.training.callbacks import Watcher
from lingo_ds.training.checkpoint import CheckpointCounts
from lingo_ds.training.saved_adapter import adapter_folder
from lingo_ds.training.selection import Best
from lingo_ds.training.setup import RunSetup
from lingo_ds.training.trainer import Outcome
from lingo_ds.utils.errors import Mistake, UserError
from lingo_ds.utils.safe_read import read_json
from lingo_ds.utils.state import Count
from lingo_ds.utils.versions import versions


class RunReport(BaseModel, strict=True):
    """What other runs and suites need of a `report.json`; all else in it is left unread.

    Attributes:
        outcome: how training ended, see `Outcome`.
        steps: the last finished step.
        metrics: metrics of each split by their names; None where the split was not evaluated.
        parameters: numbers of parameters, by what they are.
        throughput: speed of the training, and its seconds.
    """

    outcome: str
    steps: Count
    metrics: dict[str, dict[str, float | None] | None]
    parameters: dict[str, Any] = {}
    throughput: dict[str, Any] = {}


def read_report(path: Path) -> RunReport | None:
    """Reads a run's report; None where there is none.

    Raises:
        UserError: where the file is no report.
    """
    try:
        return RunReport.model_validate(read_json(path))
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        fix = "remove it, or choose another output_dir"
        raise UserError(Mistake("output_dir", path, "is no report of a run", fix)) from None


def make_report(
    setup: RunSetup,
    *,
    outcome: Outcome,
    best: Best,
    test: Evaluation | None,
    sampler: RankSampler | None,
    audit: Audit,
    watcher: Watcher,
    checkpoints: CheckpointCounts,
) -> dict[str, Any]:
    """Puts together the report of a run, plain JSON values; call on all processes."""
    config, plan = setup.config, setup.plan
    ranks, saved_size = _saved_ranks(setup, best)
    return {
        "task": (test.task if test else setup.task).to_dict(),
        "outcome": outcome.reason,
        "metrics": {"dev": best.metrics, "test": test and test.metrics},
        "metrics_by_output": {"test": test and test.by_output},
        "selected_step": best.step,
        "selected_at_budget": best.at_budget,
        "steps": outcome.steps,
        "skipped_steps": outcome.skipped,
        "seed": config.seed,
        "data": _data(setup),
        "adapter": setup.resolved_config.adapter.model_dump(mode="json"),
        "learning_rate": plan.learning_rate,
        "rank_sampling": _rank_sampling(setup, sampler, ranks),
        "parameters": {
            "trainable": plan.facts.bank_parameters,
            "saved": saved_size,
            "backbone": plan.facts.backbone_parameters,
            "fraction": plan.fraction,
            "quantization": config.backbone.quantization,
        },
        "sync": audit.state_dict(),
        "throughput": _throughput(watcher),
        "traffic": watcher.traffic.report(),
        "checkpoints": _checkpoints(checkpoints, watcher.throughput.seconds, setup.env),
        "memory": _memory(setup.env),
        "zero": {
            "stage": plan.zero_stage,
            "shard_group": plan.shard_group,
            "hpz": plan.secondary_group,
            "quantized_weights": plan.eight_bit,
        },
        "world_size": setup.env.world_size,
        "versions": versions(),
    }


def _data(setup: RunSetup) -> dict[str, Any]:
    """Counts of the data and what may spoil the result."""
    data, task = setup.data, setup.task
    found = {**data.facts(), "remarks": list(remarks_on(data, task))}
    if task.kind != "regression":
        splits = data.splits.items()
        found["by_output"] = {name: count_by_output(split.labels, task).tolist() for name, split in splits}
    return found


def _rank_sampling(setup: RunSetup, sampler: RankSampler | None, ranks: dict[str, int]) -> dict[str, Any]:
    """The section on rank sampling; `ranks` are those of the saved adapter."""
    config, plan = setup.config, setup.plan
    events = sampler.events if sampler else []
    scores = sampler.scores.histogram if sampler else None
    return {
        "mode": config.rank_sampling.mode,
        "initial_triplets": plan.facts.sites * config.adapter.rank,
        "target_triplets": plan.schedule.target if plan.schedule else None,
        "kept_triplets": sum(ranks.values()),
        "mask_events": len(events),
        "returned_triplets": sum(event.returned for event in events),
        "ranks": ranks,
        "shares": budget_shares(ranks),
        "scores": agreement.broadcast_json(scores and scores._asdict(), setup.env),
        "history": [event._asdict() for event in events],
    }


def _throughput(watcher: Watcher) -> dict[str, float | None]:
    """Speed of the whole job, evaluations left out."""
    throughput = watcher.throughput
    return {
        "seconds": throughput.seconds,
        "examples_per_second": throughput.examples_per_second,
        "tokens_per_second": throughput.tokens_per_second,
        "padding_fraction": throughput.padding_fraction,
        "shared_prefix_fraction": throughput.shared_prefix_fraction,
        "input_wait_fraction": throughput.input_wait_fraction,
        "mfu": watcher.mfu(),
    }


def _saved_ranks(setup: RunSetup, best: Best) -> tuple[dict[str, int], int]:
    """Rank of every site in the saved adapter, and the adapter's entries with the head."""
    ranks, size = dict.fromkeys((site.name for site in setup.sites), 0), 0
    if setup.env.is_main and best.step:
        layout = load_adapter(adapter_folder(setup), setup.spec).layout
        ranks |= {site.name: rank for site, rank in zip(layout.sites, layout.ranks, strict=True)}
        size = layout.size
    ranks, size = agreement.broadcast_json([ranks, size], setup.env)
    return ranks, size


def _memory(env: DistEnv) -> dict[str, list[int | None]]:
    """Peak bytes of every process."""
    peaks = agreement.all_gather_json([peak_host_bytes(), peak_device_bytes()], env)
    return {
        "peak_host_bytes": [host for host, _ in peaks],
        "peak_device_bytes": [device for _, device in peaks],
    }


def _checkpoints(counts: CheckpointCounts, seconds: float, env: DistEnv) -> dict[str, Any]:
    """Global rank 0's counts, with the share of the training time that was spent waiting for checkpoints."""
    stalled = counts.stall_seconds / seconds if seconds else 0.0
    found: dict[str, Any] = agreement.broadcast_json({**asdict(counts), "stall_fraction": stalled}, env)
    return found
