"""A saved adapter, back into the model that trained it."""

import logging
from pathlib import Path

from pydantic import TypeAdapter

from lingo_ds.data.task import Task
from lingo_ds.distributed import agreement, process_group
from lingo_ds.export.adapter_card import SavedAdapter
from lingo_ds.export.adapter_folder import load_adapter
from lingo_ds.models.adapted_model import AdaptedModel
from lingo_ds.models.adapters.layout import BankLayout
from lingo_ds.training.setup import RunSetup
from lingo_ds.utils.errors import Mistake, UserError

logger = logging.getLogger(__name__)


def replace_with_saved(model: AdaptedModel, setup: RunSetup, folder: Path) -> Task:
    """Puts the adapter of a folder into the model of every process: read on global rank 0, then broadcast.

    Returns:
        What its outputs mean, with the thresholds that were chosen for it.

    Raises:
        UserError: where the folder holds no adapter for this backbone, or one that read its input otherwise.
    """
    env, saved = setup.env, None
    with agreement.errors_raised_on_all(env):
        if env.is_main:
            saved = load_adapter(folder, setup.spec)
            _require_same_reading(saved, setup, folder)
    described = saved and {
        "layout": saved.layout.to_json(),
        "scale": saved.scale,
        "task": saved.card.task.to_dict(),
    }
    found = agreement.broadcast_json(described, env)
    layout = BankLayout.from_json(found["layout"])
    model.bank.scale = found["scale"]
    values = saved.values.to(env.device) if saved else model.bank.master.new_zeros(layout.size)
    model.replace(layout, process_group.broadcast_(values))
    return TypeAdapter(Task).validate_python(found["task"])


def _require_same_reading(saved: SavedAdapter, setup: RunSetup, folder: Path) -> None:
    """The config must turn sequences into hidden states as it was done in training."""
    card, task = saved.card, setup.task
    theirs, ours = card.backbone.quantization, setup.config.backbone.quantization
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
        "head.pooling": (card.pooling, setup.config.head.pooling),
        "task.kind": (card.task.kind, task.kind),
        "data.path": (card.task.outputs, task.outputs),
        "backbone.path": (card.backbone.fingerprint, setup.backbone_fingerprint),
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
