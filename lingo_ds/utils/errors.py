"""The one form in which a user's mistake is reported: where, value, rule, fix."""

from collections.abc import Sequence
from typing import NamedTuple

MAX_MESSAGE_CHARS = 400
"""Most characters of each part of a mistake; names of fields, files and tensors may come from anywhere."""

MAX_FIX_CHARS = 800
"""Most characters of the way out, which may be a command with long paths in it."""


class Mistake(NamedTuple):
    """One thing that the user can correct.

    Attributes:
        where: config field (`train.learning_rate`) or place in a file (`train.csv:17`).
        value: the value found there; as text it is cut at 80 characters, unless it is a path.
        rule: the rule that it breaks.
        fix: the remedy.
    """

    where: str
    value: object
    rule: str
    fix: str

    def __str__(self) -> str:
        value = str(self.value)
        most = MAX_MESSAGE_CHARS if "/" in value else 80
        shown = value if len(value) <= most else value[: most - 3] + "..."
        where, rule = one_line(self.where), one_line(self.rule)
        fix = one_line(self.fix, most=MAX_FIX_CHARS)
        return f"{where}: {shown!r}: {rule}: {fix}"


class UserError(ValueError):
    """The user's mistakes, all reported at once; the entry points print them and exit with status 2.

    Attributes:
        mistakes: the mistakes, at least one.
        on_all: whether every process of the job raises the same error, so that one of them may report it.
    """

    def __init__(self, mistakes: Mistake | Sequence[Mistake], *, on_all: bool = False):
        self.on_all = on_all
        self.mistakes = [mistakes] if isinstance(mistakes, Mistake) else list(mistakes)
        super().__init__("\n".join(f"error: {mistake}" for mistake in self.mistakes))


class LoneError(UserError):
    """A mistake that one process meets amid common work: the others, which wait for it, must end."""


def one_line(text: str, *, most: int = MAX_MESSAGE_CHARS) -> str:
    """`text` safe for a terminal: control characters escaped, the middle of a long text left out."""
    return _shortened(printable(_shortened(text, most)), most)


def printable(text: str) -> str:
    """`text` with every unprintable character (control, text direction, surrogate) escaped."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def _shortened(text: str, most: int) -> str:
    half = (most - 3) // 2
    return text if len(text) <= most else f"{text[:half]}...{text[-half:]}"


def reason_of(error: BaseException) -> str:
    """The first line of an exception's message, or what that announces; its name where it says little."""
    name, lines = type(error).__name__, [line.strip() for line in str(error).split("\n") if line.strip()]
    if not lines:
        return name
    text = " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
    return text if len(text.split()) > 2 else f"{name}: {text}"
