"""Logits without gradients: the forwards of one process, and the results of all in order."""

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from lingo_ds.data.batches import Batch
from lingo_ds.data.packing import Pack
from lingo_ds.distributed import process_group, watchdog
from lingo_ds.distributed.process_group import DistEnv
from lingo_ds.models.adapted_model import AdaptedModel


@torch.no_grad()
def own_logits(model: AdaptedModel, forwards: Iterable[Batch | Pack]) -> tuple[Tensor, Tensor]:
    """Computes the logits (n, outputs) of the examples that count; with their rows (n,), as computed."""
    model.backbone.train(False)
    rows, logits = [], []
    for part in forwards:
        watchdog.beat()
        out = part.logits(model)
        real = part.weights.bool()
        rows.append(part.rows[real])
        logits.append(out[real.to(out.device)])
    model.backbone.release()
    return torch.cat(rows), torch.cat(logits)


def gather_rows(rows: Tensor, logits: Tensor, *, total: int, env: DistEnv) -> np.ndarray:
    """Gathers all processes' logits in file order; shares are padded with row `total`, dropped at the end."""
    share = int(process_group.all_gather(torch.tensor([len(rows)], device=env.device)).max())
    table = torch.full((share, logits.shape[1] + 1), float("nan"), dtype=torch.float64, device=env.device)
    table[:, 0] = total
    table[: len(rows), 0] = rows
    table[: len(rows), 1:] = logits
    gathered = process_group.all_gather(table).flatten(0, 1).cpu().numpy()
    out = np.full((total + 1, logits.shape[1]), np.nan)
    out[gathered[:, 0].astype(np.int64)] = gathered[:, 1:]
    return out[:total].astype(np.float32)
