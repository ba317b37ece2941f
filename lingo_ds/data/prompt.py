"""From a sequence to the text that the language model reads."""

from typing import NamedTuple


class Prompt(NamedTuple):
    """Text around the DNA (arXiv 2402.08075, section 3.1): `before + sequence + after`.

    The second sequence of a pair follows the first one behind `between`.
    """

    before: str
    after: str
    between: str = ""

    def render(self, sequence: str, pair: str | None = None) -> str:
        """The whole text of one example."""
        second = "" if pair is None else self.between + pair
        return self.before + sequence + second + self.after


def make_prompt(template: str | None, *, domain: str | None, pair_separator: str = "") -> Prompt:
    """A task's prompt; `template` holds {sequence} once and may hold {domain}. None: the sequence alone."""
    before, after = (template or "{sequence}").split("{sequence}")
    return Prompt(*(part.replace("{domain}", domain or "") for part in (before, after)), pair_separator)


def first_bases(sequence: str, pair: str | None, bases: int) -> tuple[str, str | None]:
    """An example shortened to so many bases; the two of a pair lose the same share of their ends."""
    if pair is None:
        return sequence[:bases], None
    of_pair = bases * len(pair) // (len(sequence) + len(pair))
    return sequence[: bases - of_pair], pair[:of_pair]
