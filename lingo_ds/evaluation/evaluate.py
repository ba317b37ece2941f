"""Logits and metrics of a split: every row counts exactly once, however many processes share the work."""

from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import numpy as np

from lingo_ds.config.run_config import RunConfig
from lingo_ds.data.batches import Batch, eval_batches
from lingo_ds.data.packing import Pack, eval_packs
from lingo_ds.data.task import Task
from lingo_ds.data.tokenized import TokenizedSplit
from lingo_ds.distributed import agreement
from lingo_ds.distributed.process_group import DistEnv
from lingo_ds.evaluation.answers import answers, decide, mean_of_strands, with_best_thresholds
from lingo_ds.evaluation.forward import gather_rows, own_logits
from lingo_ds.evaluation.metrics import (
    Metrics,
    Scores,
    classification_metrics,
    multilabel_metrics,
    regression_metrics,
)
from lingo_ds.evaluation.thresholds import DEFAULT_THRESHOLD
from lingo_ds.models.adapted_model import AdaptedModel
from lingo_ds.monitor.progress import SlowWork
from lingo_ds.planning.plan import RunPlan
from lingo_ds.planning.remedies import remedy_of_run
from lingo_ds.utils.errors import Mistake, UserError
from lingo_ds.utils.out_of_memory import report_out_of_memory


class Evaluation(NamedTuple):
    """The result on one split, the same on every process.

    Attributes:
        metrics: the metrics by name; None where undefined.
        logits: (rows, outputs) float32, in file order.
        by_output: the metrics of each label or value by its name; empty for classes.
        task: the task, with the thresholds that the metrics are computed with.
    """

    metrics: Metrics
    logits: np.ndarray
    by_output: dict[str, Metrics]
    task: Task


def evaluate_split(
    model: AdaptedModel,
    split: TokenizedSplit,
    *,
    name: str,
    task: Task,
    config: RunConfig,
    plan: RunPlan,
    env: DistEnv,
    choose_thresholds_for: str | None = None,
) -> Evaluation:
    """Evaluates a split, in packs or padded batches of examples of similar length, as the plan says.

    Args:
        model: the model, the same on every process.
        split: the examples.
        name: the split's name, for the log.
        task: what the outputs mean.
        config: the run's settings; `data.reverse_complement` decides whether both strands are read.
        plan: the run's plan.
        env: this process's rank and device.
        choose_thresholds_for: the metric to choose thresholds for on this split; None: keep the task's own.

    Raises:
        UserError: on every process, where training has diverged; on one, where memory runs out.
    """
    average_strands = config.data.averages
    read = split.both_strands() if average_strands else split
    with (
        report_out_of_memory("evaluation", partial(remedy_of_run, config, plan)),
        SlowWork(name, len(read), "sequences", enabled=env.is_main) as progress,
    ):
        forwards, world = _forwards(read, plan, env), env.world_size
        rows, logits = own_logits(model, forwards, env.device, lambda done: progress.update(world * done))
    all_logits = gather_rows(rows, logits, total=len(read), env=env)
    if not np.isfinite(all_logits).all():
        rule = "logits are not finite, training diverged"
        fix = "lower it, or clip with train.max_grad_norm"
        mistake = Mistake("train.learning_rate", config.train.learning_rate, rule, fix)
        raise UserError(mistake, on_all=True)
    if average_strands:
        all_logits = mean_of_strands(all_logits, task)
    found = None
    if env.is_main:
        if choose_thresholds_for:
            task = with_best_thresholds(
                task, answers(all_logits, task), split.labels, metric=choose_thresholds_for
            )
        found = [*score(all_logits, split.labels, task), task.thresholds]
    metrics, by_output, thresholds = agreement.broadcast_json(found, env)
    return Evaluation(metrics, all_logits, by_output, task.with_thresholds(thresholds and tuple(thresholds)))


def remark_on_answers(evaluation: Evaluation, labels: np.ndarray) -> str:
    """What is to be said of answers that are all the same while the labels are not; empty: nothing."""
    return remark_on_decisions(answers(evaluation.logits, evaluation.task), labels, evaluation.task)


def remark_on_decisions(found: np.ndarray, labels: np.ndarray, task: Task) -> str:
    """`remark_on_answers` of the answers themselves, (rows, outputs)."""
    if task.kind == "regression":
        return ""
    decided = np.unique(decide(found, task))
    if len(decided) > 1 or len(np.unique(labels[~np.isnan(labels)])) < 2:
        return ""
    what = f"class {task.output_names[decided[0]]}"
    if task.kind == "multilabel":
        what = "that every label is true" if decided[0] else "that no label is true"
    return (
        f"every prediction is {what}: raise train.learning_rate where the loss has hardly moved, lower it "
        "where the loss jumped; train longer, or set task.class_weights=balanced"
    )


def score(logits: np.ndarray, labels: np.ndarray, task: Task) -> Scores:
    """Computes the metrics of the kind of task from logits (n, outputs) and labels (n,) or (n, outputs)."""
    if task.kind == "multilabel":
        return multilabel_metrics(
            answers(logits, task),
            labels,
            thresholds=task.thresholds or DEFAULT_THRESHOLD,
            names=task.output_names,
        )
    if task.kind == "regression":
        return regression_metrics(answers(logits, task), labels, names=task.output_names)
    threshold = task.thresholds[0] if task.thresholds else None
    return Scores(classification_metrics(logits, labels, threshold=threshold), {})


def _forwards(split: TokenizedSplit, plan: RunPlan, env: DistEnv) -> Iterator[Batch] | Iterator[Pack]:
    """This process's share of a split, in the same number of forwards on every process."""
    rank, world = env.global_rank, env.world_size
    if not plan.packed:
        return eval_batches(split, batch=plan.eval_batch_size, rank=rank, world=world)
    return eval_packs(split, budget=plan.eval_tokens, rank=rank, world=world, share_prefix=plan.share_prefix)
