"""The output of a task that is looked at, as one number per sequence."""

from typing import NamedTuple

from torch import Tensor

from lingo_ds.data.task import Task
from lingo_ds.evaluation.thresholds import DEFAULT_THRESHOLD
from lingo_ds.utils.errors import Mistake, UserError


class Target(NamedTuple):
    """One output of a task.

    Attributes:
        task: the task.
        place: the output's place in the head.
    """

    task: Task
    place: int

    @property
    def name(self) -> str:
        """The output's name."""
        return self.task.output_names[self.place]

    def __str__(self) -> str:
        """The output in words, e.g. `probability of class 1`."""
        if not self.is_probability:
            return f"value {self.name}"
        return f"probability of {'label' if self.task.kind == 'multilabel' else 'class'} {self.name}"

    @property
    def is_probability(self) -> bool:
        """Whether its answers are probabilities, and not values."""
        return self.task.kind != "regression"

    @property
    def threshold(self) -> float | None:
        """The probability above which an example is one of the class or label; None: it has values."""
        if not self.is_probability:
            return None
        thresholds = self.task.thresholds
        if not thresholds:
            return DEFAULT_THRESHOLD
        if self.task.kind == "binary":
            return thresholds[0] if self.place == 1 else 1 - thresholds[0]
        return thresholds[self.place]

    @property
    def scale(self) -> str:
        """What effects are changes of, in words."""
        if self.task.kind == "regression":
            return f"value {self.name}"
        what = "label" if self.task.kind == "multilabel" else "class"
        return f"log odds of {what} {self.name}"

    def score(self, logits: Tensor) -> Tensor:
        """The natural log odds of the class or label, or the value: (n,) of logits (n, outputs).

        Odds of a class are its probability to that of all others together.
        """
        own = logits[:, self.place].double()
        if self.task.kind == "regression":
            assert self.task.scale is not None and self.task.mean is not None  # every regression has them
            return own * self.task.scale[self.place] + self.task.mean[self.place]
        if self.task.kind == "multilabel":
            return own
        others = [place for place in range(self.task.classes) if place != self.place]
        return own - logits[:, others].double().logsumexp(1)


def find_target(task: Task, name: str | None) -> Target:
    """The output of a name, else of a number from 0; None: the positive class of two, or the only output.

    Raises:
        UserError: where there is none of that name or number, or none is named of several.
    """
    names = list(task.output_names)
    known = f"name one of {', '.join(names[:20])}{', ..' if len(names) > 20 else ''}"
    if name is None:
        if task.kind == "binary":
            return Target(task, 1)
        if len(names) == 1:
            return Target(task, 0)
        rule = f"is needed: the adapter has {task.outputs}"
        raise UserError(Mistake("--target", "nothing", rule, known), on_all=True)
    if name not in names and name.isascii() and name.isdecimal() and int(name) < len(names):
        return Target(task, int(name))
    if name not in names:
        raise UserError(
            Mistake("--target", name, f"is none of the adapter's {task.outputs}", known), on_all=True
        )
    return Target(task, names.index(name))
