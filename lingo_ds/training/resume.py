"""Whether a run resumes from a checkpoint, and from which one: `checkpoint.resume`."""

import logging
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

from lingo_ds.distributed import agreement
from lingo_ds.distributed.process_group import DistEnv
from lingo_ds.rank_sampling.schedule import BudgetSchedule
from lingo_ds.training.checkpoint import Checkpoint, CheckpointStore, RunState, read_checkpoint
from lingo_ds.training.report import read_report
from lingo_ds.training.setup import RunSetup
from lingo_ds.utils.errors import Mistake, UserError
from lingo_ds.utils.versions import versions

logger = logging.getLogger(__name__)

OUTPUTS = (
    "adapter",
    "checkpoints",
    "tensorboard",
    "pictures",
    "predictions",
    "report.json",
    "report.html",
    "metrics.jsonl",
    "baselines.json",
    "evaluation.json",
)
"""What a run writes into its folder; a new run in the same folder first moves it to `earlier/`."""

FREE_SETTINGS = {
    "name",
    "output_dir",
    "checkpoint",
    "zero",
    "data.cache_dir",
    "data.path",
    "data.root",
    "data.task",
    "data.hyperparameters",
    "backbone.path",
    "backbone.revision",
    "backbone.activation_checkpointing",
    "data.packing",
    "train.micro_batch_size",
    "train.micro_batch_tokens",
    "train.eval_steps",
    "train.eval_epochs",
    "train.early_stopping",
    "train.num_epochs",
    "train.max_steps",
    "train.max_skipped",
    "train.on_collapse",
    "train.deterministic",
    "train.timeout",
    "rank_sampling.interval",
    "rank_sampling.audit_interval",
    "rank_sampling.on_divergence",
}
"""Settings that may differ when a run is resumed; data and backbone are compared by their fingerprints, and
`rank_sampling.interval` as part of the schedule."""


class ResumePoint(NamedTuple):
    """Where a run begins: its setup, and the checkpoint that it resumes from, if any."""

    setup: RunSetup
    checkpoint: Checkpoint | None


def checkpoint_store(setup: RunSetup) -> CheckpointStore:
    """The run's own checkpoints."""
    keep_first = setup.config.train.on_collapse == "restart"
    folder = setup.config.run_dir / "checkpoints"
    return CheckpointStore(folder, setup.config.checkpoint.keep_last, keep_first=keep_first)


def find_start(setup: RunSetup) -> ResumePoint:
    """Looks for a checkpoint as `checkpoint.resume` says; without one, clears the run's folder.

    A run may be longer than the one it resumes: the learning rate then follows the new length, and the
    budget of triplets the old one, so that a final mask stays where it was.

    Raises:
        UserError: on every process, where the checkpoint is damaged or its run would have other results.
    """
    found = None
    with agreement.errors_raised_on_all(setup.env):
        if setup.env.is_main:
            found = _find_checkpoint(setup)
            if found:
                _require_same_run(found, setup)
            else:
                _move_to_earlier(setup.config.run_dir)
    checkpoint = _on_all(found, setup.env)
    if checkpoint is None:
        return ResumePoint(setup, None)
    return ResumePoint(_lengthened(setup, checkpoint.state), checkpoint)


def find_checkpoint(store: CheckpointStore, steps: Sequence[int], env: DistEnv) -> Checkpoint | None:
    """The checkpoint of the first of these steps that has one, read on global rank 0, on every process."""
    found = store.at(*steps) if env.is_main else None
    return _on_all(found, env)


def _on_all(found: Checkpoint | None, env: DistEnv) -> Checkpoint | None:
    """Global rank 0's checkpoint, on every process."""
    shared = [str(found.path), found.state.model_dump(mode="json")] if found else None
    shared = agreement.broadcast_json(shared, env)
    return shared and Checkpoint(Path(shared[0]), RunState.model_validate(shared[1]))


def _find_checkpoint(setup: RunSetup) -> Checkpoint | None:
    resume = setup.config.checkpoint.resume
    if resume == "never":
        return None
    if resume != "auto":
        return read_checkpoint(Path(resume))
    earlier = read_report(setup.config.run_dir / "report.json")
    if earlier and earlier.outcome != "interrupted" and earlier.steps >= setup.plan.steps:
        return None
    return checkpoint_store(setup).newest()


