"""Tasks known by name: where their files lie, texts for templates, settings, and published scores."""

import difflib
import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from lingo_ds.config.fields import as_name
from lingo_ds.config.templates import fill_template
from lingo_ds.config.yaml import parse_yaml
from lingo_ds.utils.errors import Mistake, UserError

REGISTRY_FILE = Path(__file__).with_name("known_tasks.yaml")
TASK_TEXTS = ("organism", "assay", "question")
"""Texts of a task that a template may name, beside the domain, the sequence and columns of the data."""


class _Entry(BaseModel):
    """A part of the file; an unknown key or another type is a fault of the program, not of the user."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class PublishedModel(_Entry):
    """A model with published scores: where they were published, and how they were chosen."""

    source: str
    note: str


class Hyperparameters(_Entry):
    """Published settings, as sections of a recipe; what differs by task is in the task's entry."""

    source: str
    values: dict[str, dict[str, Any]]


class RegisteredTask(_Entry):
    """A known task.

    Attributes:
        name: the name in recipes.
        folders: folders below a root where its files may be; the first one is GUE's own.
        kind: the kind of its label.
        classes: number of classes, or of labels of a multilabel task.
        bp: bases of one sequence.
        metric: metric by which a step is selected on dev, and the one of `scores`.
        organism, assay, question, domain: texts for templates.
        settings: other settings that it needs, by section.
        hyperparameters: settings that differ from the common ones of a name, by that name.
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
        """The texts named in `TASK_TEXTS`, by name."""
        return {name: getattr(self, name) for name in TASK_TEXTS}

    def folder(self, root: Path) -> Path:
        """The first of its folders that exists, else the one that GUE uses."""
        places = [root / folder for folder in self.folders]
        return next((place for place in places if os.path.isdir(place)), places[0])


class Registry(_Entry):
    """The whole file: templates, models and hyperparameters, and tasks by name."""

    templates: dict[str, str | None]
    models: dict[str, PublishedModel]
    hyperparameters: dict[str, Hyperparameters]
    tasks: dict[str, RegisteredTask]


@cache
def registry() -> Registry:
    """The registry that the package ships."""
    return parse_registry(REGISTRY_FILE.read_text(encoding="utf-8"))


def parse_registry(text: str) -> Registry:
    """Reads a registry; {set} and {what} in a family's texts are those of the task.

    Raises:
        ValueError: where a part is missing, unknown or of another type.
    """
    parts = parse_yaml(text)
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
    """Merges nested settings; where both set one, `above` wins."""
    merged = {**below, **above}
    for key in below.keys() & above.keys():
        if isinstance(below[key], Mapping) and isinstance(above[key], Mapping):
            merged[key] = layered(below[key], above[key])
    return merged


def lookup(name: str) -> RegisteredTask:
    """A task by its name.

    Raises:
        UserError: where no task has this name; the nearest one is given.
    """
    return _named(registry().tasks, name, "data.task")


def with_registry(values: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe's values, completed with what the registry knows of `data.task`.

    That is the folder below `data.root`, the text of the domain, the metric, and with `data.hyperparameters`
    a set of published ones. A `data.prefix` that is the name of a template becomes that template, and texts
    of the task are filled in. A value of another type is left to validation.

    Raises:
        UserError: for names that the registry does not know, and where a root or a task is missing.
    """
    data = values.get("data")
    if not isinstance(data, Mapping):
        return dict(values)
    name = as_name(data.get("task"))
    task = lookup(name) if isinstance(name, str) else None
    filled = layered(_known(task, data), values) if task else dict(values)
    data = filled["data"]
    if isinstance(data.get("prefix"), str):
        filled["data"] = {**data, "prefix": _template(data["prefix"], task)}
    return filled


def _known(task: RegisteredTask, data: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that the registry gives for a task."""
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
    """A template by its name, or as it is written, with the texts of the task filled in."""
    if task is None and "{" in prefix:
        return prefix  # no name has a brace, and parsing the registry takes a while
    named, template = prefix in registry().templates, registry().templates.get(prefix, prefix)
    if template is None:
        return None
    if task is not None:
        return fill_template(template, task.texts)
    if named and (lacking := [f"{{{name}}}" for name in TASK_TEXTS if f"{{{name}}}" in template]):
        rule = f"needs a known task for {', '.join(lacking)}"
        raise UserError(Mistake("data.prefix", prefix, rule, "set data.task, or write a template"))
    return template


def missing_folder(name: str | None, *, path: str, root: str | None) -> Mistake | None:
    """The mistake where `data.path` was derived from a task's name and no such folder exists; else None."""
    if name is None or root is None:
        return None
    task = lookup(name)
    if Path(path) != task.folder(Path(root)) or os.path.isdir(path):
        return None
    places = " or ".join(task.folders)
    return Mistake("data.root", root, f"has no folder of {name} ({places})", "set data.root, or download it")


def require_folder(name: str | None, *, path: str, root: str | None) -> None:
    """Checks that the data of a known task exists.

    Raises:
        UserError: where it does not, with the folders that were looked for.
    """
    if mistake := missing_folder(name, path=path, root=root):
        raise UserError(mistake)


def _named(known: Mapping[str, Any], name: str, setting: str, *, what: str = "") -> Any:
    if name in known:
        return known[name]
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    fix = f"did you mean {near[0]}?" if near else f"known{what}: {', '.join(known) or 'none'}"
    raise UserError(Mistake(setting, name, f"is not known{what}", fix))
