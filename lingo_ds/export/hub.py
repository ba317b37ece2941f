"""Adapters on the Hugging Face hub: an exported folder is published there, and a published one is fetched."""

import logging
import re
import shlex
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.filesize import decimal

from lingo_ds.export.peft_format import ADAPTER_WEIGHTS, CARD, CONFIG
from lingo_ds.models.backbone.hub import ModelWords, hub_mistake
from lingo_ds.utils.errors import Mistake, UserError, reason_of
from lingo_ds.utils.files import default_cache, write_once

logger = logging.getLogger(__name__)

ADAPTER_FILES = (CARD, CONFIG, ADAPTER_WEIGHTS)

_PART = r"[A-Za-z0-9](?:[\w.-]*[A-Za-z0-9_])?"
_ID = re.compile(rf"{_PART}/{_PART}", re.ASCII)
_MAX_ID_CHARS = 96


def is_hub_id(text: str) -> bool:
    """Whether a text has the form of a hub id, `OWNER/NAME`."""
    return bool(_ID.fullmatch(text)) and len(text) <= _MAX_ID_CHARS and not re.search(r"--|\.\.", text)


def fetch_adapter(name: str) -> Path:
    """The files of a published adapter, `OWNER/NAME` or `OWNER/NAME@REVISION`, downloaded where they are not.

    They are copied out of the hub's own cache, which holds links, and kept by their commit.

    Raises:
        UserError: where the hub has no such adapter, or cannot be asked.
    """
    from huggingface_hub import snapshot_download

    path, _, revision = name.partition("@")
    words = ModelWords("--adapter", "--adapter", "give its path")
    try:
        found = Path(snapshot_download(path, revision=revision or None, allow_patterns=list(ADAPTER_FILES)))
    except Exception as error:  # of hub, network and disk, whose classes differ from release to release
        raise UserError(hub_mistake(path, revision or None, error, words)) from None
    if missing := [file for file in ADAPTER_FILES if not (found / file).is_file()]:
        rule = f"is no adapter of lingo_ds on the hub: it lacks {', '.join(missing)}"
        fix = (
            "give one that `lingo-ds export --push` wrote as adalora or lora; transformers loads a merged one"
        )
        raise UserError(Mistake("--adapter", name, rule, fix))
    folder = default_cache() / "adapters" / path.replace("/", "--") / found.name
    write_once(folder, lambda aside: _copy(found, aside))
    return folder


def _copy(source: Path, target: Path) -> None:
    target.mkdir()
    for name in ADAPTER_FILES:
        shutil.copyfile(source / name, target / name)


def require_publishable(name: str, *, dry_run: bool) -> None:
    """Checks, before anything is written, that a folder may be published under a name; the hub is not asked.

    Raises:
        UserError: where the name is no hub id, or, except for a dry run, nobody is logged in.
    """
    from huggingface_hub import get_token

    if not is_hub_id(name):
        rule, fix = "is no hub id", "give OWNER/NAME, of letters, digits, - _ and ., at most 96 in all"
        raise UserError(Mistake("--push", name, rule, fix))
    if not dry_run and get_token() is None:
        rule = "needs a login, and there is none on this machine"
        fix = "run `hf auth login` with a token that may write, or set HF_TOKEN; --dry-run needs none"
        raise UserError(Mistake("--push", name, rule, fix))


def publish(folder: Path, name: str, *, private: bool, overwrite: bool) -> str:
    """Uploads a folder as a model on the hub, which is made where it is not there. Returns its address.

    Args:
        folder: an exported folder.
        name: the hub id.
        private: whether only its owner sees it.
        overwrite: whether it may be there already; files of other names then stay in it.

    Raises:
        UserError: where the hub refuses or cannot be reached; the folder stays.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    with _hub_errors(folder, name):
        made = api.create_repo(name, private=private or None, exist_ok=overwrite)
        if private and not api.model_info(name).private:
            fix = "make it private in its settings on the hub, or leave --private out"
            raise UserError(Mistake("--private", name, "is public on the hub already", fix))
        api.upload_folder(repo_id=name, folder_path=folder, commit_message="Upload from lingo_ds")
    return str(made)


@contextmanager
def _hub_errors(folder: Path, name: str) -> Iterator[None]:
    """Turns errors of the hub's client into the user's mistakes.

    Raises:
        UserError: in their place.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # of hub and network, whose classes differ from release to release
        status = getattr(getattr(error, "response", None), "status_code", None)
        again = f"`hf upload {name} {shlex.quote(str(folder))}`"
        stays = f"the exported folder {folder} stays; then run {again}"
        rules = {
            401: ("was refused: the login is missing or no longer valid", f"run `hf auth login`; {stays}"),
            403: ("may not be written with this login", f"`hf auth login` with a token that may; {stays}"),
            409: (
                "is on the hub already",
                f"give --overwrite to replace its files, or another name; {stays}",
            ),
        }
        rule, fix = rules.get(status or 0, (f"cannot be uploaded ({reason_of(error)})", stays))
        raise UserError(Mistake("--push", name, rule, fix)) from None


def listing(folder: Path) -> Iterator[str]:
    """One line for each file that would be uploaded, and their sum."""
    sizes = {
        path.relative_to(folder): path.stat().st_size for path in sorted(folder.rglob("*")) if path.is_file()
    }
    for path, size in sizes.items():
        yield f"  {decimal(size):>12}  {path}"
    yield f"  {decimal(sum(sizes.values())):>12}  in {len(sizes)} files"


def page_of(name: str) -> str:
    """The address of a model's page."""
    from huggingface_hub import constants

    return f"{constants.ENDPOINT}/{name}"
