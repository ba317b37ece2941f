"""What is learned: the kind of task, its outputs, and what turns them into answers."""

from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from lingo_ds.config import RunConfig
from lingo_ds.data.targets import moments
from lingo_ds.errors import Mistake, UserError
from lingo_ds.task_config import Kind


@dataclass(frozen=True)
class Task:
    """A task.

    Attributes:
        name: of the run that trains it.
        kind: `binary`, `multiclass`, `multilabel` or `regression`.
        classes: outputs of the head: classes, labels or values.
        template: text around the DNA, with {sequence}; None: the sequence alone.
        domain: text for {domain} in the template.
        max_length: longest example in tokens.
        names: of the outputs; empty: their numbers.
        thresholds: probabilities above which an example is positive, one of a binary task, one per label of a
            multilabel one; None: 0.5.
        mean: of each value of a regression; its output o means the value mean + scale o.
        scale: standard deviation of each.
    """

    name: str
    kind: Kind
    classes: int
    template: str | None
    domain: str | None
    max_length: int
    names: tuple[str, ...] = ()
    thresholds: tuple[float, ...] | None = None
    mean: tuple[float, ...] | None = None
    scale: tuple[float, ...] | None = None

    @property
    def output_names(self) -> tuple[str, ...]:
        """A name for each output."""
        return self.names or tuple(str(place) for place in range(self.classes))

    @property
    def outputs(self) -> str:
        """What the outputs are, in words."""
        word = {"multilabel": "labels", "regression": "values"}.get(self.kind, "classes")
        return f"{self.classes} {word}"

    def with_thresholds(self, thresholds: tuple[float, ...] | None) -> "Task":
        """The same task, decided by others."""
        return replace(self, thresholds=thresholds)

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values."""
        return asdict(self)


def make_task(name: str, *, classes: int, template: str | None, domain: str | None, max_length: int) -> Task:
    """The task behind labels 0 .. classes - 1."""
    return Task(name, "binary" if classes == 2 else "multiclass", classes, template, domain, max_length)


def task_of(config: RunConfig, train_labels: np.ndarray, *, classes: int, max_length: int) -> Task:
    """The task that a config and its training rows make.

    Args:
        config: of the run.
        train_labels: (rows,) classes, or (rows, values) with NaN where unknown.
        classes: outputs of the head.
        max_length: longest example in tokens.

    Raises:
        UserError: on every process alike, where a setting of `task` does not go with the rows.
    """
    setting, data = config.task, config.data
    task = make_task(
        config.name, classes=classes, template=data.prefix, domain=data.domain, max_length=max_length
    )
    task = replace(
        task,
        kind=task.kind if setting.kind == "auto" else setting.kind,
        names=tuple(setting.labels or _column_names(config, classes)),
    )
    if mistakes := _mistakes(config, task):
        raise UserError(mistakes, on_all=True)
    if task.kind == "regression":
        mean, scale = moments(train_labels)
        return replace(task, mean=tuple(mean.tolist()), scale=tuple(scale.tolist()))
    if setting.threshold not in ("dev", 0.5):
        many = classes if task.kind == "multilabel" else 1
        return task.with_thresholds((setting.threshold,) * many)
    return task


def _column_names(config: RunConfig, classes: int) -> list[str]:
    """The label columns' names where each holds one label or value."""
    columns = config.data.label_columns
    return columns if config.task.family != "classes" and len(columns) == classes else []


def _mistakes(config: RunConfig, task: Task) -> list[Mistake]:
    setting, found = config.task, []
    if task.kind == "binary" and task.classes != 2:
        rule, fix = f"has two classes, and the training rows have {task.classes}", "set multiclass"
        found.append(Mistake("task.kind", task.kind, rule, fix))
    if task.kind == "multiclass" and setting.threshold != 0.5:
        rule, fix = f"is for two classes, and the training rows have {task.classes}", "set 0.5"
        found.append(Mistake("task.threshold", setting.threshold, rule, fix))
    for name, given in (("labels", setting.labels), ("class_weights", setting.class_weights)):
        if isinstance(given, list) and len(given) != task.classes:
            rule, fix = f"has {len(given)} entries, and the training rows {task.outputs}", "give one for each"
            found.append(Mistake(f"task.{name}", given, rule, fix))
    return found