def compatibility_key(setup: RunSetup) -> dict[str, Any]:
    """What two runs must share for one to resume where the other stopped."""
    flat: dict[str, Any] = {}
    for name, value in setup.resolved_config.model_dump(mode="json").items():
        flat |= (
            {f"{name}.{key}": inner for key, inner in value.items()}
            if isinstance(value, dict)
            else {name: value}
        )
    kept = {
        name: value
        for name, value in flat.items()
        if name not in FREE_SETTINGS and name.partition(".")[0] not in FREE_SETTINGS
    }
    return {
        **kept,
        "data (fingerprint)": setup.data.fingerprint,
        "backbone (fingerprint)": setup.backbone_fingerprint,
    }


def _require_same_run(checkpoint: Checkpoint, setup: RunSetup) -> None:
    ours, theirs, state = compatibility_key(setup), checkpoint.state.compatibility, checkpoint.state
    fix = "set it back, choose another output_dir, or set checkpoint.resume=never"
    mistakes = [
        Mistake(field, ours.get(field), f"{checkpoint.path} was written with {theirs.get(field)!r}", fix)
        for field in dict.fromkeys([*ours, *theirs])
        if field not in FREE_SETTINGS and ours.get(field) != theirs.get(field)
    ]
    steps = setup.plan.steps
    if steps < state.total_steps or state.step > state.total_steps:
        rule = f"is shorter than the run of {state.total_steps} steps that wrote {checkpoint.path}"
        mistakes.append(Mistake("train.max_steps", steps, rule, fix))
    if not _is_schedule(state, setup):
        mistakes.append(Mistake("rank_sampling", checkpoint.path, "has another schedule", fix))
    if mistakes:
        raise UserError(mistakes)


def _is_schedule(state: RunState, setup: RunSetup) -> bool:
    """Whether a checkpoint's schedule can be that of this run, which may be longer."""
    ours, theirs = setup.plan.schedule, state.schedule
    if ours is None or theirs is None:
        return ours is None and theirs is None
    fixed = {"initial": ours.initial, "target": ours.target}
    free = {"t_init", "t_final", "total"}
    if setup.config.rank_sampling.interval == "auto":
        free.add("interval")
    else:
        fixed["interval"] = ours.interval
    return (
        theirs.keys() == fixed.keys() | free
        and all(theirs[name] == value for name, value in fixed.items())
        and theirs["total"] == state.total_steps
        and min(theirs["t_init"], theirs["t_final"]) >= 0
        and theirs["interval"] >= 1
    )


def _lengthened(setup: RunSetup, state: RunState) -> RunSetup:
    """The same run with the checkpoint's schedule of ranks, in a plan that may be longer."""
    plan, theirs = setup.plan, state.schedule
    if theirs is None or plan.schedule is None or asdict(plan.schedule) == theirs:
        return setup
    total = theirs["total"]
    t_final = theirs["t_final"] + plan.steps - total
    schedule = BudgetSchedule(**theirs | {"total": plan.steps, "t_final": t_final})
    if plan.steps > total:
        told = (
            "the run is longer than its checkpoint's, %d instead of %d steps: the final mask stays at step %d"
        )
        logger.info(told, plan.steps, total, schedule.final_step)
    return replace(setup, plan=replace(plan, schedule=schedule))


def fixed_state(setup: RunSetup) -> dict[str, Any]:
    """The fields of `RunState` that are the same in all checkpoints of a run."""
    schedule = setup.plan.schedule
    return {
        "schedule": schedule and asdict(schedule),
        "total_steps": setup.plan.steps,
        "compatibility": compatibility_key(setup),
        "config": setup.resolved_config.model_dump(mode="json"),
        "versions": versions(),
    }


def _move_to_earlier(folder: Path) -> None:
    """Moves the files of an earlier run to `earlier/<n>` in the folder, so that nothing is lost."""
    left = [folder / name for name in OUTPUTS if (folder / name).exists()]
    if left:
        number = 1 + sum(1 for _ in (folder / "earlier").glob("*"))
        target = folder / "earlier" / str(number)
        target.mkdir(parents=True)
        for path in left:
            path.rename(target / path.name)
        logger.warning("a new run begins in %s; the files of the earlier one are in %s", folder, target)
