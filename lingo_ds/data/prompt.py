"""From a sequence to the text that the language model reads."""

import re
from collections.abc import Mapping
from typing import NamedTuple


class Prompt(NamedTuple):
    """Text around the DNA (arXiv 2402.08075, section 3.1): `before + sequence + after`.

    Attributes:
        before, after: may hold {name} of a column.
        columns: of the data that an example's text needs, each once.
    """

    before: str
    after: str
    columns: tuple[str, ...] = ()

    def render(self, sequence: str, *, fields: Mapping[str, str] | None = None) -> str:
        """The whole text of one example; `fields` are its cells by column, None leaves their names."""
        filled = self.filled(fields or {})
        return filled.before + sequence + filled.after

    def filled(self, fields: Mapping[str, str]) -> "Prompt":
        """The text around one example, whose cells by column are `fields`."""
        if not (fields and self.columns):
            return self
        before, after = (
            re.sub(r"\{([^{}]*)\}", lambda found: fields.get(found[1], found[0]), part)
            for part in (self.before, self.after)
        )
        return Prompt(before, after)


def make_prompt(template: str | None, *, domain: str | None) -> Prompt:
    """A task's prompt; `template` holds {sequence} once, and may hold {domain} and {column}s of the data.

    None: the sequence alone.
    """
    template = template or "{sequence}"
    names = re.findall(r"\{([^{}]*)\}", template)
    before, after = (part.replace("{domain}", domain or "") for part in template.split("{sequence}"))
    return Prompt(before, after, tuple(dict.fromkeys(n for n in names if n not in ("sequence", "domain"))))
