"""Logits and metrics of a whole split, every row exactly once, however many processes share the work."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from lingo_ds import distributed
from lingo_ds.data.loader import Batch, eval_batches
from lingo_ds.data.packing import Pack, eval_packs
from lingo_ds.data.tokenize import TokenizedSplit
from lingo_ds.distributed import DistEnv
from lingo_ds.errors import Mistake, UserError
from lingo_ds.evaluation.forward import gather_rows, mean_of_strands, own_logits
from lingo_ds.evaluation.metrics import classification_metrics
from lingo_ds.files import write_aside
from lingo_ds.model import AdaptedModel
from lingo_ds.plan import RunPlan


class Evaluation(NamedTuple):
    """Result on one split, the same on every process.

    Attributes:
        metrics: by name; None where undefined.
        logits: (rows, classes) float32, in file order.
    """

    metrics: dict[str, float | None]
    logits: np.ndarray


def evaluate(
    model: AdaptedModel, split: TokenizedSplit, *, plan: RunPlan, env: DistEnv, average_strands: bool = False
) -> Evaluation:
    """Evaluates a split, in packs or padded batches of examples of like length, as the plan says.

    With `average_strands`, an example's probabilities are the means over its two strands.

    Raises:
        UserError: on every process, where the model's weights have diverged.
    """
    read = split.both_strands() if average_strands else split
    rows, logits = own_logits(model, _forwards(read, plan, env))
    all_logits = gather_rows(rows.to(env.device), logits, total=len(read), env=env)
    if not np.isfinite(all_logits).all():
        rule = "training diverged: the model's logits are not finite"
        raise UserError(
            Mistake("train.learning_rate", "too high", rule, "lower it, or clip with train.max_grad_norm")
        )
    if average_strands:
        all_logits = mean_of_strands(all_logits)
    metrics = classification_metrics(all_logits, split.labels) if env.is_main else None
    return Evaluation(distributed.share_json(metrics, env), all_logits)


def _forwards(split: TokenizedSplit, plan: RunPlan, env: DistEnv) -> Iterator[Batch] | Iterator[Pack]:
    """This process's share of a split; as many forwards on every process."""
    rank, world = env.global_rank, env.world_size
    if not plan.packed:
        return eval_batches(split, batch=plan.eval_batch_size, rank=rank, world=world)
    return eval_packs(split, budget=plan.eval_tokens, rank=rank, world=world, share_prefix=plan.share_prefix)


def write_predictions(path: Path, evaluation: Evaluation, labels: np.ndarray) -> None:
    """Parquet with row, label, predicted and one probability per class."""
    probabilities = torch.from_numpy(evaluation.logits).double().softmax(1).numpy()
    columns = {"row": np.arange(len(labels)), "label": labels, "predicted": probabilities.argmax(1)}
    columns |= {f"probability_{c}": probabilities[:, c] for c in range(probabilities.shape[1])}
    write_aside(path, lambda aside: pq.write_table(pa.table(columns), aside))
