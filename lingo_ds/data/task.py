"""The task of a run: its kind, its outputs, and how these become answers."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, Protocol

import numpy as np

from lingo_ds.config.run_config import RunConfig
from lingo_ds.config.task_config import TaskKind
from lingo_ds.data.labels import moments, value_mistakes
from lingo_ds.utils.errors import Mistake, UserError


@dataclass(frozen=True)
class Task:
    """A task, as its adapter keeps it.

    Attributes:
        name: of the run that trains it.
        kind: `binary`, `multiclass`, `multilabel` or `regression`.
        classes: outputs of the head: classes, labels or values.
        template: text around the DNA, with {sequence}; None: the sequence alone.
        domain: text for {domain} in the template.
        max_length: longest example in tokens.
        pair_separator: text between the two sequences of an example; None: an example has one.
        names: of the outputs; empty: their numbers.
        thresholds: probabilities above which an example is positive, one of a binary task, one per label of a
            multilabel one; None: 0.5.
        mean: of each value of a regression; its output o means the value mean + scale o.
        scale: standard deviation of each.
        tokens: how DNA is read: as `text`, or as `nucleotides` with embeddings of their own.
    """

    name: str
    kind: TaskKind
    classes: int
    template: str | None
    domain: str | None
    max_length: int
    pair_separator: str | None = None
    names: tuple[str, ...] = ()
    thresholds: tuple[float, ...] | None = None
    mean: tuple[float, ...] | None = None
    scale: tuple[float, ...] | None = None
    tokens: Literal["text", "nucleotides"] = "text"

    @property
    def output_names(self) -> tuple[str, ...]:
        """A name for each output."""
        return self.names or tuple(str(place) for place in range(self.classes))

    @property
    def outputs(self) -> str:
        """The outputs in words, e.g. `3 labels`."""
        word = {"multilabel": "labels", "regression": "values"}.get(self.kind, "classes")
        return f"{self.classes} {word}"

    def with_thresholds(self, thresholds: tuple[float, ...] | None) -> "Task":
        """The same task with these thresholds."""
        return replace(self, thresholds=thresholds)

    def to_dict(self) -> dict[str, Any]:
        """The task as plain JSON values."""
        values = asdict(self)
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def make_task(
    name: str,
    *,
    classes: int,
    template: str | None,
    domain: str | None,
    max_length: int,
    pair_separator: str | None = None,
    tokens: Literal["text", "nucleotides"] = "text",
) -> Task:
    """A task of classes 0 .. classes - 1."""
    kind: TaskKind = "binary" if classes == 2 else "multiclass"
    return Task(name, kind, classes, template, domain, max_length, pair_separator, tokens=tokens)


class LabelledData(Protocol):
    """What a task needs to know of its data, tokenised or not.

    Attributes:
        classes: outputs that a head needs: classes, labels or values.
        class_names: in the order of the classes; None where they are numbers.
        pairs: whether an example has two sequences.
        label_columns: names of the columns that the labels came from; empty where they have none.
        train_labels: (rows,) classes, or (rows, values) with NaN where unknown.
    """

    @property
    def classes(self) -> int: ...

    @property
    def class_names(self) -> tuple[str, ...] | None: ...

    @property
    def pairs(self) -> bool: ...

    @property
    def label_columns(self) -> tuple[str, ...]: ...

    @property
    def train_labels(self) -> np.ndarray: ...


def task_of(config: RunConfig, data: LabelledData, *, max_length: int) -> Task:
    """The task that a config and its training rows make.

    Args:
        config: of the run.
        data: of the run.
        max_length: longest example in tokens, or in bases where nothing is tokenised.

    Raises:
        UserError: on every process alike, where a setting of `task` does not fit the rows.
    """
    setting, text, classes, train_labels = config.task, config.data, data.classes, data.train_labels
    task = make_task(
        config.name,
        classes=classes,
        template=text.prefix,
        domain=text.domain,
        max_length=max_length,
        pair_separator=text.pair_separator if data.pairs else None,
        tokens=text.tokens,
    )
    task = replace(
        task,
        kind=task.kind if setting.kind == "auto" else setting.kind,
        names=tuple(setting.labels or data.class_names or _column_names(config, data)),
    )
    if mistakes := _mistakes(config, task) + value_mistakes(train_labels, kind=task.kind):
        raise UserError(mistakes, on_all=True)
    if task.kind == "regression":
        mean, scale = moments(train_labels)
        return replace(task, mean=tuple(mean.tolist()), scale=tuple(scale.tolist()))
    if setting.threshold != "dev" and setting.threshold != 0.5:
        count = classes if task.kind == "multilabel" else 1
        return task.with_thresholds((setting.threshold,) * count)
    return task


def _column_names(config: RunConfig, data: LabelledData) -> Sequence[str]:
    """The label columns' names where each holds one label or value."""
    columns = data.label_columns
    return columns if config.task.family != "classes" and len(columns) == data.classes else ()


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
