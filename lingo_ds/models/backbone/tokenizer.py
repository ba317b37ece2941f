"""A backbone's own tokenizer, loaded only when it is needed, since its library takes seconds to import."""

import hashlib
import json
from functools import cached_property
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from lingo_ds.models.backbone.supported import lfs_mistake
from lingo_ds.utils.errors import Mistake, UserError, reason_of
from lingo_ds.utils.files import atomic_write
from lingo_ds.utils.safe_read import git_lfs_pointers

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FILES = ("*.json", "*.model", "vocab*", "merges*", "tokenizer*")
"""Files that a tokenizer may be read from; the index of the weights among them does no harm."""

VOCABULARIES = ("tokenizer.json", "*.model", "*.tiktoken", "vocab*", "merges*")
"""Files of which a tokenizer needs one; byte-level tokenizers, which need none, do not fail."""

PACKAGES = {"sentencepiece": "sentencepiece", "protobuf": "google.protobuf", "tiktoken": "tiktoken"}
"""Packages that some tokenizers need, with the module of each."""


def read_tokenizer(folder: Path, *, trust_remote_code: bool = False) -> "PreTrainedTokenizerBase":
    """The backbone's own tokenizer.

    Raises:
        UserError: where the folder holds none.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except Exception as error:  # of files that transformers does not expect it may raise anything
        raise UserError(Mistake("backbone.path", folder, *_unusable(folder, error))) from None


def _unusable(folder: Path, error: Exception) -> tuple[str, str]:
    """Rule and fix of a folder whose tokenizer could not be read."""
    reason = reason_of(error)
    if pointers := git_lfs_pointers(folder):
        mistake = lfs_mistake("", "", pointers)
        return mistake.rule, mistake.fix
    if not any(any(folder.glob(pattern)) for pattern in VOCABULARIES):
        return "has no tokenizer files", "add tokenizer.json or the model's vocabulary beside the weights"
    if "trust_remote_code" in str(error):
        return "has a tokenizer with its own code", "set backbone.trust_remote_code=true to run that code"
    if lacking := _lacking(folder, error):
        rule = f"has a tokenizer that is read with {' and '.join(lacking)}, not installed here"
        return rule, f"run `pip install {' '.join(lacking)}`, or add the model's tokenizer.json"
    if isinstance(error, ImportError):
        return f"has a tokenizer that needs another package ({reason})", "install that package"
    return f"has no usable tokenizer ({reason})", "add the model's tokenizer files"


def _lacking(folder: Path, error: Exception) -> list[str]:
    """Packages without which a vocabulary cannot be read; transformers names only the last that it tried."""
    if (folder / "tokenizer.json").is_file():
        return []
    names = ["sentencepiece", "protobuf"] if any(folder.glob("*.model")) else []
    names += ["tiktoken"] if not names and "tiktoken" in str(error).lower() else []
    return [name for name in names if not _installed(PACKAGES[name])]


def _installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # of the package that the module would lie in
        return False


class CachedTokenizer:
    """The tokenizer of a folder, with a fingerprint that is cached.

    Attributes:
        fingerprint: 64 hex digits that change with what the tokenizer does.
    """

    def __init__(self, folder: Path, *, trust_remote_code: bool, cache: Path):
        """Loads the tokenizer where its fingerprint is not known yet.

        Raises:
            UserError: where the folder holds none.
        """
        self._folder, self._trust = folder, trust_remote_code
        kept = cache / "tokenizers" / f"{self._files()}.txt"
        known = kept.is_file() and not trust_remote_code
        self.fingerprint = kept.read_text() if known else self._fingerprint()
        if not known:
            atomic_write(kept, lambda temporary: temporary.write_text(self.fingerprint))

    @cached_property
    def loaded(self) -> "PreTrainedTokenizerBase":
        """The tokenizer itself."""
        return read_tokenizer(self._folder, trust_remote_code=self._trust)

    def _fingerprint(self) -> str:
        tokenizer = self.loaded
        fast = tokenizer.is_fast
        definition = tokenizer.backend_tokenizer.to_str() if fast else json.dumps(tokenizer.get_vocab())
        return hashlib.sha256(definition.encode()).hexdigest()

    def _files(self) -> str:
        """32 hex digits that change with the files and with transformers."""
        digest = hashlib.sha256(metadata.version("transformers").encode())
        for path in sorted(
            {path for pattern in FILES for path in self._folder.glob(pattern) if path.is_file()}
        ):
            digest.update(f"{path.name} {path.stat().st_size} ".encode() + path.read_bytes())
        return digest.hexdigest()[:32]
