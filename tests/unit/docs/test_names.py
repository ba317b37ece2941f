"""What README, CONTRIBUTING and docs name is there: files, links, anchors, modules, functions, settings."""

import importlib
import re
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel

import lingo_ds
from lingo_ds.config.run_config import PredictConfig, RunConfig
from scripts.readme_tree import BEGIN, END

ROOT = Path(__file__).parents[3]
PACKAGE = Path(lingo_ds.__file__).parent

PAGES = [
    path.relative_to(ROOT).as_posix()
    for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")))
    if path.name != "log.md"  # names files as they were called on the day
]

LINK = re.compile(r"\]\(([^)\s]+)\)")
SOURCE = re.compile(r"(?<![\w/.<-])((?:\.\./)?[A-Za-z_][\w-]*(?:/[\w-]+)+\.(?:py|cpp|h))(?![\w/])")
RECIPE = re.compile(r"(?<![\w/.-])((?:recipes|ds_configs)/\w+\.\w+)")
DOTTED = re.compile(r"`([a-z_]\w*(?:\.\w+)+)(?:\(.*?\)|=[^`]*|: [^`]*)?`")

FILES = re.compile(r"\.(bed|bin|cfg|csv|fa|gz|json|log|mat|md|npz|py|safetensors|toml|tsv|txt|vcf|yaml)$")
ROOMS = {path.parent.name for path in PACKAGE.glob("*/__init__.py")} | {"lingo_ds"}
SECTIONS = set(RunConfig.model_fields)


def is_setting(name: str) -> bool:
    """Whether `section.field` is a setting of a run or of predicting."""
    return any(_has_field(config, name.split(".")) for config in (RunConfig, PredictConfig))


def _has_field(model: Any, names: list[str]) -> bool:
    if not names:
        return True
    models = [
        kind for kind in (model, *get_args(model)) if isinstance(kind, type) and issubclass(kind, BaseModel)
    ]
    return any(
        names[0] in kind.model_fields and _has_field(kind.model_fields[names[0]].annotation, names[1:])
        for kind in models
    )


def is_code(name: str) -> bool:
    """Whether a dotted name below `lingo_ds` is a module, or something in one."""
    parts = name.removeprefix("lingo_ds.").split(".")
    place: Any = lingo_ds
    for part in parts:
        if hasattr(place, part):
            place = getattr(place, part)
        elif part in getattr(place, "__annotations__", {}):
            return part == parts[-1]
        else:
            try:
                place = importlib.import_module(f"{place.__name__}.{part}")
            except (ImportError, AttributeError):
                return False
    return True


def wrong_names(text: str) -> list[str]:
    """Dotted names in backticks that begin with a room or a section and are neither code nor a setting."""
    return sorted(
        {
            name
            for name in DOTTED.findall(text)
            if (first := name.split(".")[0]) in ROOMS | SECTIONS
            and not FILES.search(name)
            and not (first in SECTIONS and is_setting(name))
            and not (first in ROOMS and is_code(name))
        }
    )


def wrong_files(text: str, page: Path) -> list[str]:
    """Paths of source files, recipes and profiles that are nowhere."""
    places = (ROOT, PACKAGE, page.parent)
    named = {*SOURCE.findall(text), *RECIPE.findall(text)}
    return sorted(path for path in named if not any((place / path).exists() for place in places))


def wrong_links(text: str, page: Path) -> list[str]:
    """Links to files, or headings in them, that are not there."""
    wrong = []
    for link in LINK.findall(text):
        target, _, anchor = link.partition("#")
        if re.match(r"\w+:", link):
            continue
        file = page.parent / target if target else page
        if not file.exists() or (anchor and anchor not in anchors(file)):
            wrong.append(link)
    return wrong


def anchors(file: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", file.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_names_is_there(page):
    path = ROOT / page
    text = re.sub(rf"{BEGIN}.*{END}", "", path.read_text(), flags=re.DOTALL)
    assert not wrong_files(text, path)
    assert not wrong_links(text, path)
    assert not wrong_names(text)


def test_the_logs_links_lead_somewhere():
    page = ROOT / "docs/log.md"
    assert not wrong_links(page.read_text(), page)


def test_the_checks_see_what_is_wrong():
    page = ROOT / "docs/method.md"
    assert wrong_files("see `training/trainr.py`, `utils/files.py` and recipes/slowstart.yaml", page) == [
        "recipes/slowstart.yaml",
        "training/trainr.py",
    ]
    assert wrong_links(
        "[a](method.md#selection) [b](method.md#no-such) [c](gone.md) [d](https://x.org)", page
    ) == [
        "method.md#no-such",
        "gone.md",
    ]
    text = (
        "`training.trainr` `data.paht` `training.trainer.Trainer.rnu` `zero.stage: 4` `data.path=x` `a.yaml`"
    )
    assert wrong_names(text) == ["data.paht", "training.trainer.Trainer.rnu", "training.trainr"]
