"""Logits and metrics of a whole split, every row exactly once, however many processes share the work."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from lingo_ds import distributed, liveness
from lingo_ds.data.loader import Batch, eval_batches
from lingo_ds.data.packing import Pack, eval_packs
from lingo_ds.data.tokenize import TokenizedSplit
from lingo_ds.distributed import DistEnv
from lingo_ds.errors import Mistake, UserError
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


@torch.no_grad()
def evaluate(model: AdaptedModel, split: TokenizedSplit, *, plan: RunPlan, env: DistEnv) -> Evaluation:
    """Evaluates a split, in packs or padded batches of examples of like length, as the plan says.

    Raises:
        UserError: on every process, where the model's weights have diverged.
    """
    model.backbone.train(False)
    rows, logits = [], []
    for part in _forwards(split, plan, env):
        liveness.beat()
        out = model.logits(part)
        real = part.weights.bool()
        rows.append(part.rows[real])
        logits.append(out[real.to(out.device)])
    model.backbone.release()
    all_logits = _gather(torch.cat(rows).to(env.device), torch.cat(logits), total=len(split), env=env)
    if not np.isfinite(all_logits).all():
        rule = "training diverged: the model's logits are not finite"
        raise UserError(
            Mistake("train.learning_rate", "too high", rule, "lower it, or clip with train.max_grad_norm")
        )
    metrics = classification_metrics(all_logits, split.labels) if env.is_main else None
    return Evaluation(distributed.share_json(metrics, env), all_logits)


def _forwards(split: TokenizedSplit, plan: RunPlan, env: DistEnv) -> Iterator[Batch] | Iterator[Pack]:
    """This process's share of a split; as many forwards on every process."""
    rank, world = env.global_rank, env.world_size
    if not plan.packed:
        return eval_batches(split, batch=plan.eval_batch_size, rank=rank, world=world)
    return eval_packs(split, budget=plan.eval_tokens, rank=rank, world=world, share_prefix=plan.share_prefix)


def _gather(rows: torch.Tensor, logits: torch.Tensor, *, total: int, env: DistEnv) -> np.ndarray:
    """All processes' logits in file order; shares are filled up with row `total`, which is dropped here."""
    share = int(distributed.all_gather(torch.tensor([len(rows)], device=env.device)).max())
    table = torch.full((share, logits.shape[1] + 1), float("nan"), dtype=torch.float64, device=env.device)
    table[:, 0] = total
    table[: len(rows), 0] = rows
    table[: len(rows), 1:] = logits
    gathered = distributed.all_gather(table).flatten(0, 1).cpu().numpy()
    out = np.full((total + 1, logits.shape[1]), np.nan)
    out[gathered[:, 0].astype(np.int64)] = gathered[:, 1:]
    return out[:total].astype(np.float32)


def write_predictions(path: Path, evaluation: Evaluation, labels: np.ndarray) -> None:
    """Parquet with row, label, predicted and one probability per class."""
    probabilities = torch.from_numpy(evaluation.logits).double().softmax(1).numpy()
    columns = {"row": np.arange(len(labels)), "label": labels, "predicted": probabilities.argmax(1)}
    columns |= {f"probability_{c}": probabilities[:, c] for c in range(probabilities.shape[1])}
    write_aside(path, lambda aside: pq.write_table(pa.table(columns), aside))
