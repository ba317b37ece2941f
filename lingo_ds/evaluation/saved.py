"""Saved adapters: found again with their backbone, and put back into the model that trained them."""

import logging
from pathlib import Path
from typing import NamedTuple

from pydantic import TypeAdapter

from lingo_ds.data.task import Task
from lingo_ds.distributed import agreement, process_group
from lingo_ds.export import SavedAdapter, load_adapter, read_card
from lingo_ds.models.adapted_model import AdaptedModel
from lingo_ds.models.adapters.layout import BankLayout, Site
from lingo_ds.models.backbone.hub import backbone_folder, make_builtin_backbone
from lingo_ds.models.backbone.spec import BackboneSpec, read_spec
from lingo_ds.models.backbone.weight_files import fingerprint
from lingo_ds.prepare import Prepared
from lingo_ds.utils.errors import Mistake, UserError

logger = logging.getLogger(__name__)


class OpenedAdapter(NamedTuple):
    """An adapter folder on its own: what it holds, and the backbone it was trained on."""

    saved: SavedAdapter
    spec: BackboneSpec


def open_adapter(
    folder: Path,
    *,
    backbone: str | None,
    cache: Path,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> OpenedAdapter:
    """Reads an adapter folder and finds its backbone again; no weight of the backbone is read.

    Args:
        folder: `adapter/` of a run.
        backbone: folder or hub id to look in instead of the one that the adapter names.
        cache: of this machine, for the embedded backbone.
        revision: of a hub id, instead of the adapter's.
        trust_remote_code: whether to run model code that comes with the backbone's files.

    Raises:
        UserError: where the adapter is damaged, or its backbone is missing or another one.
    """
    card = read_card(folder).backbone
    path = backbone or card.path
    make_builtin_backbone(path, cache)
    files = backbone_folder(path, revision=revision or card.revision, cache=cache)
    spec = read_spec(files, trust_remote_code=trust_remote_code)
    if fingerprint(spec.folder) != card.fingerprint:
        rule = f"is not the backbone that the adapter in {folder} was trained on"
        raise UserError(Mistake("backbone.path", path, rule, f"name the one that was at {card.path}"))
    return OpenedAdapter(load_adapter(folder, spec), spec)


def adopt_saved(model: AdaptedModel, prepared: Prepared, folder: Path) -> Task:
    """Puts the adapter of a folder into the model of every process: read on global rank 0, then broadcast.

    Returns:
        What its outputs mean, with the thresholds that were chosen for it.

    Raises:
        UserError: where the folder holds no adapter for this backbone, or one that read its input otherwise.
    """
    env, saved = prepared.env, None
    with agreement.together(env):
        if env.is_main:
            saved = load_adapter(folder, prepared.spec)
            _require_same_reading(saved, prepared, folder)
    shape = saved and [
        saved.layout.sites,
        saved.layout.ranks,
        saved.layout.head_shape,
        saved.layout.has_lam,
        saved.layout.token_shape,
        saved.alpha / saved.rank,
        saved.card.task.to_dict(),
    ]
    sites, ranks, head_shape, has_lam, token_shape, model.bank.scale, task = agreement.share_json(shape, env)
    layout = BankLayout(
        tuple(Site(*site) for site in sites), tuple(ranks), tuple(head_shape), has_lam, tuple(token_shape)
    )
    values = saved.values.to(env.device) if saved else model.bank.master.new_zeros(layout.size)
    model.adopt(layout, process_group.broadcast_(values))
    return TypeAdapter(Task).validate_python(task)


def _require_same_reading(saved: SavedAdapter, prepared: Prepared, folder: Path) -> None:
    """The config must turn sequences into hidden states as it was done in training."""
    card, task = saved.card, prepared.task
    theirs, ours = card.backbone.quantization, prepared.config.backbone.quantization
    if theirs != ours:
        logger.warning(
            "backbone.quantization: %s, but the adapter in %s was trained with %s", ours, folder, theirs
        )
    trained = {
        "data.prefix": (card.task.template, task.template),
        "data.domain": (card.task.domain, task.domain),
        "data.pair_separator": (card.task.pair_separator, task.pair_separator),
        "data.tokens": (card.task.tokens, task.tokens),
        "data.max_length": (card.task.max_length, task.max_length),
        "head.pooling": (card.pooling, prepared.config.head.pooling),
        "task.kind": (card.task.kind, task.kind),
        "data.path": (card.task.outputs, task.outputs),
        "backbone.path": (card.backbone.fingerprint, prepared.backbone_fingerprint),
    }
    if card.task.classes == task.classes:
        trained["task.labels"] = card.task.output_names, task.output_names
    mistakes = [
        Mistake(field, ours, f"the adapter in {folder} was trained with {theirs!r}", "set it to that")
        for field, (theirs, ours) in trained.items()
        if theirs != ours
    ]
    if mistakes:
        raise UserError(mistakes)
