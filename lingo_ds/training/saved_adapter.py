"""The adapter in a run's folder: saved at each new best step, loaded back into the model that trained it."""

import json
import logging
import shutil
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from lingo_ds.config.data_config import IntervalsConfig
from lingo_ds.data.task import Task
from lingo_ds.distributed import agreement, process_group
from lingo_ds.export.adapter_card import BackboneCard, Card, DataCard, SavedAdapter, WindowCard
from lingo_ds.export.adapter_folder import load_adapter, save_adapter
from lingo_ds.export.model_card import task_notes
from lingo_ds.export.peft_format import CARD
from lingo_ds.models.adapted_model import AdaptedModel
from lingo_ds.models.adapters.bank import AdapterBank
from lingo_ds.models.adapters.layout import BankLayout
from lingo_ds.models.backbone.hub import backbone_address, public_address
from lingo_ds.training.selection import Best
from lingo_ds.training.setup import RunSetup
from lingo_ds.utils.errors import Mistake, UserError
from lingo_ds.utils.files import atomic_write

logger = logging.getLogger(__name__)


def adapter_folder(setup: RunSetup) -> Path:
    """Where a run keeps its best adapter."""
    return setup.config.run_dir / "adapter"


def save_best(setup: RunSetup, bank: AdapterBank, task: Task, best: Best) -> None:
    """Saves the bank as the run's adapter, on global rank 0.

    Args:
        setup: the run.
        bank: the bank as it was evaluated.
        task: the task, with the thresholds that were chosen on dev.
        best: the evaluation.
    """
    if not setup.env.is_main:
        return
    config = setup.config
    layout, values = bank.kept_values()
    card = Card(
        task=task,
        pooling=config.head.pooling,
        backbone=BackboneCard(
            path=backbone_address(config.backbone.path),
            fingerprint=setup.backbone_fingerprint,
            revision=config.backbone.revision,
            quantization=config.backbone.quantization,
            tokens=setup.tokens,
        ),
        step=best.step,
        at_budget=best.at_budget,
        dev=best.metrics or {},
        data=DataCard(
            name=Path(config.data.path).name,
            fingerprint=setup.data.fingerprint,
            rows=setup.data.facts()["rows"],
            bases=setup.data.bases,
            windows=_window_card(config.data.intervals),
        ),
        average_strands=config.data.averages,
    )
    save_adapter(
        adapter_folder(setup),
        SavedAdapter(layout, values.detach(), config.adapter.numerator, config.adapter.rank, card),
        spec=setup.spec,
        backbone_path=public_address(config.backbone.path, setup.spec.folder),
        settings=_peft_settings(setup),
        notes=task_notes(setup.task, setup.spec, setup.tokenizer.loaded),
    )


def _window_card(intervals: IntervalsConfig | None) -> WindowCard | None:
    """How windows of intervals were cut; None where the data are none."""
    if intervals is None:
        return None
    return WindowCard(window=intervals.window, flank=intervals.flank, center=intervals.center)


def _peft_settings(setup: RunSetup) -> dict[str, Any]:
    """How the adapter was trained, in the words of PEFT's AdaLoraConfig or LoraConfig."""
    config, schedule = setup.config, setup.plan.schedule
    sampling = config.rank_sampling
    common = {"revision": config.backbone.revision, "lora_dropout": config.adapter.dropout}
    if not setup.layout.has_lam:
        return common
    return common | {
        "target_r": sampling.target_rank if schedule else config.adapter.rank,
        "tinit": schedule.t_init if schedule else 0,
        "tfinal": schedule.t_final if schedule else 0,
        "deltaT": schedule.interval if schedule else 1,
        "beta1": sampling.beta1,
        "beta2": sampling.beta2,
        # PEFT refuses 0; it has no effect on inference
        "orth_reg_weight": sampling.orthogonality or 1e-12,
        "total_step": setup.plan.steps,
    }


def copy_best(checkpoint: Path, setup: RunSetup) -> int:
    """Copies the adapter of the run that a checkpoint is of, where that run has another folder.

    Returns:
        The step of the adapter that this run's folder now holds, on every process; 0: there is none.
    """
    theirs, ours = checkpoint.parent.parent / "adapter", adapter_folder(setup)
    step = None
    if setup.env.is_main:
        if theirs.is_dir() and theirs.resolve() != ours.resolve():
            atomic_write(ours, lambda aside: shutil.copytree(theirs, aside))
        card = ours / CARD
        step = json.loads(card.read_text())["step"] if card.is_file() else 0
    return agreement.broadcast_json(step, setup.env)


def load_saved(model: AdaptedModel, setup: RunSetup, folder: Path) -> Task:
    """Loads the adapter of a folder into the model of every process: read on global rank 0, then broadcast.

    Returns:
        The adapter's task, with the thresholds that were chosen for it.

    Raises:
        UserError: where the folder holds no adapter for this backbone, or one that was trained on input
            that was read otherwise.
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
    """Checks that the config turns sequences into hidden states as it was done in training."""
    card, task = saved.card, setup.task
    theirs, ours = card.backbone.quantization, setup.config.backbone.quantization
    if theirs != ours:
        logger.warning(
            "backbone.quantization: %s, but the adapter in %s was trained with %s", ours, folder, theirs
        )
    trained: dict[str, tuple[object, object]] = {
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
