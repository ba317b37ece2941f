"""Tasks that are known by name: where their files lie, what they ask, and what others reached on them."""

import difflib
import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from lingo_ds.config import yaml as yaml12
from lingo_ds.config.templates import fill_template
from lingo_ds.utils.errors import Mistake, UserError

FILE = Path(__file__).with_name("known_tasks.yaml")
TEXTS = ("organism", "assay", "question")
"""Of a task, that a template may name beside the domain, the sequence and columns of the data."""


class _Entry(BaseModel):
    """A part of the file: unknown keys and other types are the program's fault, and raise."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class PublishedModel(_Entry):
    """Whose scores are known: where they were published, and how they were chosen."""

    source: str
    note: str


class Hyperparameters(_Entry):
    """Settings that were published, as sections of a recipe; what differs by task stands at the task."""

    source: str
    values: dict[str, dict[str, Any]]


class RegisteredTask(_Entry):
    """A known task.

    Attributes:
        name: in recipes.
        folders: places of its files below a root, the first one is GUE's own.
        kind: of its label.
        classes: classes, or labels of a multilabel task.
        bp: bases of a sequence.
        metric: dev metric by which a step is selected, and the one of `scores`.
        organism, assay, question, domain: texts for templates.
        settings: what else a recipe needs for it, by section.
        hyperparameters: by name, what differs from the common ones of that name.
        scores: 100 x the metric on test, by model.
    """

    name: str
    folders: tuple[str, ...]
    kind: Literal["binary", "multiclass", "multilabel"]
    classes: int
    bp: int
    metric: str
    organism: str
    assay: str
    question: str
    domain: str
    settings: dict[str, dict[str, Any]] = {}
    hyperparameters: dict[str, dict[str, dict[str, Any]]] = {}
    scores: dict[str, float] = {}

    @property
    def texts(self) -> dict[str, str]:
        """What `TEXTS` stand for."""
        return {name: getattr(self, name) for name in TEXTS}

    def folder(self, root: Path) -> Path:
        """The first of its folders that is there, else where GUE has it."""
        places = [root / folder for folder in self.folders]
        return next((place for place in places if os.path.isdir(place)), places[0])


class Registry(_Entry):
    """Everything in the file, tasks by name."""

    templates: dict[str, str | None]
    models: dict[str, PublishedModel]
    hyperparameters: dict[str, Hyperparameters]
    tasks: dict[str, RegisteredTask]


@cache
def registry() -> Registry:
    """The registry that the package ships."""
    return parse_registry(FILE.read_text(encoding="utf-8"))


def parse_registry(text: str) -> Registry:
    """Reads a registry; {set} and {what} in a family's texts are those of the task.

    Raises:
        ValueError: where a part is missing, unknown or of another type.
    """
    parts = yaml12.parse(text)
    tasks = {}
    for family in parts.pop("families").values():
        for name, own in family.pop("tasks").items():
            words = {"set": own.pop("set"), "what": own.pop("what", "")}
            tasks[name] = _with_words(layered(family, own), words) | {"name": name}
    return Registry.model_validate(parts | {"tasks": tasks})


def _with_words(entry: dict[str, Any], words: Mapping[str, str]) -> dict[str, Any]:
    texts = {key: fill_template(value, words) for key, value in entry.items() if isinstance(value, str)}
    return entry | texts | {"folders": tuple(fill_template(folder, words) for folder in entry["folders"])}


def layered(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Nested settings, those of `above` where both have one."""
    merged = {**below, **above}
    for key in below.keys() & above.keys():
        if isinstance(below[key], Mapping) and isinstance(above[key], Mapping):
            merged[key] = layered(below[key], above[key])
    return merged


def lookup(name: str) -> RegisteredTask:
    """A task by its name.

    Raises:
        UserError: where none has it, with the nearest.
    """
    return _named(registry().tasks, name, "data.task")


def with_registry(values: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe's values with what the registry knows of `data.task` wherever they say nothing.

    That is the folder below `data.root`, the text of the domain, the metric, and with `data.hyperparameters`
    a set of published ones. A `data.prefix` that is the name of a template becomes that template, and texts
    of the task take their places in it. What is no mapping is left for validation to tell.

    Raises:
        UserError: for names that the registry does not know, and where a root or a task is missing.
    """
    data = values.get("data")
    if not isinstance(data, Mapping):
        return dict(values)
    task = lookup(data["task"]) if isinstance(data.get("task"), str) else None
    filled = layered(_known(task, data), values) if task else dict(values)
    data = filled["data"]
    if isinstance(data.get("prefix"), str):
        filled["data"] = {**data, "prefix": _template(data["prefix"], task)}
    return filled


def _known(task: RegisteredTask, data: Mapping[str, Any]) -> dict[str, Any]:
    """Recipe sections that a task fills."""
    known: dict[str, Any] = {"data": {"domain": task.domain}, "selection": {"metric": task.metric}}
    if "path" not in data:
        if not isinstance(root := data.get("root"), str):
            rule, fix = f"is needed to find data.task {task.name}", "set data.root to the folder of GUE"
            raise UserError(Mistake("data.root", root or "nothing", rule, fix))
        known["data"]["path"] = str(task.folder(Path(root)))
    if isinstance(name := data.get("hyperparameters"), str):
        common = _named(registry().hyperparameters, name, "data.hyperparameters")
        own = _named(task.hyperparameters, name, "data.hyperparameters", what=f" for {task.name}")
        known = layered(layered(common.values, own), known)
    return layered(known, task.settings)


def _template(prefix: str, task: RegisteredTask | None) -> str | None:
    """A template by its name, or as it is written; with the texts of the task."""
    if task is None and "{" in prefix:
        return prefix  # no name has a brace, and the registry takes a while to read
    named, template = prefix in registry().templates, registry().templates.get(prefix, prefix)
    if template is None:
        return None
    if task is not None:
        return fill_template(template, task.texts)
    if named and (lacking := [f"{{{name}}}" for name in TEXTS if f"{{{name}}}" in template]):
        rule = f"needs a known task for {', '.join(lacking)}"
        raise UserError(Mistake("data.prefix", prefix, rule, "set data.task, or write a template"))
    return template


def missing_folder(name: str | None, *, path: str, root: str | None) -> Mistake | None:
    """What is wrong where `data.path` was found by a task's name, and is no folder."""
    if name is None or root is None:
        return None
    task = lookup(name)
    if Path(path) != task.folder(Path(root)) or os.path.isdir(path):
        return None
    places = " or ".join(task.folders)
    return Mistake("data.root", root, f"has no folder of {name} ({places})", "set data.root, or download it")


def require_folder(name: str | None, *, path: str, root: str | None) -> None:
    """Checks that the data of a task by name is there.

    Raises:
        UserError: where it is not, with the places that were looked at.
    """
    if mistake := missing_folder(name, path=path, root=root):
        raise UserError(mistake)


def _named(known: Mapping[str, Any], name: str, setting: str, *, what: str = "") -> Any:
    if name in known:
        return known[name]
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    fix = f"did you mean {near[0]}?" if near else f"known{what}: {', '.join(known) or 'none'}"
    raise UserError(Mistake(setting, name, f"is not known{what}", fix))
