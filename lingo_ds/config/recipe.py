"""Reading a recipe: YAML with line numbers, overrides from the command line, and every mistake at once."""

import difflib
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, get_args

import yaml
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from lingo_ds.config import yaml as yaml12
from lingo_ds.config.fields import Section
from lingo_ds.config.known_tasks import layered, with_registry
from lingo_ds.config.run_config import RunConfig
from lingo_ds.utils.errors import Mistake, UserError, reason_of
from lingo_ds.utils.safe_read import read_regular

MAX_RECIPE_BYTES = 1 << 18
"""Of a recipe, so that what is none is not read for minutes."""

MAX_RECIPE_MISTAKES = 30
"""Mistakes reported for one recipe; the rest is counted."""

Settings = TypeVar("Settings", bound=Section)


def load_config(path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Reads a YAML recipe and lays `section.field=value` overrides over it.

    Raises:
        UserError: with every mistake found, each as field (file:line), value, rule and fix.
    """
    return checked(RunConfig, read_recipe(path, overrides))


def load_settings(kind: type[Settings], overrides: Sequence[str]) -> Settings:
    """Settings that come from the command line alone, as `section.field=value`.

    Raises:
        UserError: as `load_config`.
    """
    return checked(kind, _overridden({}, {}, overrides, Path("command line")))


class Recipe(NamedTuple):
    """A recipe as it is written, with the overrides laid over it.

    Attributes:
        path: where a setting without a line came from.
        values: nested, not checked yet.
        lines: `file:line` of each setting.
        mistakes: overrides that are none.
    """

    path: Path
    values: dict
    lines: dict[tuple[str, ...], str]
    mistakes: list[Mistake]


def read_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Reads a recipe, over the one that it extends.

    Raises:
        UserError: where a file cannot be read, or recipes extend each other in a circle.
    """
    values, lines = _read_extended(path, [])
    return _overridden(values, lines, overrides, path)


def _read_extended(path: Path, above: list[Path]) -> tuple[dict, dict[tuple[str, ...], str]]:
    """A file's values over those of the file that its `extends` names, which lies beside it."""
    values, lines = _read_yaml(path)
    if "extends" not in values:
        return values, lines
    name, where = values.pop("extends"), f"extends ({lines.pop(('extends',))})"
    if not isinstance(name, str):
        raise UserError(Mistake(where, name, "is no file name", "name the recipe below this one"))
    base, above = path.parent / name, [*above, path]
    if not os.path.isfile(base):  # False, where pathlib raises, for what can be no path
        raise UserError(Mistake(where, name, "is no file beside this one", "correct the name"))
    if any(os.path.samefile(base, one) for one in above):
        raise UserError(Mistake(where, name, "leads back to itself", "let one of the recipes stand alone"))
    below, lines_below = _read_extended(base, above)
    return layered(below, values), lines_below | lines


def _overridden(
    values: dict, lines: dict[tuple[str, ...], str], overrides: Sequence[str], path: Path
) -> Recipe:
    """Values with `section.field=value` laid over them."""
    mistakes = []
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not re.fullmatch(r"\w+(\.\w+)*", key):
            mistakes.append(
                Mistake(
                    "command line", override, "is not section.field=value", "write e.g. train.max_steps=100"
                )
            )
            continue
        *sections, name = key.split(".")
        target = values
        for section in sections:
            inner = target.get(section)
            target[section] = target = inner if isinstance(inner, dict) else {}
        target[name] = _override_value(text)
        lines[tuple(key.split("."))] = "command line"
    return Recipe(path, values, lines, mistakes)


def checked(kind: type[Settings], recipe: Recipe) -> Settings:
    """The settings of a recipe, with what the registry knows of its task.

    Raises:
        UserError: with every mistake found.
    """
    path, values, lines, mistakes = recipe
    mistakes = list(mistakes)
    try:
        values = with_registry(values)
    except UserError as error:
        mistakes += [_placed(mistake, lines, path) for mistake in error.mistakes]
        raise UserError(mistakes) from None
    try:
        config = kind.model_validate(values)
    except ValidationError as error:
        by_setting: dict[str, Mistake] = {}
        problems = error.errors()
        for problem in problems[:MAX_RECIPE_MISTAKES]:
            mistake = _as_mistake(problem, lines, path, kind)
            by_setting.setdefault(mistake.where, mistake)
        mistakes += by_setting.values()
        if (more := len(problems) - MAX_RECIPE_MISTAKES) > 0:
            mistakes.append(Mistake(str(path), f"{more} more", "are wrong too", "mend those above first"))
    if mistakes:
        raise UserError(mistakes)
    return config


def _placed(mistake: Mistake, lines: dict[tuple[str, ...], str], path: Path) -> Mistake:
    """A mistake in a setting, with the place where it was written."""
    place = _place_of(tuple(mistake.where.split(".")), lines, path)
    return mistake._replace(where=f"{mistake.where} ({place})")


def _override_value(text: str) -> Any:
    """A command-line value, by YAML's rules; what only YAML would take for a mapping is text."""
    try:
        value = yaml12.parse(text)
    except yaml.YAMLError:
        return text
    return text if isinstance(value, dict) and not text.lstrip().startswith("{") else value


def _read_yaml(path: Path) -> tuple[dict, dict[tuple[str, ...], str]]:
    """The file's values and, for every key path, its `file:line`."""
    try:
        text = read_regular(path, most=MAX_RECIPE_BYTES).decode("utf-8")
        node, values = yaml12.compose(text), yaml12.parse(text)
    except OSError as error:
        raise UserError(
            Mistake("--config", path, error.strerror or "cannot be read", "give a YAML file")
        ) from None
    except UnicodeDecodeError:
        raise UserError(Mistake(str(path), "bytes", "is not UTF-8 text", "save it as UTF-8")) from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        problem = getattr(error, "problem", None) or reason_of(error)
        raise UserError(Mistake(where, problem, "is not valid YAML", "correct the syntax there")) from None
    if not isinstance(node, yaml.MappingNode):
        raise UserError(
            Mistake(str(path), values, "is not a mapping of settings", "begin with `name: my_run`")
        )
    lines: dict[tuple[str, ...], str] = {}

    def walk(mapping: yaml.MappingNode, prefix: tuple[str, ...]) -> None:
        for key, value in mapping.value:
            here = (*prefix, str(key.value))
            if here in lines:
                where, rule = f"{path}:{key.start_mark.line + 1}", f"stands at {lines[here]} already"
                raise UserError(Mistake(where, ".".join(here), rule, "write it once"))
            lines[here] = f"{path.name}:{key.start_mark.line + 1}"
            if isinstance(value, yaml.MappingNode):
                walk(value, here)

    walk(node, ())
    return values, lines


def _as_mistake(
    problem: ErrorDetails, lines: dict[tuple[str, ...], str], path: Path, kind: type[Section]
) -> Mistake:
    """One of pydantic's findings in the contract's form."""
    context = problem.get("ctx", {})
    field = context["field"].split(".") if context.get("field") else _field_of(problem["loc"], kind)
    where = f"{'.'.join(field)} ({_place_of(tuple(field), lines, path)})"
    value, rule, fix = problem["input"], problem["msg"], "correct the value"
    if problem["type"] == "extra_forbidden":
        siblings = _fields_at(tuple(field[:-1]), kind)
        near = difflib.get_close_matches(field[-1], siblings, n=1, cutoff=0.5)
        rule = "is not a known setting"
        fix = (
            f"did you mean {'.'.join([*field[:-1], *near])}?"
            if near
            else f"known here: {', '.join(siblings)}"
        )
    elif problem["type"] == "missing":
        value, rule, fix = "nothing", "is required", f"set {'.'.join(field)}"
    elif problem["type"] == "rule":
        value, fix = context.get("value", value), context["fix"]
    return Mistake(where, value, rule[0].lower() + rule[1:], fix)


def _field_of(location: tuple[str | int, ...], kind: type[Section]) -> list[str]:
    """The setting's name, without the tags that pydantic adds for members of a union or a list."""
    field: list[str] = []
    for part in location:
        field.append(str(part))
        if not _fields_at(tuple(field), kind):
            break
    return field


def _place_of(field: tuple[str, ...], lines: dict[tuple[str, ...], str], path: Path) -> str:
    """Where the setting was written: its own line, else that of what is around or inside it."""
    around = [field[:n] for n in range(len(field), 0, -1)]
    inside = [key for key in lines if key[: len(field)] == field]
    return next((lines[key] for key in [*around, *inside] if key in lines), path.name)


def _fields_at(field: tuple[str, ...], kind: type[Section]) -> list[str]:
    """Names of the settings below a section; empty for a plain setting or an unknown name."""
    model: Any = kind
    for name in field:
        info = model.model_fields.get(name)
        candidates = [info.annotation, *get_args(info.annotation)] if info else []
        model = next((c for c in candidates if isinstance(c, type) and issubclass(c, Section)), None)
        if model is None:
            return []
    return list(model.model_fields)
