"""Putting a saved adapter back into the model, so that what is evaluated is what was saved."""

from pathlib import Path

from lingo_ds import distributed
from lingo_ds.adapters.layout import BankLayout, Site
from lingo_ds.errors import Mistake, UserError
from lingo_ds.export import SavedAdapter, load_adapter
from lingo_ds.model import AdaptedModel
from lingo_ds.prepare import Prepared


def adopt_saved(model: AdaptedModel, prepared: Prepared, folder: Path) -> None:
    """Puts the adapter of a folder into the model of every process: read on global rank 0, then broadcast.

    Raises:
        UserError: where the folder holds no adapter for this backbone, or one that read its input otherwise.
    """
    env, saved = prepared.env, None
    with distributed.together(env):
        if env.is_main:
            saved = load_adapter(folder, prepared.spec)
            _require_same_reading(saved, prepared, folder)
    shape = saved and [
        saved.layout.sites,
        saved.layout.ranks,
        saved.layout.head_shape,
        saved.layout.has_lam,
        saved.alpha / saved.rank,
    ]
    sites, ranks, head_shape, has_lam, model.bank.scale = distributed.share_json(shape, env)
    layout = BankLayout(tuple(Site(*site) for site in sites), tuple(ranks), tuple(head_shape), has_lam)
    values = saved.values.to(env.device) if saved else model.bank.master.new_zeros(layout.size)
    model.adopt(layout, distributed.broadcast_(values))


def _require_same_reading(saved: SavedAdapter, prepared: Prepared, folder: Path) -> None:
    """The config must turn sequences into hidden states as it was done in training."""
    card, task = saved.card, prepared.task
    trained = {
        "data.prefix": (card.task.template, task.template),
        "data.domain": (card.task.domain, task.domain),
        "data.max_length": (card.task.max_length, task.max_length),
        "head.pooling": (card.pooling, prepared.config.head.pooling),
        "data.path": (f"{card.task.classes} classes", f"{task.classes} classes"),
        "backbone.path": (card.backbone.fingerprint, prepared.backbone_fingerprint),
    }
    mistakes = [
        Mistake(field, ours, f"the adapter in {folder} was trained with {theirs!r}", "set it to that")
        for field, (theirs, ours) in trained.items()
        if theirs != ours
    ]
    if mistakes:
        raise UserError(mistakes)
