"""`lingo-ds export`: a run's adapter in another format, or merged into its backbone."""

import math
from dataclasses import replace
from pathlib import Path

from safetensors import SafetensorError

from lingo_ds.distributed.process_group import DistEnv
from lingo_ds.export.adapter_card import Card
from lingo_ds.export.adapter_folder import as_lora, as_svd, read_settings, save_adapter
from lingo_ds.export.merge import REPORT, save_merged
from lingo_ds.export.model_card import CardNotes, task_frame
from lingo_ds.export.open_adapter import open_adapter
from lingo_ds.export.peft_format import CONFIG
from lingo_ds.models.backbone.hub import backbone_address, public_address
from lingo_ds.utils import logging as logs
from lingo_ds.utils.errors import Mistake, UserError
from lingo_ds.utils.files import default_cache, require_free
from lingo_ds.utils.safe_read import read_own_json


def export(
    env: DistEnv,
    *,
    adapter: Path,
    to: str,
    output: Path,
    backbone: str | None = None,
    dtype: str | None = None,
    shard_gb: float = 4.0,
    license: str = "other",
    overwrite: bool = False,
) -> None:
    """Writes a run's adapter in another format: `adalora`, `lora` or `merged`; global rank 0 does it.

    Raises:
        UserError: where the adapter is damaged, its backbone is another one, or the output cannot be written.
    """
    if not env.is_main:
        return
    logs.quieten_libraries()
    if dtype and to != "merged":
        raise UserError(Mistake("--dtype", dtype, "is for --to merged; adapters stay fp32", "leave it out"))
    if not 0 < shard_gb < math.inf:
        raise UserError(Mistake("--shard-gb", shard_gb, "must be above 0", "give a size in GB"))
    saved, spec = open_adapter(adapter, backbone=backbone, cache=default_cache())
    require_free(output, kept=[adapter, spec.folder], overwrite=overwrite, markers=(CONFIG, REPORT))
    address = backbone_address(backbone or saved.card.backbone.path)
    card = saved.card.model_copy(
        update={"backbone": saved.card.backbone.model_copy(update={"path": address})}
    )
    saved = replace(saved, card=card)
    path = public_address(address, spec.folder)
    frame = task_frame(card.task, spec)
    notes = CardNotes(license, _test_metrics(adapter, card), frame)
    try:
        if to == "merged":
            size = int(shard_gb * 1e9)
            merged = save_merged(
                output, saved, spec=spec, backbone_path=path, dtype=dtype, shard_bytes=size, notes=notes
            )
            for line in merged.lines():
                logs.results.print(line, highlight=False, soft_wrap=True)
        else:
            saved = {"lora": as_lora, "adalora": as_svd}[to](saved)
            settings = read_settings(adapter, saved)
            save_adapter(output, saved, spec=spec, backbone_path=path, settings=settings, notes=notes)
    except (OSError, SafetensorError) as error:
        rule = f"cannot be written ({error})"
        raise UserError(Mistake("--output", output, rule, "make room, or name another place")) from None
    logs.results.print(f"{to}: {output}", highlight=False, soft_wrap=True)


def _test_metrics(adapter: Path, card: Card) -> dict[str, float | None] | None:
    """Metrics on test, where the report of the run that selected this adapter lies beside it."""
    try:
        report = read_own_json(adapter.resolve().parent, "report.json")
        if (report["task"]["name"], report["selected_step"]) != (card.task.name, card.step):
            return None
        test = report["metrics"]["test"]
        return {str(k): v if v is None else float(v) for k, v in test.items()} or None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError):
        return None
