"""Finds a backbone's files: in the package, in a folder, or at a hub id."""

import os
import shlex
from pathlib import Path
from typing import NamedTuple

from lingo_ds.models.backbone import builtin, gguf_file
from lingo_ds.models.backbone.known_families import require_family
from lingo_ds.models.backbone.supported import file_mistake, read_config, require_backbone
from lingo_ds.utils.errors import Mistake, UserError, reason_of
from lingo_ds.utils.resources import builtin_folder, make_builtin

ENGLISH_BACKBONE, RANDOM_BACKBONE = "builtin:english", "builtin:tiny"


SMALL_FILES = ("*.json", "tokenizer*", "*.model", "vocab*", "merges*", "*.py")
WEIGHT_FILES = ("model*.safetensors",)
"""Patterns of the files that are fetched from the hub."""

PAGES = ("https://huggingface.co/", "http://huggingface.co/", "huggingface.co/", "https://hf.co/", "hf.co/")
"""How addresses of a model's page begin."""


class ModelWords(NamedTuple):
    """How a mistake speaks of a model on the hub.

    Attributes:
        where: the setting or option that names it.
        revision: the one that names its revision.
        use: what to do with a copy of its folder.
    """

    where: str = "backbone.path"
    revision: str = "backbone.revision"
    use: str = "set backbone.path to it"


BACKBONE = ModelWords()


def find_backbone(
    path: str, *, revision: str | None = None, weights: bool = True, trust_remote_code: bool = False
) -> Path:
    """The folder of a backbone: a local one as it is, a hub id's after its files were downloaded.

    Either is checked by its config.json and the names of its files. For a hub id that is done before
    a weight is fetched, and that its type of model is known, unless its own code may be run.

    Raises:
        UserError: where neither is there, or it is no backbone.
    """
    path = os.path.expanduser(path)
    folder = Path(path)
    if os.path.isdir(folder):  # False, where pathlib raises, for what can be no path
        require_backbone(folder, weights=weights)
        return folder
    if os.path.isfile(folder):
        raise UserError(file_mistake(folder))
    if page := next((start for start in PAGES if path.startswith(start)), None):
        name = "/".join(path.removeprefix(page).split("/")[:2])
        raise UserError(
            Mistake("backbone.path", path, "is the address of a page", f"give its hub id: {name}")
        )
    if path.count("/") > 1 or path.startswith((".", "/", "~")):
        raise UserError(
            Mistake("backbone.path", path, "is not a folder", "give a Hugging Face folder or a hub id")
        )
    try:
        return _download(path, revision, weights=weights, trust_remote_code=trust_remote_code)
    except UserError:
        raise
    except Exception as error:  # of hub, network and disk, whose classes differ from release to release
        raise UserError(hub_mistake(path, revision, error, BACKBONE)) from None


def _download(path: str, revision: str | None, *, weights: bool, trust_remote_code: bool) -> Path:
    """Downloads a hub id's files, its weights after all else was found to be right."""
    from huggingface_hub import snapshot_download

    names = _names_on_hub(path, revision)
    folder = Path(snapshot_download(path, revision=revision, allow_patterns=list(SMALL_FILES)))
    if names is not None:
        require_backbone(folder, shown=path, revision=revision, names=names, weights=weights)
    if weights:
        if not trust_remote_code and not any(folder.glob("model*.safetensors")):
            require_family(read_config(folder, shown=path), path)
        patterns = [*SMALL_FILES, *WEIGHT_FILES]
        folder = Path(snapshot_download(path, revision=revision, allow_patterns=patterns))
    if names is None:
        require_backbone(folder, shown=path, revision=revision, weights=weights)
    return folder


def _names_on_hub(path: str, revision: str | None) -> set[str] | None:
    """Names of a hub id's own files; None where the hub does not tell, which a download then explains."""
    from huggingface_hub import HfApi

    try:
        files = HfApi().model_info(path, revision=revision).siblings or []
        return {file.rfilename for file in files if "/" not in file.rfilename}
    except Exception:  # offline, for one, where the cache may hold what is needed
        return None


