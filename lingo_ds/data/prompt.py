"""From a sequence to the text that the language model reads."""

from typing import NamedTuple


class Prompt(NamedTuple):
    """Text around the DNA (arXiv 2402.08075, section 3.1): `before + sequence + after`."""

    before: str
    after: str

    def render(self, sequence: str) -> str:
        """The whole text of one example."""
        return self.before + sequence + self.after


def make_prompt(template: str | None, *, domain: str | None) -> Prompt:
    """A task's prompt; `template` holds {sequence} once and may hold {domain}. None: the sequence alone."""
    before, after = (template or "{sequence}").split("{sequence}")
    return Prompt(*(part.replace("{domain}", domain or "") for part in (before, after)))
