"""From an adapter folder to the adapter and its backbone's spec."""

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from lingo_ds.data.prompt import make_prompt
from lingo_ds.data.tokenization import make_tokenize, probe, tokens_fingerprint
from lingo_ds.export.adapter_card import Card, SavedAdapter
from lingo_ds.export.adapter_folder import load_adapter, read_card
from lingo_ds.models.backbone.hub import backbone_folder, make_builtin_backbone
from lingo_ds.models.backbone.spec import BackboneSpec, read_spec
from lingo_ds.models.backbone.weight_files import require_weights, weights_fingerprint
from lingo_ds.utils.errors import Mistake, UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class OpenedAdapter(NamedTuple):
    """What an adapter folder holds, and the backbone that it was trained on."""

    saved: SavedAdapter
    spec: BackboneSpec


def find_backbone_of(
    folder: Path,
    *,
    backbone: str | None,
    cache: Path,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> Path:
    """Finds the files of an adapter's backbone, or downloads or makes them; arguments as of `open_adapter`.

    Raises:
        UserError: where the adapter's card is damaged, or the backbone is missing or none.
    """
    card = read_card(folder).backbone
    path = backbone or card.path
    make_builtin_backbone(path, cache)
    return backbone_folder(
        path, revision=revision or card.revision, cache=cache, trust_remote_code=trust_remote_code
    )


def open_adapter(
    folder: Path,
    *,
    backbone: str | None,
    cache: Path,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> OpenedAdapter:
    """Reads an adapter folder and finds its backbone; no weight of the backbone is read.

    Args:
        folder: `adapter/` of a run.
        backbone: folder or hub id to look in instead of the one that the adapter names.
        cache: folder of this machine for the built-in backbones.
        revision: revision of a hub id, instead of the adapter's.
        trust_remote_code: whether to run model code that comes with the backbone's files.

    Raises:
        UserError: where the adapter is damaged, or its backbone is missing or another one.
    """
    card = read_card(folder).backbone
    path = backbone or card.path
    files = find_backbone_of(
        folder, backbone=backbone, cache=cache, revision=revision, trust_remote_code=trust_remote_code
    )
    spec = read_spec(files, trust_remote_code=trust_remote_code)
    if (fingerprint := weights_fingerprint(spec.folder)) != card.fingerprint:
        require_weights(spec, fingerprint)  # damaged files are named for what they are
        rule = f"is not the backbone that the adapter in {folder} was trained on"
        raise UserError(Mistake("backbone.path", path, rule, f"set the one that was at {card.path}"))
    return OpenedAdapter(load_adapter(folder, spec), spec)


def require_same_tokens(card: Card, tokenizer: "PreTrainedTokenizerBase", spec: BackboneSpec) -> None:
    """Checks that a backbone's tokenizer reads DNA as it did when the adapter was trained.

    Raises:
        UserError: where it does not, or cannot read text at all.
    """
    task, known = card.task, card.backbone.tokens
    tokenize = make_tokenize(
        task.tokens,
        tokenizer,
        vocabulary=spec.embedding_shape[0],
        pair_separator=task.pair_separator or "",
    )
    found = tokens_fingerprint(probe(tokenize, make_prompt(task.template, domain=task.domain)))
    if known is not None and found != known:
        rule = "has another tokenizer than the adapter was trained with"
        fix = f"give the tokenizer files of {card.backbone.path}"
        raise UserError(Mistake("backbone.path", spec.folder, rule, fix))
