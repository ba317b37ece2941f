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
        tokens: how DNA is read: as `text`, or as `nucleotides` with embeddings of their own.
    """

    name: str
    kind: Literal["binary", "multiclass"]
    classes: int
    template: str | None
    domain: str | None
    max_length: int
    tokens: Literal["text", "nucleotides"] = "text"

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
    tokens: Literal["text", "nucleotides"] = "text",
) -> Task:
    """The task behind labels 0 .. classes - 1."""
    kind = "binary" if classes == 2 else "multiclass"
    return Task(name, kind, classes, template, domain, max_length, tokens)
