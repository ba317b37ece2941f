"""What is learned and by which metric it is selected: the sections `task` and `selection`."""

from collections import Counter
from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, field_validator, model_validator

from lingo_ds.config.fields import Name, Section, is_pattern, rule_error

TaskKind = Literal["binary", "multiclass", "multilabel", "regression"]

METRICS = {
    "classes": ("mcc", "accuracy", "macro_f1", "auroc", "auprc"),
    "multilabel": ("macro_auroc", "macro_auprc", "micro_f1", "micro_mcc"),
    "regression": ("pearson", "spearman", "r2"),
}
"""Metrics by which a step can be selected (higher is better), the default first; `classes`: other kinds."""


def distinct_names(names: list[str]) -> list[str]:
    """Returns the names of outputs, which become columns of tables and labels of a model, once checked.

    Raises:
        PydanticCustomError: for a name that occurs twice, is empty, or cannot stand in a list.
    """
    for name in names:
        if not name.strip() or not name.isprintable() or ";" in name:
            raise rule_error(
                "must hold names of printable characters without ;", "rename it", value=name or "nothing"
            )
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice or not names:
        raise rule_error("must hold distinct names, at least one", "name each once", value=twice or names)
    return names


def _is_number(value: Any, *, below: float) -> bool:
    return isinstance(value, int | float) and 0 < value < below


class TaskConfig(Section):
    """What a label means, and what a wrong answer costs."""

    kind: Literal["auto", "binary", "multiclass", "multilabel", "regression"] = Field(
        "auto",
        description="auto: binary where the data has two classes, else multiclass; multilabel: any number of "
        "labels may be true; regression: one or more numbers.",
    )
    labels: Annotated[list[Name], AfterValidator(distinct_names)] | None = Field(
        None, description="Names of the classes, labels or values, in order. null: the columns, else numbers."
    )
    class_weights: Literal["none", "balanced"] | list[float] = Field(
        "none",
        description="Weight of each class in the loss, or of a label's positives. balanced: from the "
        "training rows, n / (classes n_c) for classes, negatives / positives for labels.",
    )
    focal_gamma: Annotated[float, Field(ge=0, le=20)] = Field(
        0.0,
        description="Exponent gamma of focal loss (arXiv 1708.02002), the loss times (1 - p(truth))^gamma.",
    )
    threshold: Literal["dev"] | float = Field(
        0.5,
        description="Probability above which an example is positive, of binary and multilabel tasks. "
        "dev: chosen on dev for the selection metric where it has a threshold, else for MCC.",
    )

    @property
    def family(self) -> Literal["classes", "multilabel", "regression"]:
        """The key of this kind in `METRICS`."""
        if self.kind == "multilabel" or self.kind == "regression":
            return self.kind
        return "classes"

    @field_validator("class_weights", mode="before")
    @classmethod
    def _weights(cls, value: Any) -> Any:
        numbers = isinstance(value, list) and all(_is_number(one, below=1e6) for one in value)
        if not numbers and value not in ("none", "balanced"):
            rule = "is neither none, balanced, nor a list of numbers above 0"
            raise rule_error(rule, "write balanced or e.g. [1, 4]")
        return value

    @field_validator("threshold", mode="before")
    @classmethod
    def _probability(cls, value: Any) -> Any:
        if value != "dev" and not _is_number(value, below=1):
            raise rule_error("is neither dev nor a number between 0 and 1", "write dev or e.g. 0.5")
        return value

    @model_validator(mode="after")
    def _fits_kind(self) -> Self:
        off = {"class_weights": "none", "focal_gamma": 0.0, "threshold": 0.5}
        unfit = {"regression": tuple(off), "multiclass": ("threshold",)}.get(self.kind, ())
        for name in unfit:
            if (value := getattr(self, name)) != off[name]:
                raise _unfit(f"task.{name}", value, f"does not fit task.kind {self.kind}", f"set {off[name]}")
        return self


class SelectionConfig(Section):
    """Which step's adapter is exported."""

    metric: Literal[
        "auto",
        "mcc",
        "accuracy",
        "macro_f1",
        "auroc",
        "auprc",
        "macro_auroc",
        "macro_auprc",
        "micro_f1",
        "micro_mcc",
        "pearson",
        "spearman",
        "r2",
    ] = Field(
        "auto",
        description="Metric on dev, higher is better. auto: mcc of classes, macro_auroc of labels, pearson "
        "of values.",
    )
    after_final_mask: bool = Field(
        True, description="Whether only steps at the target budget can be selected."
    )


def check_fits(
    task: TaskConfig, selection: SelectionConfig, label_columns: Sequence[str] | str | None
) -> None:
    """Checks the kind of task against the other sections.

    Raises:
        PydanticCustomError: naming the setting that does not fit.
    """
    known = METRICS[task.family]
    if selection.metric not in ("auto", *known):
        rule = f"is no metric of task.kind {task.kind}"
        raise _unfit("selection.metric", selection.metric, rule, f"write auto, {' or '.join(known)}")
    if label_columns is None or isinstance(label_columns, str):
        return
    if task.family == "classes":
        rule, fix = f"is a list, and task.kind {task.kind} has one column", "name one, or set task.kind"
        raise _unfit("data.label_column", label_columns, rule, f"{fix} to multilabel or regression")
    if (
        not any(map(is_pattern, label_columns))
        and task.labels is not None
        and len(task.labels) != len(label_columns)
    ):
        rule = f"names {len(task.labels)} outputs, and data.label_column has {len(label_columns)}"
        raise _unfit("task.labels", task.labels, rule, "name each, or leave them out")


def _unfit(field: str, value: Any, rule: str, fix: str) -> Exception:
    return rule_error(rule, fix, field=field, value=value)
