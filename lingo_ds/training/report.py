"""The report of a run, as the contract names its parts."""

from dataclasses import asdict
from typing import Any

from lingo_ds.distributed import agreement
from lingo_ds.distributed.process_group import DistEnv
from lingo_ds.evaluation.evaluate import Evaluation
from lingo_ds.export.adapter_folder import load_adapter
from lingo_ds.monitor.rank_statistics import budget_shares
from lingo_ds.monitor.throughput import peak_device_bytes, peak_host_bytes
from lingo_ds.rank_sampling.sampler import RankSampler
from lingo_ds.training.audit import Audit
from lingo_ds.training.callbacks import Watcher
from lingo_ds.training.checkpoint import Written
from lingo_ds.training.selection import Best
from lingo_ds.training.setup import RunSetup
from lingo_ds.training.trainer import Outcome
from lingo_ds.utils.versions import versions


def make_report(
    setup: RunSetup,
    *,
    outcome: Outcome,
    best: Best,
    test: Evaluation | None,
    sampler: RankSampler | None,
    audit: Audit,
    watcher: Watcher,
    written: Written,
) -> dict[str, Any]:
    """Everything that is known at the end of a run, as plain JSON values; call on all processes."""
    config, plan, watched = setup.config, setup.plan, watcher.throughput
    ranks, saved_size = _saved_ranks(setup, best)
    events = sampler.events if sampler else []
    scores = agreement.broadcast_json(sampler and sampler.scores.state_dict()["histogram"], setup.env)
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
        "data": setup.data.facts(),
        "adapter": config.adapter.model_dump(mode="json"),
        "rank_sampling": {
            "mode": config.rank_sampling.mode,
            "initial_triplets": plan.facts.sites * config.adapter.rank,
            "target_triplets": plan.schedule.target if plan.schedule else None,
            "kept_triplets": sum(ranks.values()),
            "mask_events": len(events),
            "returned_triplets": sum(event.returned for event in events),
            "ranks": ranks,
            "shares": budget_shares(ranks),
            "scores": scores,
            "history": [event._asdict() for event in events],
        },
        "parameters": {
            "trainable": plan.facts.bank_parameters,
            "saved": saved_size,
            "backbone": plan.facts.backbone_parameters,
            "fraction": plan.fraction,
            "quantization": config.backbone.quantization,
        },
        "sync": {"audits": audit.audits, "divergences": audit.divergences, "repairs": audit.repairs},
        "throughput": {
            "seconds": watched.seconds,
            "examples_per_second": watched.examples_per_second,
            "tokens_per_second": watched.tokens_per_second,
            "padding_fraction": watched.padding_fraction,
            "shared_prefix_fraction": watched.shared_prefix_fraction,
            "input_wait_fraction": watched.input_wait_fraction,
            "mfu": watcher.mfu(),
        },
        "traffic": watcher.traffic.report(),
        "checkpoints": agreement.broadcast_json(_of_time(written, watched.seconds), setup.env),
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


def _saved_ranks(setup: RunSetup, best: Best) -> tuple[dict[str, int], int]:
    """Rank of every site in the saved adapter, and its entries with the head."""
    ranks, size = dict.fromkeys((site.name for site in setup.sites), 0), 0
    if setup.env.is_main and best.step:
        layout = load_adapter(setup.config.run_dir / "adapter", setup.spec).layout
        ranks |= {site.name: rank for site, rank in zip(layout.sites, layout.ranks, strict=True)}
        size = layout.size
    return tuple(agreement.broadcast_json([ranks, size], setup.env))


def _memory(env: DistEnv) -> dict[str, list[int | None]]:
    """Peak bytes of every process."""
    peaks = agreement.all_gather_json([peak_host_bytes(), peak_device_bytes()], env)
    return {
        "peak_host_bytes": [host for host, _ in peaks],
        "peak_device_bytes": [device for _, device in peaks],
    }


def _of_time(written: Written, seconds: float) -> dict[str, Any]:
    """What became of the checkpoints, with the share of the training time that was spent waiting for them."""
    return {**asdict(written), "stall_fraction": written.stall_seconds / seconds if seconds else 0.0}
