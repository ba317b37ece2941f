"""Reads and writes YAML with the scalars of version 1.2: `off` is a word, `3e-3` is a number.

PyYAML, which reads it, follows version 1.1, where `off` is false and `3e-3` is text.
"""

import re
from collections.abc import Callable
from typing import Any

import yaml

_RESOLVERS = {
    first: [
        (tag, pattern)
        for tag, pattern in resolvers
        if not tag.endswith((":bool", ":float", ":int", ":timestamp"))
    ]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


MAX_YAML_DEPTH = 30
"""Most levels to which mappings and lists may be nested."""


class SpelledInt(int):
    """A whole number that remembers how it was written: as a name, `007` is not `7`."""

    spelled: str

    def __new__(cls, text: str) -> "SpelledInt":
        number = super().__new__(cls, text)
        number.spelled = text
        return number


class SpelledFloat(float):
    """A number that remembers how it was written: as a name, `1.10` is not `1.1`."""

    spelled: str


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers = _RESOLVERS
    _depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Composes a node, without aliases (one could stand for any number of nodes) and without tags."""
        event = self.peek_event()
        problem = None
        if isinstance(event, yaml.AliasEvent):
            problem = f"the alias *{event.anchor} refers to another place, which is not supported here"
        elif event.tag not in (None, "!"):
            problem = f"the tag {event.tag} names a type, which is not supported here"
        elif self._depth == MAX_YAML_DEPTH:
            problem = f"more than {MAX_YAML_DEPTH} levels are nested"
        if problem:
            raise yaml.composer.ComposerError(None, None, problem, event.start_mark)
        self._depth += 1
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def construct_decimal(self, node: yaml.ScalarNode) -> int:
        """A whole number; `010` is ten, not eight."""
        try:
            return SpelledInt(self.construct_scalar(node))
        except ValueError:
            problem = "a number has more digits than can be read"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark) from None

    def construct_spelled_float(self, node: yaml.ScalarNode) -> float:
        """A number as PyYAML reads it, which remembers how it was written."""
        number = SpelledFloat(self.construct_yaml_float(node))
        number.spelled = self.construct_scalar(node)
        return number


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_decimal)
_Loader.add_constructor("tag:yaml.org,2002:float", _Loader.construct_spelled_float)


_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"(?i:true|false)$"), list("tTfF"))
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"(?i:[-+]?(?:(?:\d+\.\d*|\.\d+)(?:e[-+]?\d+)?|\d+e[-+]?\d+|\.inf|\.nan))$"),
    list("-+0123456789."),
)


_Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"[-+]?\d+$"), list("-+0123456789"))


class _Dumper(yaml.SafeDumper):
    yaml_implicit_resolvers = _Loader.yaml_implicit_resolvers


def parse_yaml(text: str) -> Any:
    """The values of a YAML document.

    Raises:
        yaml.YAMLError: where it is not YAML, or has an alias, a tag or too many levels.
    """
    return _read(text, _Loader.get_single_data)


def compose_yaml(text: str) -> yaml.Node | None:
    """The nodes of a YAML document, with their lines; raises as `parse_yaml` does."""
    return _read(text, _Loader.get_single_node)


def _read(text: str, read: Callable[[_Loader], Any]) -> Any:
    try:
        return read(_Loader(text))
    except ValueError as error:  # PyYAML does not catch an escape beyond the last character
        raise yaml.YAMLError(str(error)) from None


def dump_yaml(values: Any) -> str:
    """YAML text that `parse_yaml` reads back as the same values."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False)
