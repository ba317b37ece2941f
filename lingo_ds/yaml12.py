"""YAML with the scalars of version 1.2, reading and writing alike: `off` is a word, `3e-3` is a number."""

import re
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


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers = _RESOLVERS

    def construct_decimal(self, node: yaml.Node) -> int:
        """A whole number; `010` is ten, not eight."""
        return int(self.construct_scalar(node))


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
    """The values of a YAML document."""
    return _Loader(text).get_single_data()


def compose(text: str) -> yaml.Node | None:
    """The nodes of a YAML document, with their lines."""
    return _Loader(text).get_single_node()


def dump(values: Any) -> str:
    """YAML that `parse` reads back as the same values."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False)
