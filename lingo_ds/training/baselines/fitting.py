"""What a baseline is fitted to, and what a fitted one is."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from torch import Tensor

from lingo_ds.data.task import Task
from lingo_ds.evaluation.evaluate import score


class OneHotSplit(NamedTuple):
    """Rows of a split.

    Attributes:
        bases: (rows, 4, positions) float32.
        labels: (rows,) int64 classes, or (rows, outputs) float32 with NaN where unknown.
        reverse: the bases of the other strand, same shape; None where it is not read.
    """

    bases: Tensor
    labels: np.ndarray
    reverse: Tensor | None = None


class Problem(NamedTuple):
    """What is to be learned.

    Attributes:
        task: kind and outputs.
        metric: by which a fit is chosen on dev; higher is better.
        train, dev: the rows.
    """

    task: Task
    metric: str
    train: OneHotSplit
    dev: OneHotSplit

    def quality(self, logits: np.ndarray) -> float:
        """The metric of logits (rows, outputs) of dev; minus infinity where it is undefined."""
        if not np.isfinite(logits).all():
            return float("-inf")
        value = score(logits, self.dev.labels, self.task).overall[self.metric]
        return float("-inf") if value is None else value

    def targets(self) -> np.ndarray:
        """The training rows' labels; of a regression in units of the outputs, (value - mean) / scale."""
        if self.task.mean is None or self.task.scale is None:
            return self.train.labels
        return (self.train.labels - np.array(self.task.mean)) / np.array(self.task.scale)


class Point(NamedTuple):
    """One point of a grid: the weight of L2, and Adam's learning rate, which a linear model has not."""

    l2: float
    rate: float | None = None


class Fitted(NamedTuple):
    """A trained model, and what its training took.

    Attributes:
        logits: of one-hot bases (rows, 4, positions): (rows, outputs).
        parameters: their number.
        steps, selected_step: of the optimizer: all, and the one whose parameters are used.
        examples: that training read, repetitions included.
        seconds: of training, without the evaluations on dev.
    """

    logits: Callable[[Tensor], np.ndarray]
    parameters: int
    steps: int
    selected_step: int
    examples: int
    seconds: float


def no_progress() -> None:
    """Takes in that a part of a fit is done, and shows nothing."""
