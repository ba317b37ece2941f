"""Finds a backbone's files: in the package, in a folder, or at a hub id."""

import os
from pathlib import Path

from lingo_ds.models.backbone import builtin
from lingo_ds.utils.errors import Mistake, UserError, reason_of
from lingo_ds.utils.resources import builtin_folder, make_builtin

ENGLISH_BACKBONE, RANDOM_BACKBONE = "builtin:english", "builtin:tiny"


HUB_FILES = ["*.json", "model*.safetensors", "tokenizer*", "*.model", "vocab*", "merges*", "*.py"]


def find_backbone(path: str, *, revision: str | None = None, weights: bool = True) -> Path:
    """The folder of a backbone: a local one as it is, a hub id's after its files were downloaded.

    Raises:
        UserError: where neither is there.
    """
    folder = Path(path)
    if os.path.isdir(folder):  # False, where pathlib raises, for what can be no path
        return folder
    if path.count("/") > 1 or path.startswith((".", "/", "~")):
        raise UserError(
            Mistake("backbone.path", path, "is not a folder", "give a Hugging Face folder or a hub id")
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        files = [name for name in HUB_FILES if weights or not name.endswith(".safetensors")]
        return Path(snapshot_download(path, revision=revision, allow_patterns=files))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise UserError(
            Mistake(
                "backbone.path",
                path,
                f"is neither a folder nor a hub id that can be read ({reason_of(error)})",
                "check the name, or download it first",
            )
        ) from None


def make_builtin_backbone(name: str, cache: Path) -> None:
    """Makes the random backbone where `name` asks for it and the cache lacks it.

    Raises:
        UserError: where no backbone of that name is built in.
    """
    known = {ENGLISH_BACKBONE: None, RANDOM_BACKBONE: builtin.write_backbone}
    make_builtin(name, known, cache, setting="backbone.path")


def backbone_folder(path: str, *, revision: str | None, cache: Path, weights: bool = True) -> Path:
    """The backbone's files; a hub id is downloaded at the first call, with its weights or without."""
    if path == ENGLISH_BACKBONE:
        return builtin.ENGLISH
    if path == RANDOM_BACKBONE:
        return builtin_folder(path, cache)
    return find_backbone(path, revision=revision, weights=weights)


def backbone_address(path: str) -> str:
    """How this program finds a backbone again: a folder's whole path, a hub id, what is embedded."""
    return str(Path(path).resolve()) if Path(path).is_dir() else path


def public_address(path: str, folder: Path) -> str:
    """How others find the backbone at `path` again, whose files are in `folder`: nobody else embeds it."""
    return str(folder.resolve()) if path.startswith("builtin:") else backbone_address(path)
