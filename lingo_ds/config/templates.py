"""Templates with names in braces: finds the names and fills them in."""

import re
from collections.abc import Mapping

_NAME = re.compile(r"\{([^{}]*)\}")

OWN_NAMES = ("sequence", "domain")
"""Names that are no columns of the data."""


def names_in(template: str) -> list[str]:
    """The names between braces, in order, with repetitions."""
    return _NAME.findall(template)


def columns_in(template: str) -> tuple[str, ...]:
    """Columns of the data that a template names, each once."""
    return tuple(dict.fromkeys(name for name in names_in(template) if name not in OWN_NAMES))


def fill_template(template: str, texts: Mapping[str, str]) -> str:
    """Replaces each {name} of `texts`; other names stay, and braces in the texts are not replaced again."""
    return _NAME.sub(lambda found: texts.get(found[1], found[0]), template)
