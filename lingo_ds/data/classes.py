"""Classes: names for numbers, and which labels make a task."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from lingo_ds.data.checks import file_of
from lingo_ds.data.targets import BadTarget
from lingo_ds.utils.errors import Mistake


class ClassNames:
    """Numbers the classes of a stream of labels that are all numbers or all names.

    What begins with a letter is a name. Names get numbers as they come; the order they end in is known when
    all were seen: sorted, or as given. The first label decides which of the two all are.
    """

    def __init__(self, given: tuple[str, ...] | None):
        """Takes the names in the order of their classes; None: whatever comes."""
        self._given = given
        self._numbers: dict[str, int] = {name: k for k, name in enumerate(given or ())}
        self._named: bool | None = None if given is None else True

    def number(self, label: Any) -> Any:
        """The number that stands for a name for now; what is no name as it is.

        Raises:
            BadTarget: for a name among numbers or a number among names, or a name that is not given.
        """
        text = label.strip() if isinstance(label, str) else label
        if self._given is not None:
            if (number := self._numbers.get(str(text))) is None:
                raise BadTarget(text, "label is none of data.class_names", "add it there, or correct it")
            return number
        named = isinstance(text, str) and (text[:1].isalpha() or text[:1] == "_")
        if self._named is None:
            self._named = named
        if not self._named:
            return label
        if not named:
            fix = "name all classes, or number all of them"
            raise BadTarget("" if text is None else text, "label is no name, and the first one is", fix)
        return self._numbers.setdefault(text, len(self._numbers))

    @property
    def names(self) -> tuple[str, ...] | None:
        """In the order of their classes; None where classes are numbers."""
        return self._given or (tuple(sorted(self._numbers)) if self._named else None)

    def final_numbers(self) -> np.ndarray | None:
        """(names,) the class of each number given out; None where it is the number itself."""
        if self._given is not None or not self._named:
            return None
        order = {name: k for k, name in enumerate(sorted(self._numbers))}
        return np.array([order[name] for name in self._numbers], dtype=np.int64)


def label_mistakes(
    labels: Mapping[str, np.ndarray], names: tuple[str, ...] | None, *, first: Callable[[str, int], str]
) -> list[Mistake]:
    """What is wrong with the classes of all splits together.

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
