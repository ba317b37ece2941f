"""Reading a recipe: YAML with line numbers, overrides from the command line, and every mistake at once."""

import difflib
import re
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import ValidationError

from lingo_ds.config import RunConfig, Section
from lingo_ds.errors import Mistake, UserError


class _Loader(yaml.SafeLoader):
    """YAML's safe loader with the scalars of YAML 1.2: `off` is a word, `3e-3` is a number."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith((":bool", ":float"))]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"(?i:true|false)$"), list("tTfF"))
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(?:(?:\d+\.\d*|\.\d+)(?:e[-+]?\d+)?|\d+e[-+]?\d+|\.inf|\.nan)$", re.IGNORECASE),
    list("-+0123456789."),
)


def _parse(text: str) -> Any:
    return _Loader(text).get_single_data()


def load_config(path: Path, overrides: list[str] = ()) -> RunConfig:
    """Reads a YAML recipe and lays `section.field=value` overrides over it.

    Raises:
        UserError: with every mistake found, each as field (file:line), value, rule and fix.
    """
    values, lines = _read_yaml(path)
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
        try:
            value = _parse(text)
        except yaml.YAMLError:
            value = text
        *sections, name = key.split(".")
        target = values
        for section in sections:
            inner = target.get(section)
            target[section] = target = inner if isinstance(inner, dict) else {}
        target[name] = value
        lines[tuple(key.split("."))] = "command line"
    try:
        config = RunConfig.model_validate(values)
    except ValidationError as error:
        mistakes += [_as_mistake(problem, lines, path) for problem in error.errors()]
    if mistakes:
        raise UserError(mistakes)
    return config


def _read_yaml(path: Path) -> tuple[dict, dict[tuple[str, ...], str]]:
    """The file's values and, for every key path, its `file:line`."""
    try:
        text = path.read_text(encoding="utf-8")
        node = yaml.compose(text, Loader=_Loader)
        values = _parse(text)
    except OSError as error:
        raise UserError(
            Mistake("--config", path, error.strerror or "cannot be read", "give a YAML file")
        ) from None
    except UnicodeDecodeError:
        raise UserError(Mistake(str(path), "bytes", "is not UTF-8 text", "save it as UTF-8")) from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        problem = getattr(error, "problem", None) or "not YAML"
        raise UserError(Mistake(where, problem, "is not valid YAML", "correct the syntax there")) from None
    if not isinstance(values, dict):
        raise UserError(
            Mistake(str(path), values, "is not a mapping of settings", "begin with `name: my_run`")
        )
    lines: dict[tuple[str, ...], str] = {}

    def walk(mapping: yaml.MappingNode, prefix: tuple[str, ...]) -> None:
        for key, value in mapping.value:
            here = (*prefix, str(key.value))
            lines[here] = f"{path.name}:{key.start_mark.line + 1}"
            if isinstance(value, yaml.MappingNode):
                walk(value, here)

    walk(node, ())
    return values, lines


def _as_mistake(problem: dict, lines: dict[tuple[str, ...], str], path: Path) -> Mistake:
    known = _fields_at(())
    field: list[str] = []
    for part in problem["loc"]:  # stops before the tags that pydantic adds for members of a union
        field.append(str(part))
        known = _fields_at(tuple(field))
        if not known:
            break
    place = next(
        (lines[tuple(field[:n])] for n in range(len(field), 0, -1) if tuple(field[:n]) in lines), path.name
    )
    where = f"{'.'.join(field) or 'config'} ({place})"
    value, rule, fix = problem["input"], problem["msg"], "correct the value"
    if problem["type"] == "extra_forbidden":
        siblings = _fields_at(tuple(field[:-1]))
        near = difflib.get_close_matches(field[-1], siblings, n=1, cutoff=0.5)
        rule = "is not a known setting"
        fix = (
            f"did you mean {'.'.join([*field[:-1], near[0]])}?"
            if near
            else f"known here: {', '.join(siblings)}"
        )
    elif problem["type"] == "missing":
        value, rule, fix = "nothing", "is required", f"set {'.'.join(field)}"
    elif problem["type"] == "rule":
        fix = problem["ctx"]["fix"]
        value = "settings" if isinstance(value, dict) else value
    return Mistake(where, value, rule[0].lower() + rule[1:], fix)


def _fields_at(field: tuple[str, ...]) -> list[str]:
    """Names of the settings below a section; empty for a plain setting or an unknown name."""
    model: Any = RunConfig
    for name in field:
        info = model.model_fields.get(name)
        candidates = [info.annotation, *get_args(info.annotation)] if info else []
        model = next((c for c in candidates if isinstance(c, type) and issubclass(c, Section)), None)
        if model is None:
            return []
    return list(model.model_fields)
