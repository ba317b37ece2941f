"""Losses that add up: weighted so that any split into micro-batches and processes gives one gradient.

Each is the sum over examples of loss times weight; where an example has several labels or values, its loss is
the mean over those that are known, and 0 where none is.
"""

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lingo_ds.config.task_config import TaskConfig
from lingo_ds.data.labels import balanced_weights
from lingo_ds.data.task import Task

CONSTANT_ROWS = 4096
"""Training rows, evenly spaced, for which the best constant answer is looked for."""

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""A function of logits (n, outputs), a batch's labels, and weights (n,): the sum of the examples' losses."""


def make_loss(task: Task, setting: TaskConfig, train_labels: np.ndarray, device: torch.device) -> Loss:
    """Makes the loss of a task.

    Args:
        task: what is learned.
        setting: class weights and focal loss.
        train_labels: labels of all training rows, (rows,) or (rows, values), for balanced weights.
        device: device of the logits.
    """
    if task.kind == "regression":
        moments = {"mean": task.mean, "scale": task.scale}
        return partial(
            squared_error_sum,
            **{name: torch.tensor(of, dtype=torch.float64, device=device) for name, of in moments.items()},
        )
    loss = binary_cross_entropy_sum if task.kind == "multilabel" else cross_entropy_sum
    weights = setting.class_weights
    if weights == "balanced":
        weights = balanced_weights(train_labels, outputs=task.classes).tolist()
    class_weights = None if weights == "none" else torch.tensor(weights, device=device)
    return partial(loss, class_weights=class_weights, focal_gamma=setting.focal_gamma)


def constant_loss(loss: Loss, train_labels: np.ndarray, *, outputs: int, device: torch.device) -> float:
    """Finds the mean loss of the best constant answer: what a model reaches that does not read its input.

    Of classes without weights that is the entropy of their shares, of standardised values 1.

    Args:
        loss: the task's.
        train_labels: labels of all training rows, (rows,) or (rows, values).
        outputs: of the head.
        device: device of the loss.
    """
    labels = torch.from_numpy(train_labels[:: -(-len(train_labels) // CONSTANT_ROWS)].copy()).to(device)
    weights = torch.ones(len(labels), device=device)
    answer = torch.zeros(outputs, device=device, requires_grad=True)
    optimizer = torch.optim.LBFGS([answer], max_iter=50, line_search_fn="strong_wolfe")

    def mean_loss() -> Tensor:
        optimizer.zero_grad()
        with torch.enable_grad():
            found = loss(answer.expand(len(labels), -1), labels, weights) / len(labels)
            found.backward()
        return found

    optimizer.step(mean_loss)
    return float(mean_loss().detach())


def cross_entropy_sum(
    logits: Tensor,
    labels: Tensor,
    weights: Tensor,
    *,
    class_weights: Tensor | None = None,
    focal_gamma: float = 0.0,
) -> Tensor:
    """Computes the cross-entropy of classes.

    Args:
        logits: (n, classes).
        labels: (n,) int64.
        weights: (n,) weights of the examples.
        class_weights: (classes,) factors of the labels.
        focal_gamma: exponent of a factor (1 - p)^gamma, p the label's probability (arXiv 1708.02002, eq. 5).
    """
    losses = F.cross_entropy(logits, labels, weight=class_weights, reduction="none")
    if focal_gamma:
        p = logits.softmax(1).gather(1, labels[:, None])[:, 0]
        losses = losses * _focus(p, focal_gamma)
    return (losses * weights).sum()


def binary_cross_entropy_sum(
    logits: Tensor,
    labels: Tensor,
    weights: Tensor,
    *,
    class_weights: Tensor | None = None,
    focal_gamma: float = 0.0,
) -> Tensor:
    """Computes the cross-entropy of labels each of which may be true.

    Args:
        logits: (n, labels).
        labels: (n, labels) 0 or 1, NaN where unknown.
        weights: (n,) weights of the examples.
        class_weights: (labels,) factors of positive examples.
        focal_gamma: as for `cross_entropy_sum`, label by label.
    """
    known = ~labels.isnan()
    truth = torch.where(known, labels, 0).to(logits.dtype)
    losses = F.binary_cross_entropy_with_logits(logits, truth, pos_weight=class_weights, reduction="none")
    if focal_gamma:
        p = torch.where(truth == 1, logits, -logits).sigmoid()
        losses = losses * _focus(p, focal_gamma)
    return (_mean_of_known(losses, known) * weights).sum()


def squared_error_sum(
    logits: Tensor, values: Tensor, weights: Tensor, *, mean: Tensor, scale: Tensor
) -> Tensor:
    """Computes the squared error of standardised values.

    Args:
        logits: (n, values), standardised.
        values: (n, values) in the data's units, NaN where unknown.
        weights: (n,) weights of the examples.
        mean: (values,) means of the training rows.
        scale: (values,) standard deviations of the training rows.
    """
    known = ~values.isnan()
    truth = torch.where(known, (values - mean) / scale, 0).to(logits.dtype)
    return (_mean_of_known((logits - truth).square(), known) * weights).sum()


def _mean_of_known(losses: Tensor, known: Tensor) -> Tensor:
    """(n,) mean over an example's known entries of (n, k)."""
    return (losses * known).sum(1) / known.sum(1).clamp(min=1)


def _focus(p: Tensor, gamma: float) -> Tensor:
    """(1 - p)^gamma; below gamma 1 its slope has no bound at p = 1, where there is nothing left to learn."""
    return (1 - p).clamp(min=torch.finfo(p.dtype).eps) ** gamma
