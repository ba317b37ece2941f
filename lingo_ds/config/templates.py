"""Templates with names in braces: which they hold, and what they become."""

import re
from collections.abc import Mapping

_NAME = re.compile(r"\{([^{}]*)\}")

OWN = ("sequence", "domain")
"""Names that stand for no column of the data."""


def names_in(template: str) -> list[str]:
    """What stands between braces, in order, as often as it does."""
    return _NAME.findall(template)


def columns_in(template: str) -> tuple[str, ...]:
    """Columns of the data that a prompt's template reads, each once."""
    return tuple(dict.fromkeys(name for name in names_in(template) if name not in OWN))


def fill_template(template: str, texts: Mapping[str, str]) -> str:
    """A template with each {name} of `texts` replaced; other names stay, and what is put in is not read."""
    return _NAME.sub(lambda found: texts.get(found[1], found[0]), template)
