"""YAML with the scalars of version 1.2, reading and writing alike: `off` is a word, `3e-3` is a number."""

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


DEEPEST = 30
"""Levels of mappings and lists in each other."""


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers = _RESOLVERS
    _depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """A node as it is written out: an alias could stand for any number of nodes, a tag for any object."""
        event = self.peek_event()
        problem = None
        if isinstance(event, yaml.AliasEvent):
            problem = (
                f"the alias *{event.anchor} stands for what is written elsewhere, which is not read here"
            )
        elif event.tag not in (None, "!"):
            problem = f"the tag {event.tag} names a type, which is not read here"
        elif self._depth == DEEPEST:
            problem = f"more than {DEEPEST} levels lie in each other"
        if problem:
            raise yaml.composer.ComposerError(None, None, problem, event.start_mark)
        self._depth += 1
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def construct_decimal(self, node: yaml.ScalarNode) -> int:
        """A whole number; `010` is ten, not eight."""
        try:
            return int(self.construct_scalar(node))
        except ValueError:
            problem = "a number has more digits than can be read"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark) from None


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_decimal)


_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"(?i:true|false)$"), list("tTfF"))
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"(?i:[-+]?(?:(?:\d+\.\d*|\.\d+)(?:e[-+]?\d+)?|\d+e[-+]?\d+|\.inf|\.nan))$"),
    list("-+0123456789."),
)


_Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"[-+]?\d+$"), list("-+0123456789"))


class _Dumper(yaml.SafeDumper):
    yaml_implicit_resolvers = _Loader.yaml_implicit_resolvers


def parse(text: str) -> Any:
    """The values of a YAML document.

    Raises:
        yaml.YAMLError: where it is none, or holds what could stand for more than is written.
    """
    return _read(text, _Loader.get_single_data)


def compose(text: str) -> yaml.Node | None:
    """The nodes of a YAML document, with their lines; raises as `parse` does."""
    return _read(text, _Loader.get_single_node)


def _read(text: str, read: Callable[[_Loader], Any]) -> Any:
    try:
        return read(_Loader(text))
    except ValueError as error:  # PyYAML's own slip: an escape beyond the last character
        raise yaml.YAMLError(str(error)) from None


def dump(values: Any) -> str:
    """YAML that `parse` reads back as the same values."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False)
