"""From a sequence to the text that the language model reads."""

from collections.abc import Mapping
from typing import NamedTuple

from lingo_ds.config.templates import columns_in, fill_template


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
        """The whole text of one example; `fields` are its cells by column, None leaves their {names}."""
        filled = self.filled(fields or {})
        return filled.before + sequence + filled.after

    def filled(self, fields: Mapping[str, str]) -> "Prompt":
        """The text around one example, whose cells by column are `fields`."""
        if not (fields and self.columns):
            return self
        return Prompt(fill_template(self.before, fields), fill_template(self.after, fields))


def make_prompt(template: str | None, *, domain: str | None) -> Prompt:
    """A task's prompt; `template` holds {sequence} once, and may hold {domain} and {column}s of the data.

    None: the sequence alone.
    """
    template = template or "{sequence}"
    before, after = (part.replace("{domain}", domain or "") for part in template.split("{sequence}"))
    return Prompt(before, after, columns_in(template))
