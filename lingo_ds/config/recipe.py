"""Reads a recipe: YAML with line numbers, overrides from the command line, and every mistake at once.

Kept on purpose: no library reports all mistakes of a nested config together, each with its file and line.
"""

import difflib
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, get_args, get_origin

import yaml
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from lingo_ds.config.fields import Section
from lingo_ds.config.known_tasks import layered, with_registry
from lingo_ds.config.yaml import compose_yaml, parse_yaml
from lingo_ds.utils.errors import Mistake, UserError, reason_of
from lingo_ds.utils.safe_read import read_regular

MAX_RECIPE_BYTES = 1 << 18
"""Bytes of the largest recipe, so that no other large file is parsed for minutes."""

MAX_RECIPE_MISTAKES = 30
"""Mistakes reported for one recipe; the rest is counted."""

COMMAND_LINE = "command line"
"""The place of a setting that no file has."""

Settings = TypeVar("Settings", bound=Section)

_Key = tuple[str, ...]


class Recipe(NamedTuple):
    """A recipe as it is written, with the overrides laid over it.

    Attributes:
        path: the file to name for a setting that has no line.
        values: nested settings, not validated yet.
        lines: `file:line` of each setting.
        mistakes: overrides that cannot be read.
    """

    path: Path
    values: dict[str, Any]
    lines: dict[_Key, str]
    mistakes: list[Mistake]

    def place_of(self, field: _Key) -> str:
        """Where a setting was written: its own line, else that of what is around or inside it."""
        around = [field[:n] for n in range(len(field), 0, -1)]
        inside = [key for key in self.lines if key[: len(field)] == field]
        return next((self.lines[key] for key in [*around, *inside] if key in self.lines), self.path.name)


def load_settings(kind: type[Settings], overrides: Sequence[str]) -> Settings:
    """Settings that come from the command line alone, as `section.field=value`.

    Raises:
        UserError: with every mistake found, each as field (file:line), value, rule and fix.
    """
    return checked(kind, _overridden({}, {}, overrides, Path(COMMAND_LINE)))


def read_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Reads a recipe and the ones that it extends, and lays `section.field=value` overrides over them.

    Raises:
        UserError: where a file cannot be read, or recipes extend each other in a circle.
    """
    values, lines = _read_extended(path, [])
    return _overridden(values, lines, overrides, path)


def checked(kind: type[Settings], recipe: Recipe) -> Settings:
    """The validated settings of a recipe, with what the registry knows of its task.

    Raises:
        UserError: with every mistake found, each as field (file:line), value, rule and fix.
    """
    mistakes = list(recipe.mistakes)
    try:
        values = with_registry(recipe.values)
    except UserError as error:
        raise UserError([*mistakes, *(_placed(mistake, recipe) for mistake in error.mistakes)]) from None
    try:
        config = kind.model_validate(values)
    except ValidationError as error:
        raise UserError([*mistakes, *_as_mistakes(error, recipe, kind)]) from None
    if mistakes:
        raise UserError(mistakes)
    return config


def _read_extended(path: Path, above: list[Path]) -> tuple[dict[str, Any], dict[_Key, str]]:
    """A file's values over those of the file that its `extends` names, which lies beside it."""
    values, lines = _read_yaml(path)
    if "extends" not in values:
        return values, lines
    name, where = values.pop("extends"), f"extends ({lines.pop(('extends',))})"
    if not isinstance(name, str):
        raise UserError(Mistake(where, name, "is not a file name", "name the recipe to extend"))
    base, above = path.parent / os.path.expanduser(name), [*above, path]
    if not os.path.isfile(base):  # False, where pathlib raises, for what cannot be a path
        raise UserError(Mistake(where, name, "is not a file in this recipe's folder", "correct the name"))
    if any(os.path.samefile(base, one) for one in above):
        raise UserError(Mistake(where, name, "leads back to itself", "remove `extends` from one of them"))
    below, lines_below = _read_extended(base, above)
    return layered(below, values), lines_below | lines


def _overridden(
    values: dict[str, Any], lines: dict[_Key, str], overrides: Sequence[str], path: Path
) -> Recipe:
    """Lays `section.field=value` over the values, in place."""
    mistakes = []
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not re.fullmatch(r"\w+(\.\w+)*", key):
            rule, fix = "is not section.field=value", "write e.g. train.max_steps=100"
            mistakes.append(Mistake(COMMAND_LINE, override, rule, fix))
            continue
        *sections, name = key.split(".")
        target = values
        for section in sections:
            inner = target.get(section)
            target[section] = target = inner if isinstance(inner, dict) else {}
        target[name] = _override_value(text)
        lines[tuple(key.split("."))] = COMMAND_LINE
    return Recipe(path, values, lines, mistakes)


def _override_value(text: str) -> Any:
    """A command-line value, by YAML's rules; `a: b`, which YAML would read as a mapping, is text."""
    try:
        value = parse_yaml(text)
    except yaml.YAMLError:
        return text
    return text if isinstance(value, dict) and not text.lstrip().startswith("{") else value


