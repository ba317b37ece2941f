"""From a head's outputs to answers: probabilities or values, and the decisions that follow from them."""

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from lingo_ds.data.task import Task
from lingo_ds.evaluation.thresholds import DEFAULT_THRESHOLD, choose_threshold


def answers(logits: np.ndarray, task: Task) -> np.ndarray:
    """Turns logits (n, outputs) into probabilities, or values in the data's units; float64, same shape."""
    outputs = torch.from_numpy(logits).double()
    if task.kind == "regression":
        assert task.scale is not None and task.mean is not None  # every regression has them
        return outputs.numpy() * task.scale + task.mean
    return (outputs.sigmoid() if task.kind == "multilabel" else outputs.softmax(1)).numpy()


def mean_of_strands(logits: np.ndarray, task: Task) -> np.ndarray:
    """Turns logits (2 n, outputs) into logits (n, outputs) whose answers are the means over both strands.

    Rows k and n + k of the given logits are the strands of example k.
    """
    one, other = torch.from_numpy(logits).double().chunk(2)
    return mean_of_two(one, other, task).float().numpy()


def mean_of_two(one: Tensor, other: Tensor, task: Task) -> Tensor:
    """Logits (n, outputs) whose answers are the means of those of the two given ones; differentiable."""
    if task.kind == "regression":
        return (one + other) / 2
    if task.kind == "multilabel":
        true = torch.logaddexp(logsigmoid(one), logsigmoid(other))
        return true - torch.logaddexp(logsigmoid(-one), logsigmoid(-other))
    return torch.logaddexp(one.log_softmax(1), other.log_softmax(1)) - math.log(2)


def decide(probabilities: np.ndarray, task: Task) -> np.ndarray:
    """Decides int64 classes (n,) by probabilities (n, classes), or labels (n, labels) 0 or 1 by theirs."""
    if task.kind == "multilabel":
        return (probabilities > np.array(task.thresholds or DEFAULT_THRESHOLD)).astype(np.int64)
    if task.thresholds:
        return (probabilities[:, 1] > np.array(task.thresholds)).astype(np.int64)
    return probabilities.argmax(1)


def answer_columns(task: Task) -> list[str]:
    """The names of the columns of a table that hold the answers."""
    what = "value" if task.kind == "regression" else "probability"
    return [f"{what}_{name}" for name in task.output_names]


def with_best_thresholds(task: Task, probabilities: np.ndarray, labels: np.ndarray, *, metric: str) -> Task:
    """The task with the thresholds that score best on these examples, label by label.

    Args:
        task: a binary or multilabel task.
        probabilities: (n, outputs).
        labels: (n,) classes, or (n, labels) with NaN where unknown.
        metric: what is maximised; see `choose_threshold`.
    """
    if task.kind == "binary":
        probabilities, labels = probabilities[:, 1:], labels[:, None]
    columns = zip(probabilities.T, labels.T, strict=True)
    known = ((p[~np.isnan(truth)], truth[~np.isnan(truth)]) for p, truth in columns)
    return task.with_thresholds(tuple(choose_threshold(p, truth == 1, metric=metric) for p, truth in known))
