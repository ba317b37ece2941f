"""Finds shipped recipes and DeepSpeed profiles: beside the package in a checkout, else inside it."""

import difflib
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

from lingo_ds.utils.errors import Mistake, UserError
from lingo_ds.utils.files import write_once

ResourceKind = Literal["recipes", "ds_configs"]

RESOURCE_SUFFIXES: dict[ResourceKind, str] = {"recipes": ".yaml", "ds_configs": ".json"}
logger = logging.getLogger(__name__)

BUILTIN_VERSION = 1
"""Number to raise whenever a generator writes something else, so that no older cache is used."""

PACKAGE = Path(__file__).resolve().parents[1]


def list_resources(kind: ResourceKind) -> list[str]:
    """Names of all shipped files of one kind, without folder and suffix, in alphabetical order."""
    return sorted(file.stem for file in _folder(kind).glob(f"*{RESOURCE_SUFFIXES[kind]}"))


def resource_path(kind: ResourceKind, name: str) -> Path:
    """Path of a shipped file by its name, with or without suffix: `quickstart` is `recipes/quickstart.yaml`.

    Raises:
        UserError: where no file of this kind has the name; the nearest name is given.
    """
    known = list_resources(kind)
    stem = name.removesuffix(RESOURCE_SUFFIXES[kind])
    if stem in known:
        return _folder(kind) / f"{stem}{RESOURCE_SUFFIXES[kind]}"
    nearest = difflib.get_close_matches(stem, known, n=1, cutoff=0.0)
    fix = (
        f"use {nearest[0]!r}, the nearest of: {', '.join(known)}"
        if nearest
        else "install lingo_ds again, no such files are there"
    )
    raise UserError(Mistake(kind, name, "must name a file that lingo_ds ships", fix))


def _folder(kind: ResourceKind) -> Path:
    inside = PACKAGE / kind
    return inside if inside.is_dir() else PACKAGE.parent / kind


def make_builtin(
    name: str, known: Mapping[str, Callable[[Path], None] | None], cache: Path, *, setting: str
) -> None:
    """Writes what a setting names as `builtin:..` into the cache, unless it is there already.

    Args:
        name: the setting's value; one that does not begin with `builtin:` is ignored.
        known: the function that writes each name's folder; None where the package ships the folder.
        cache: the cache's folder.
        setting: name of the setting, for the error.

    Raises:
        UserError: where no such name is built in.
    """
    if not name.startswith("builtin:"):
        return
    if name not in known:
        raise UserError(Mistake(setting, name, "is not built in", f"write {' or '.join(known)}"))
    write, folder = known[name], builtin_folder(name, cache)
    if write and not folder.exists():
        logger.info("generating %s in %s", name, folder)
        write_once(folder, write)


def builtin_folder(name: str, cache: Path) -> Path:
    """The cache's folder for what is generated under the name `builtin:..`."""
    return cache / "builtin" / f"{name.partition(':')[2]}-v{BUILTIN_VERSION}"
