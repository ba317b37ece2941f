"""The content of label cells: a class, or one number per label or value; and the names of the classes."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from lingo_ds.data.missing import is_missing
from lingo_ds.data.mistakes import file_of
from lingo_ds.utils.errors import Mistake

Cell = str | int | float | None
"""Content of a label column, as text or as Parquet has it."""

Target = int | list[float]
"""A class, counted from 0; or one float per label or value, NaN where it is unknown."""

VALUE_KINDS = ("multilabel", "regression")
"""Kinds of task whose target is a list of floats."""

MAX_OUTPUTS = 1 << 16
"""Classes, labels or values of a task at most; more are taken for a mistake or a damaged file."""

MAX_CLASS = 10**9
"""No class has a number as large as this."""

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_MAX_FLOAT32 = float(np.finfo(np.float32).max)


class BadTarget(ValueError):
    """A label that cannot be read: its value, the rule that it breaks, and how to correct it.

    Attributes:
        place: of the value among those of its row; None where a row has one.
    """

    place: int | None = None

    def __init__(self, value: object, rule: str, fix: str):
        super().__init__(f"{value!r}: {rule}: {fix}")
        self.value, self.rule, self.fix = value, rule, fix


def _read_values(cells: Sequence[Cell], *, kind: str) -> list[float]:
    """The labels or values of one example, NaN where unknown."""
    if not cells:
        raise BadTarget("[]", "holds no label or value", "fill it or remove the row")
    parts = cells if len(cells) > 1 else _values_in(cells[0], kind)
    read = _read_label if kind == "multilabel" else _read_value
    try:
        return [math.nan if is_missing(part) else read(part) for part in parts]
    except BadTarget as error:
        error.place = next(k for k, part in enumerate(parts) if part is error.value)
        raise


def _values_in(cell: Cell, kind: str) -> Sequence[Cell]:
    if not isinstance(cell, str):
        return [cell]
    text = cell.strip()
    if text[:1] + text[-1:] == "[]":
        text = text[1:-1].replace(",", " ")
    if kind == "multilabel" and re.fullmatch("[01]+", text):
        return list(text)
    return text.split(";") if ";" in text else text.split() or [""]


def _read_class(cell: Cell) -> int:
    """The number of a class, in any notation: 1, 1.0 and 1e+00 are one."""
    number = _number(cell)
    if number is None or not (number.is_integer() and 0 <= number < MAX_CLASS):
        fix = "number the classes 0, 1, 2, .., or set task.kind"
        raise BadTarget(_text(cell), "label is not an integer from 0", fix)
    return int(number)


def _read_label(part: Cell) -> float:
    number = _number(part)
    if number not in (0, 1):
        raise BadTarget(part, "label is neither 0 nor 1", "write 0 or 1, or NA where it is unknown")
    return number


def _read_value(part: Cell) -> float:
    number = _number(part)
    if number is None or not abs(number) <= _MAX_FLOAT32:
        raise BadTarget(part, "value is no finite number", "write a number, or NA where it is unknown")
    return number


def _number(part: Cell) -> float | None:
    text = _text(part)
    return float(text) if _NUMBER.fullmatch(text) else None


def _text(cell: Cell) -> str:
    """As a CSV would have it: Parquet's 1.0 and true are 1."""
    if isinstance(cell, bool) or (isinstance(cell, float) and cell.is_integer()):
        return str(int(cell))
    return str(cell).strip()


def value_mistakes(train: np.ndarray, *, kind: str) -> list[Mistake]:
    """Mistakes for outputs that training rows, (rows, values) with NaN where unknown, cannot teach."""
    if kind not in VALUE_KINDS:
        return []
    if train.shape[1] > MAX_OUTPUTS:
        rule, fix = f"are more than a task has, {MAX_OUTPUTS:,}", "name the right columns"
        return [Mistake("data.label_column", f"{train.shape[1]:,} values", rule, fix)]
    found = []
    for place, values in enumerate(train.T):
        known = np.unique(values[~np.isnan(values)])
        if not len(known):
            rule = "is known in no training row"
        elif kind == "regression" and len(known) == 1:
            rule = f"is {known[0]:g} in every training row"
        else:
            continue
        fix = "leave it out, or add rows"
        found.append(Mistake("data.label_column", f"label or value {place}", rule, fix))
    return found