def hub_mistake(path: str, revision: str | None, error: Exception, words: ModelWords) -> Mistake:
    """The mistake behind an error of the hub's client when the model at an id was fetched."""
    from huggingface_hub import errors

    elsewhere = _fetch_elsewhere(path, revision, words.use)
    if isinstance(error, errors.RevisionNotFoundError):
        rule, fix = f"is no branch, tag or commit of {path}", "check it on the model's page"
        return Mistake(words.revision, revision, rule, fix)
    rules = {
        errors.HFValidationError: (
            "is neither a folder nor a hub id",
            "give a folder, or an id as OWNER/NAME",
        ),
        errors.GatedRepoError: (
            "is gated: its owner wants conditions to be accepted",
            f"accept them on the model's page ({_page(path)}), run `hf auth login`, and start again",
        ),
        errors.RepositoryNotFoundError: ("is neither a folder nor a model on the hub", _not_found(path)),
        errors.DisabledRepoError: ("was disabled on the hub", "give another model"),
        errors.LocalEntryNotFoundError: (_unreachable(error), elsewhere),
        ConnectionError: (_unreachable(error), elsewhere),
    }
    for kind, (rule, fix) in rules.items():
        if isinstance(error, kind):
            return Mistake(words.where, path, rule, fix)
    if isinstance(error, OSError) and error.errno:
        rule = f"cannot be downloaded ({error.strerror})"
        return Mistake(words.where, path, rule, "free disk space, or set HF_HOME to a folder that has some")
    rule = f"cannot be downloaded ({reason_of(error)})"
    return Mistake(words.where, path, rule, f"try again later, or {elsewhere}")


def _page(path: str) -> str:
    from huggingface_hub import constants

    return f"{constants.ENDPOINT}/{path}"


def _not_found(path: str) -> str:
    if "/" not in path:
        return "a hub id is OWNER/NAME, e.g. HuggingFaceTB/SmolLM2-135M, and here the owner is missing"
    return "check its owner and name; for a private model run `hf auth login`; for a folder give its path"


def _unreachable(error: Exception) -> str:
    """Why the hub was not asked."""
    from huggingface_hub import constants

    if constants.is_offline_mode():
        return "is neither a folder nor in this machine's cache, and HF_HUB_OFFLINE is set"
    reason = reason_of(error.__cause__ or error)
    return f"is neither a folder nor in this machine's cache, and the hub cannot be reached ({reason})"


def _fetch_elsewhere(path: str, revision: str | None, use: str) -> str:
    """How to fetch a model on another machine."""
    chosen = f" --revision {shlex.quote(revision)}" if revision else ""
    folder = path.split("/")[-1]
    command = f"hf download {shlex.quote(path)}{chosen} --local-dir {shlex.quote(folder)}"
    return f"run `{command}` on a connected machine, copy the folder here, and {use}"


def make_builtin_backbone(name: str, cache: Path) -> None:
    """Makes the random backbone where `name` asks for it and the cache lacks it.

    Raises:
        UserError: where no backbone of that name is built in.
    """
    known = {ENGLISH_BACKBONE: None, RANDOM_BACKBONE: builtin.write_backbone}
    make_builtin(name, known, cache, setting="backbone.path")


def backbone_folder(
    path: str,
    *,
    revision: str | None,
    cache: Path,
    weights: bool = True,
    trust_remote_code: bool = False,
) -> Path:
    """The backbone's files; a hub id is downloaded at the first call, with its weights or without."""
    if path == ENGLISH_BACKBONE:
        return builtin.ENGLISH
    if path == RANDOM_BACKBONE:
        return builtin_folder(path, cache)
    if gguf_file.is_gguf(file := Path(os.path.expanduser(path))):
        path = str(gguf_file.converted(file, cache))
    return find_backbone(path, revision=revision, weights=weights, trust_remote_code=trust_remote_code)


def backbone_address(path: str) -> str:
    """How this program finds a backbone again: a folder's or file's path, a hub id, what is embedded."""
    place = Path(os.path.expanduser(path))
    return str(place.resolve()) if place.is_dir() or gguf_file.is_gguf(place) else path


def is_builtin(path: str) -> bool:
    """Whether a backbone comes with this package."""
    return path.startswith("builtin:")


def public_address(path: str, folder: Path) -> str:
    """How others find the backbone at `path` again, whose files are in `folder`."""
    made_here = is_builtin(path) or gguf_file.is_gguf(Path(os.path.expanduser(path)))
    return str(folder.resolve()) if made_here else backbone_address(path)
