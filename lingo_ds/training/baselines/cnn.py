"""A small convolutional network on one-hot bases, after DeepSEA (doi 10.1038/nmeth.3547)."""

import time
from collections.abc import Callable
from copy import deepcopy
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, mse_loss

from lingo_ds.data.one_hot import BASES
from lingo_ds.training.baselines.fitting import Fitted, Point, Problem, no_progress

BATCH = 64
FILTERS, POOL = 64, 3

ROWS_AT_ONCE = 512
"""Rows of a forward pass that learns nothing."""


def fit_cnn(
    problem: Problem,
    point: Point,
    seed: int,
    *,
    epochs: int,
    epoch_ended: Callable[[], None] = no_progress,
) -> Fitted:
    """Adam at one rate on the CPU; of the epochs the one that is best on dev counts.

    Args:
        problem: what is to be learned.
        point: L2 and learning rate.
        seed: of the initial values, the order of rows and dropout; torch's own generator is left as it was.
        epochs: passes over the training rows.
        epoch_ended: called after each of them.
    """
    assert point.rate is not None, "Adam needs a rate"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = make_cnn(problem.train.bases.shape[-1], outputs=problem.task.classes)
        optimizer = torch.optim.Adam(network.parameters(), lr=point.rate, weight_decay=point.l2)
        loss, targets = _LOSSES.get(problem.task.kind, cross_entropy), _as_tensor(problem.targets())
        steps, best_epoch, best, weights, seconds = 0, 0, float("-inf"), {}, 0.0
        for epoch in range(1, epochs + 1):
            begin = time.perf_counter()
            steps += _train_epoch(network, optimizer, problem.train.bases, targets, loss)
            seconds += time.perf_counter() - begin
            quality = problem.quality(_logits(network, problem.dev.bases))
            if quality > best or not best_epoch:
                best_epoch, best, weights = epoch, quality, deepcopy(network.state_dict())
            epoch_ended()
    network.load_state_dict(weights)
    return Fitted(
        logits=partial(_logits, network),
        parameters=sum(weight.numel() for weight in network.parameters()),
        steps=steps,
        selected_step=steps // epochs * best_epoch,
        examples=epochs * len(targets),
        seconds=seconds,
    )


def make_cnn(positions: int, *, outputs: int) -> nn.Module:
    """Two convolutions with pooling and a dense layer: (rows, 4, positions) to (rows, outputs)."""
    size = FILTERS * max(positions // POOL // POOL, 1)
    pool = partial(nn.MaxPool1d, POOL, ceil_mode=positions < POOL * POOL)  # a short sequence is kept whole
    return nn.Sequential(
        *(nn.Conv1d(len(BASES), FILTERS, 11, padding=5), nn.ReLU(), pool(), nn.Dropout(0.2)),
        *(nn.Conv1d(FILTERS, FILTERS, 5, padding=2), nn.ReLU(), pool(), nn.Dropout(0.2)),
        *(nn.Flatten(), nn.Linear(size, 64), nn.ReLU(), nn.Dropout(0.5)),
        nn.Linear(64, outputs),
    )


def _as_tensor(targets: np.ndarray) -> Tensor:
    return torch.from_numpy(targets if targets.ndim == 1 else targets.astype(np.float32))


def _known(loss: Callable[[Tensor, Tensor], Tensor], logits: Tensor, targets: Tensor) -> Tensor:
    """The loss of what is known; 0 where nothing is."""
    known = ~targets.isnan()
    return loss(logits[known], targets[known]) if known.any() else logits.sum() * 0


_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "multilabel": partial(_known, binary_cross_entropy_with_logits),
    "regression": partial(_known, mse_loss),
}


def _train_epoch(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    bases: Tensor,
    targets: Tensor,
    loss: Callable[[Tensor, Tensor], Tensor],
) -> int:
    """One pass over the rows, in an order drawn anew; the number of steps."""
    network.train()
    batches = torch.randperm(len(targets)).split(BATCH)
    for rows in batches:
        optimizer.zero_grad()
        loss(network(bases[rows]), targets[rows]).backward()
        optimizer.step()
    return len(batches)


@torch.no_grad()
def _logits(network: nn.Module, bases: Tensor) -> np.ndarray:
    network.eval()
    return torch.cat([network(some) for some in bases.split(ROWS_AT_ONCE)]).numpy()
