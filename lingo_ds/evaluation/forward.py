"""Logits without gradients: the forwards of one process, and the results of all in order."""

from collections.abc import Callable, Iterable
from contextlib import closing

import numpy as np
import torch
from torch import Tensor

from lingo_ds.data.batches import Forward, prefetch, ready
from lingo_ds.distributed import process_group, watchdog
from lingo_ds.distributed.process_group import DistEnv
from lingo_ds.models.adapted_model import AdaptedModel
from lingo_ds.models.embedding_model import EmbeddingModel
from lingo_ds.utils.transfer import to_device, upload


@torch.no_grad()
def own_logits(
    model: AdaptedModel | EmbeddingModel,
    forwards: Iterable[Forward],
    device: torch.device,
    after: Callable[[int], None] | None = None,
) -> tuple[Tensor, Tensor]:
    """Computes the logits (n, outputs) of the examples that count; with their rows (n,), as computed.

    The next forward is made in a thread while one is computed. A GPU is not waited for: logits stay there,
    rows on the CPU. With an `EmbeddingModel`, embeddings follow the logits. `after` is called with the number
    of examples so far, whenever a forward was begun.
    """
    model.backbone.train(False)
    rows, weights, logits, done = [], [], [], 0
    with closing(prefetch(ready(forward, model, device) for forward in forwards)) as parts:
        for part in parts:
            watchdog.beat()
            logits.append(to_device(part, device).logits(model))
            rows.append(part.rows.clone())  # copies: the part's own would keep all of its pinned memory
            weights.append(part.weights.clone())
            done += len(part.rows)
            if after:
                after(done)
    model.backbone.release()
    real = torch.cat(weights).bool()
    found, all_rows = torch.cat(logits), torch.cat(rows)
    if real.all():
        return all_rows, found
    return all_rows[real], found.index_select(0, upload(real.nonzero().flatten(), device))


def gather_rows(rows: Tensor, logits: Tensor, *, total: int, env: DistEnv) -> np.ndarray:
    """Gathers all processes' logits in file order; shares are padded with row `total`, dropped at the end.

    Args:
        rows: (n,) places in the file, on the CPU.
        logits: (n, outputs), on this process's device.
        total: rows of the file.
        env: this process's rank and device.
    """
    own = upload(torch.tensor([len(rows)]), env.device)
    share = int(process_group.all_gather(own).max())
    table = torch.full((share, logits.shape[1] + 1), float("nan"), dtype=torch.float64, device=env.device)
    table[:, 0] = total
    table[: len(rows), 0] = upload(rows, env.device)
    table[: len(rows), 1:] = logits
    gathered = process_group.all_gather(table).flatten(0, 1).cpu().numpy()
    out = np.full((total + 1, logits.shape[1]), np.nan)
    out[gathered[:, 0].astype(np.int64)] = gathered[:, 1:]
    return out[:total].astype(np.float32)
