"""A smallest recipe, and how tests change it."""

import re

from lingo_ds.utils.errors import Mistake

MINIMAL = """\
name: tata
backbone:
  path: builtin:tiny
data:
  path: builtin:promoters
"""


def where(mistakes: list[Mistake]) -> list[str]:
    return [mistake.where for mistake in mistakes]


def set_to(field: str, value: str) -> str:
    """A recipe in which one field has a value, on line 8 where its section is not a required one."""
    section, name = field.split(".")
    if name == "path":
        return re.sub(rf"(?<={section}:\n  path: ).*", value, MINIMAL)
    if section in ("backbone", "data"):
        return MINIMAL.replace(f"{section}:\n", f"{section}:\n  {name}: {value}\n")
    return f"{MINIMAL}# a comment\n{section}:\n  {name}: {value}\n"
