"""Which loss a task has."""

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor

from lingo_ds.config.task_config import TaskConfig
from lingo_ds.data.labels import balanced_weights
from lingo_ds.data.task import Task
from lingo_ds.training.losses import binary_cross_entropy_sum, cross_entropy_sum, squared_error_sum

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""From logits (n, outputs), labels as in a batch, and weights (n,) to the sum of the examples' losses."""


def make_loss(task: Task, setting: TaskConfig, train_labels: np.ndarray, device: torch.device) -> Loss:
    """The loss of a task.

    Args:
        task: what is learned.
        setting: class weights and focal loss.
        train_labels: of all training rows, (rows,) or (rows, values), for balanced weights.
        device: of the logits.
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
