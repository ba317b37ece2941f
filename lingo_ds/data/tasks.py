"""What is learned: the kind of task and its classes."""

from dataclasses import asdict, dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Task:
    """A classification task.

    Attributes:
        name: of the run that trains it.
        kind: `binary` or `multiclass`.
        classes: number of labels.
        template: text around the DNA, with {sequence}; None: the sequence alone.
        domain: text for {domain} in the template.
        max_length: longest example in tokens.
        pair_separator: text between the two sequences of an example; None: an example has one.
    """

    name: str
    kind: Literal["binary", "multiclass"]
    classes: int
    template: str | None
    domain: str | None
    max_length: int
    pair_separator: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values."""
        return asdict(self)


def make_task(
    name: str,
    *,
    classes: int,
    template: str | None,
    domain: str | None,
    max_length: int,
    pair_separator: str | None = None,
) -> Task:
    """The task behind labels 0 .. classes - 1."""
    kind = "binary" if classes == 2 else "multiclass"
    return Task(name, kind, classes, template, domain, max_length, pair_separator)
