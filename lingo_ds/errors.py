"""The one form in which a user's mistake is reported: where, value, rule, fix."""

from collections.abc import Sequence
from typing import NamedTuple


class Mistake(NamedTuple):
    """One thing the user can put right.

    Attributes:
        where: the config field (`train.learning_rate`) or the place in a file (`train.csv:17`).
        value: what was found there, as short text.
        rule: what is allowed.
        fix: what to do.
    """

    where: str
    value: object
    rule: str
    fix: str

    def __str__(self) -> str:
        value = str(self.value)
        shown = value if len(value) <= 80 else value[:77] + "..."
        return f"{self.where}: {shown!r}: {self.rule}: {self.fix}"


class UserError(ValueError):
    """The user's mistakes, all found at once; the entry points print them and exit with status 2.

    `on_all` says that every process of the job raises the same, so that one of them may speak for all.
    """

    def __init__(self, mistakes: Mistake | Sequence[Mistake], *, on_all: bool = False):
        self.on_all = on_all
        self.mistakes = [mistakes] if isinstance(mistakes, Mistake) else list(mistakes)
        super().__init__("\n".join(f"error: {mistake}" for mistake in self.mistakes))