class Moments(NamedTuple):
    """Mean and standard deviation of each value, (values,) float64, over the rows that know it."""

    mean: np.ndarray
    scale: np.ndarray


def moments(values: np.ndarray) -> Moments:
    """The moments of targets (rows, values), NaN where unknown; each value is known in some row."""
    values = values.astype(np.float64)
    return Moments(np.nanmean(values, axis=0), np.nanstd(values, axis=0))


def balanced_weights(labels: np.ndarray, *, outputs: int) -> np.ndarray:
    """Weights (outputs,) under which rare outputs count as much as frequent ones.

    Of classes (rows,): n / (outputs n_c), for every class occurs. Of labels (rows, outputs) with NaN where
    unknown: negatives over positives; 1 for a label that the rows have only one of.
    """
    if labels.ndim == 1:
        return len(labels) / (outputs * np.bincount(labels, minlength=outputs))
    positives, negatives = (labels == 1).sum(0), (labels == 0).sum(0)
    both = (positives > 0) & (negatives > 0)
    return np.where(both, negatives / np.maximum(positives, 1), 1.0)


class ClassNames:
    """The numbers of the classes in a stream of labels that are all numbers or all names.

    A text that is no number and has a letter, as in 5mC, is a name; the first label decides which of the two
    all are. Names get numbers in the order they come in; their final order, sorted or as given, is known when
    all were seen.
    """

    def __init__(self, given: tuple[str, ...] | None):
        """Takes the names in the order of their classes; None: the names that come."""
        self._given = given
        self._numbers: dict[str, int] = {name: k for k, name in enumerate(given or ())}
        self._alike: dict[str, str] = {_plain(name): name for name in given or ()}
        self._named: bool | None = None if given is None else True

    def number(self, label: Any) -> Any:
        """The provisional number of a name; a label that is no name is returned as it is.

        Raises:
            BadTarget: for a name among numbers or a number among names, or a name that is not given.
        """
        text = label.strip() if isinstance(label, str) else label
        if self._given is not None:
            return self._given_number(str(text))
        if is_missing(label):
            fix = "fill it or remove the row (a class of this name must be listed in data.class_names)"
            raise BadTarget(text if isinstance(text, str) else "", "label is missing", fix)
        named = isinstance(text, str) and not _NUMBER.fullmatch(text) and any(map(str.isalpha, text))
        if self._named is None:
            self._named = named
        if named != self._named:
            kind = "name" if self._named else "number"
            rule = f"label is no {kind}, and the first one is"
            raise BadTarget(text, rule, "name all classes, or number all of them")
        return self._named_number(text) if named else label

    def _given_number(self, text: str) -> int:
        if (number := self._numbers.get(text)) is not None:
            return number
        near = self._alike.get(_plain(text))
        rule = "label is none of data.class_names" + (f", which has {near!r}" if near else "")
        raise BadTarget(text, rule, "add it there, or correct it")

    def _named_number(self, name: str) -> int:
        if (number := self._numbers.get(name)) is not None:
            return number
        other = self._alike.setdefault(_plain(name), name)
        if other != name:
            fix = "write both alike, or list both in data.class_names"
            raise BadTarget(name, f"label differs from {other!r} in case or blanks alone", fix)
        return self._numbers.setdefault(name, len(self._numbers))

    @property
    def names(self) -> tuple[str, ...] | None:
        """The names in the order of their classes; None where classes are numbers."""
        return self._given or (tuple(sorted(self._numbers)) if self._named else None)

    def final_numbers(self) -> np.ndarray | None:
        """(names,) the class of each provisional number; None where it is the number itself."""
        if self._given is not None or not self._named:
            return None
        order = {name: k for k, name in enumerate(sorted(self._numbers))}
        return np.array([order[name] for name in self._numbers], dtype=np.int64)