def _read_yaml(path: Path) -> tuple[dict[str, Any], dict[_Key, str]]:
    """The file's values and, for every key path, its `file:line`."""
    try:
        text = read_regular(path, most=MAX_RECIPE_BYTES).decode("utf-8")
        node, values = compose_yaml(text), parse_yaml(text)
    except OSError as error:
        rule = error.strerror or "cannot be read"
        raise UserError(Mistake("--config", path, rule, "give a YAML file")) from None
    except UnicodeDecodeError:
        raise UserError(Mistake(str(path), "bytes", "is not UTF-8 text", "save it as UTF-8")) from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        problem = getattr(error, "problem", None) or reason_of(error)
        raise UserError(Mistake(where, problem, "is not valid YAML", "correct the syntax there")) from None
    if not isinstance(node, yaml.MappingNode):
        rule, fix = "is not a mapping of settings", "begin with `name: my_run`"
        raise UserError(Mistake(str(path), values, rule, fix))
    lines: dict[_Key, str] = {}
    for key, line in _lines_of(node, ()):
        if key in lines:
            rule = f"is set at {lines[key]} already"
            raise UserError(Mistake(f"{path}:{line}", ".".join(key), rule, "set it once"))
        lines[key] = f"{path.name}:{line}"
    return values, lines


def _lines_of(mapping: yaml.MappingNode, prefix: _Key) -> Iterator[tuple[_Key, int]]:
    """Every key path below a mapping with its line, in the order of the file."""
    for key, value in mapping.value:
        path = (*prefix, str(key.value))
        yield path, key.start_mark.line + 1
        if isinstance(value, yaml.MappingNode):
            yield from _lines_of(value, path)


def _placed(mistake: Mistake, recipe: Recipe) -> Mistake:
    """A mistake in a setting, with the place where it was written."""
    place = recipe.place_of(tuple(mistake.where.split(".")))
    return mistake._replace(where=f"{mistake.where} ({place})")


def _as_mistakes(error: ValidationError, recipe: Recipe, kind: type[Section]) -> list[Mistake]:
    """What pydantic found, one mistake per setting."""
    by_setting: dict[str, Mistake] = {}
    problems = error.errors()
    for problem in problems[:MAX_RECIPE_MISTAKES]:
        mistake = _as_mistake(problem, recipe, kind)
        by_setting.setdefault(mistake.where, mistake)
    mistakes = list(by_setting.values())
    if (more := len(problems) - MAX_RECIPE_MISTAKES) > 0:
        fix = "fix the errors above first"
        mistakes.append(Mistake(str(recipe.path), f"{more} more", "are wrong too", fix))
    return mistakes


def _as_mistake(problem: ErrorDetails, recipe: Recipe, kind: type[Section]) -> Mistake:
    """One of pydantic's findings in the contract's form."""
    context = problem.get("ctx", {})
    field = context["field"].split(".") if context.get("field") else _field_of(problem["loc"], kind)
    where = f"{'.'.join(field)} ({recipe.place_of(tuple(field))})"
    value, rule, fix = problem["input"], problem["msg"], "correct the value"
    if problem["type"] == "extra_forbidden":
        rule, fix = "is not a known setting", nearest_setting(field, kind)
    elif problem["type"] == "missing":
        value, rule, fix = "nothing", "is required", f"set {'.'.join(field)}"
    elif problem["type"] == "rule":
        value, fix = context.get("value", value), context["fix"]
    return Mistake(where, value, rule[0].lower() + rule[1:], fix)


def nearest_setting(field: list[str], kind: type[Section]) -> str:
    """Advice for an unknown setting: the nearest known one beside it, else all of them."""
    *section, _ = field
    if not (siblings := fields_at(tuple(section), kind)):
        return f"{'.'.join(section)} is a setting itself"
    near = difflib.get_close_matches(field[-1], siblings, n=1, cutoff=0.5)
    return f"did you mean {'.'.join([*field[:-1], *near])}?" if near else f"known here: {', '.join(siblings)}"


def _field_of(location: tuple[str | int, ...], kind: type[Section]) -> list[str]:
    """The setting's name, without the tags that pydantic adds for members of a union or a list.

    A mapping's keys are names that the user chose, so one of them belongs to it.
    """
    field: list[str] = []
    for part in location:
        field.append(str(part))
        if not fields_at(tuple(field), kind) and not _is_mapping(field, kind):
            break
    return field


def _is_mapping(field: list[str], kind: type[Section]) -> bool:
    section = _section_at(tuple(field[:-1]), kind)
    info = section.model_fields.get(field[-1]) if section else None
    return info is not None and get_origin(info.annotation) is dict


def fields_at(field: _Key, kind: type[Section]) -> list[str]:
    """Names of the settings below a section; empty for a plain setting or an unknown name."""
    section = _section_at(field, kind)
    return list(section.model_fields) if section else []


def _section_at(field: _Key, kind: type[Section]) -> type[Section] | None:
    section: type[Section] | None = kind
    for name in field:
        info = section.model_fields.get(name) if section else None
        candidates = [info.annotation, *get_args(info.annotation)] if info else []
        section = next((c for c in candidates if isinstance(c, type) and issubclass(c, Section)), None)
    return section
