"""The grid of a suite: which settings may differ between its runs, their product, and what each is called."""

import hashlib
import itertools
import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator

from lingo_ds.config.fields import rule_error
from lingo_ds.config.recipe import Recipe, fields_at, nearest_setting
from lingo_ds.config.run_config import RunConfig

MAX_COMBINATIONS = 1000
"""Most combinations of one grid, so that a mistyped one does not make runs without end."""

MAX_FOLDER_CHARS = 100
"""Characters of a label that a folder's name keeps."""

_ONE_BACKBONE = "set it outside of the grid: all runs share one backbone"
_OWN_FOLDER = "remove it: each run has a folder that is named after its setting"
_SAME_DEV = "write one recipe for each: settings are compared on the same dev rows"

SHARED = {
    "seed": "set e.g. seeds=[0,1,2]: each setting is trained with each",
    "name": _OWN_FOLDER,
    "output_dir": _OWN_FOLDER,
    "backbone": "write one recipe for each, with extends: all runs share one backbone",
    "zero": _ONE_BACKBONE,
    "checkpoint": "set it outside of the grid, for all runs",
    "data.task": "set tasks: each setting is trained on each",
    "data.path": _SAME_DEV,
    "data.root": _SAME_DEV,
    "data.split_seed": _SAME_DEV,
    "data.dev_fraction": _SAME_DEV,
    "data.test_fraction": _SAME_DEV,
    "selection.metric": "set it outside of the grid: settings are compared by it",
    "task.kind": "set it outside of the grid: it decides by which metric settings are compared",
}
"""Settings and sections that are the same for all runs of a grid, each with the way out."""


def as_list(value: Any) -> Any:
    """Refuses one value where a list of values is asked for."""
    if isinstance(value, str | int | float):
        raise rule_error("is not a list", f"write [{value}]")
    return value


def each_once(values: tuple[Any, ...]) -> tuple[Any, ...]:
    """Refuses an empty list, and an item that comes twice."""
    if len({value_text(value) for value in values}) < max(len(values), 1):
        raise rule_error("must not be empty or repeat an item", "write e.g. [first, second]")
    return values


def _may_differ(name: str) -> str:
    """Refuses what is no single setting of a run, and what all runs share."""
    parts = name.split(".")
    for n in range(1, len(parts) + 1):
        if parts[n - 1] not in fields_at(tuple(parts[: n - 1]), RunConfig):
            raise rule_error("is not a known setting", nearest_setting(parts[:n], RunConfig))
        if fix := SHARED.get(".".join(parts[:n])):
            raise rule_error("cannot differ between the runs of a grid", fix)
    if inside := fields_at(tuple(parts), RunConfig):
        raise rule_error("is a section, not a setting", f"write e.g. {name}.{inside[0]}")
    return name


def _few_enough(grid: dict[str, tuple[Any, ...]]) -> dict[str, tuple[Any, ...]]:
    if (count := math.prod(map(len, grid.values()))) > MAX_COMBINATIONS:
        rule = f"has {count:,} combinations, more than {MAX_COMBINATIONS:,}"
        raise rule_error(rule, "try fewer values, or fewer settings at a time")
    return grid


Grid = Annotated[
    dict[
        Annotated[str, AfterValidator(_may_differ)],
        Annotated[tuple[Any, ...], BeforeValidator(as_list), AfterValidator(each_once)],
    ],
    AfterValidator(_few_enough),
]
"""The values to try of each setting, by its dotted name."""


def with_dotted_grid(recipe: Recipe) -> Recipe:
    """The recipe with dotted names in its grid, where sections may be nested as in the rest of a recipe."""
    grid = recipe.values.get("grid")
    if not isinstance(grid, Mapping):
        return recipe
    lines = {
        ("grid", ".".join(key[1:])) if key[0] == "grid" and len(key) > 1 else key: line
        for key, line in recipe.lines.items()
    }
    return recipe._replace(values=recipe.values | {"grid": dict(_dotted(grid))}, lines=lines)


def _dotted(nested: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in nested.items():
        if isinstance(value, Mapping) and value:
            yield from ((f"{name}.{inner}", below) for inner, below in _dotted(value))
        else:
            yield str(name), value


def combinations(grid: Mapping[str, tuple[Any, ...]]) -> list[dict[str, Any]]:
    """Every combination of a grid's values, the last setting varying fastest; of no grid the empty one."""
    return [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]


def label_of(setting: Mapping[str, Any]) -> str:
    """What a combination is called, e.g. `learning_rate=0.0003,rank=8`; no two of a grid are called alike.

    A setting is named without its section, unless two settings of the grid share the rest of their names.
    """
    uses = Counter(_without_section(name) for name in setting)
    short = {name: last if uses[last := _without_section(name)] == 1 else name for name in setting}
    return ",".join(f"{short[name]}={value_text(value)}" for name, value in setting.items())


def _without_section(name: str) -> str:
    return name.rpartition(".")[2]


def value_text(value: Any) -> str:
    """A value in one line of ASCII: equal values have one text, and other values have another."""
    if isinstance(value, str) and re.fullmatch(r"[\w.+-]+", value, re.ASCII):
        return value
    if isinstance(value, list | tuple):
        return f"[{','.join(map(value_text, value))}]"
    if isinstance(value, float):
        return float.__repr__(value).removesuffix(".0")
    return json.dumps(value, default=str)


def folder_name(label: str) -> str:
    """A label as the name of a folder; where characters were lost, a hash of the label keeps it distinct."""
    safe = re.sub(r"[^\w.,=+-]+", "_", label, flags=re.ASCII)[:MAX_FOLDER_CHARS]
    return safe if safe == label else f"{safe}-{hashlib.sha256(label.encode()).hexdigest()[:8]}"
