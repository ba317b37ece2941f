"""Where a run's files are: what the package makes itself, a folder, or a hub id."""

import logging
from pathlib import Path

from lingo_ds.backbone import builtin
from lingo_ds.backbone.load import find_backbone
from lingo_ds.data import synthetic
from lingo_ds.utils.errors import Mistake, UserError

logger = logging.getLogger(__name__)

ENGLISH_BACKBONE, RANDOM_BACKBONE, BUILTIN_DATA = "builtin:english", "builtin:tiny", "builtin:promoters"
BUILTIN_VERSION = 1
"""Raised with every change of what the two generators write, so that no cache holds an older version."""


def make_builtin(name: str, cache: Path, *, setting: str) -> None:
    """Makes the random backbone or the data where a setting asks for it and the cache lacks it.

    Raises:
        UserError: where nothing of that name is built in.
    """
    known = {
        "backbone.path": {ENGLISH_BACKBONE: None, RANDOM_BACKBONE: builtin.write_backbone},
        "data.path": {BUILTIN_DATA: synthetic.write_promoters},
    }[setting]
    if not name.startswith("builtin:"):
        return
    if name not in known:
        raise UserError(Mistake(setting, name, "is not built in", f"write {' or '.join(known)}"))
    write, folder = known[name], _builtin_folder(cache, name)
    if write and not folder.exists():
        logger.info("making %s in %s", name, folder)
        write(folder)


def data_folder(path: str, cache: Path) -> Path:
    """The folder with the data's files."""
    return _builtin_folder(cache, path) if path == BUILTIN_DATA else Path(path)


def backbone_folder(path: str, *, revision: str | None, cache: Path, weights: bool = True) -> Path:
    """The backbone's files; a hub id is downloaded at the first call, with its weights or without."""
    embedded = path in (ENGLISH_BACKBONE, RANDOM_BACKBONE)
    return (
        _builtin_folder(cache, path) if embedded else find_backbone(path, revision=revision, weights=weights)
    )


def backbone_address(path: str) -> str:
    """How this program finds a backbone again: a folder's whole path, a hub id, what is embedded."""
    return str(Path(path).resolve()) if Path(path).is_dir() else path


def public_address(path: str, folder: Path) -> str:
    """How others find the backbone at `path` again, whose files are in `folder`: nobody else embeds it."""
    return str(folder.resolve()) if path.startswith("builtin:") else backbone_address(path)


def _builtin_folder(cache: Path, name: str) -> Path:
    if name == ENGLISH_BACKBONE:
        return builtin.ENGLISH
    return cache / "builtin" / f"{name.partition(':')[2]}-v{BUILTIN_VERSION}"