def _plain(name: str) -> str:
    """A name without its blanks and its case."""
    return "".join(name.casefold().split())


class TargetReader:
    """The targets of a stream of examples: all of them classes, or all lists of as many values.

    Attributes:
        has_classes: whether a target is a class.
        compares: whether a target is right or wrong, and no measured value.
        names: the classes' names, see `ClassNames`.
        width: values of each target; None before the first one, and of classes.
    """

    def __init__(self, kind: str, class_names: tuple[str, ...] | None):
        """Takes `task.kind` and the names in the order of the classes, see `ClassNames`."""
        self._kind, self.has_classes, self.compares = kind, kind not in VALUE_KINDS, kind != "regression"
        self.names = ClassNames(class_names)
        self.width: int | None = None
        self._known: dict[Cell, int] = {}  # classes of labels that were read before

    def read(self, cells: tuple[Cell, ...]) -> Target:
        """The target of one example; the number of a class that has a name is final only at the end.

        Args:
            cells: content of the label columns, in order. One alone may hold several values, `0 1 0`, `0;1;0`
                or `[0, 1, 0]`, and labels also as `010`.

        Raises:
            BadTarget: for content that says no class, label or value, or not as many as before.
        """
        return self._class_of(cells) if self.has_classes else self._values_of(cells)

    def _class_of(self, cells: tuple[Cell, ...]) -> int:
        if len(cells) != 1:
            raise BadTarget(len(cells), "values are no single class", "name one label column")
        cell: Any = cells[0]
        if isinstance(cell, (dict, list)):  # an object or a list of lists in JSON
            raise BadTarget(str(cell), "label is not an integer from 0 or a name", "write one of them")
        if (known := self._known.get(cell)) is not None:
            return known
        return self._known.setdefault(cell, _read_class(self.names.number(cell)))

    def _values_of(self, cells: tuple[Cell, ...]) -> list[float]:
        values = _read_values(cells, kind=self._kind)
        if self.width is None:
            self.width = len(values)
        if len(values) != self.width:
            rule = f"are not as many as in the first row, which has {self.width}"
            raise BadTarget(f"{len(values)} values", rule, "give each row a value for each label")
        return values


def label_mistakes(
    labels: Mapping[str, np.ndarray], names: tuple[str, ...] | None, *, first: Callable[[str, int], str]
) -> list[Mistake]:
    """Mistakes in the classes of all splits together.

    Args:
        labels: (rows,) classes by split.
        names: of the classes; None: their numbers.
        first: place of the first row of a class that a split has.
    """
    classes = np.unique(labels["train"]).tolist()

    def named(label: int) -> str | int:
        return names[label] if names else label

    gap = next((k for k, label in enumerate(classes) if k != label), None)
    if gap is not None:
        rule = f"labels must run from 0 without a gap, and no row has {named(gap)}"
        fix = f"number the {len(classes)} classes 0 .. {len(classes) - 1}"
        return [Mistake(first("train", classes[-1]), named(classes[-1]), rule, fix)]
    if len(classes) == 1:
        where, fix = file_of(first("train", classes[0])), "a task needs at least two classes"
        return [Mistake(where, named(classes[0]), "is the only label", fix)]
    mistakes = []
    for split in ("dev", "test"):
        for unknown in np.setdiff1d(labels[split], classes)[:1].tolist():
            fix = "add training rows of this class, or remove the row"
            rule = "label does not occur in train"
            mistakes.append(Mistake(first(split, unknown), named(unknown), rule, fix))
    return mistakes
