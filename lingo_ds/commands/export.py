"""`lingo-ds export`: a run's adapter in another format, or merged into its backbone."""

import logging
import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from safetensors import SafetensorError

from lingo_ds.distributed.process_group import DistEnv
from lingo_ds.export.adapter_card import Card, SavedAdapter
from lingo_ds.export.adapter_folder import as_lora, as_svd, find_adapter, read_settings, save_adapter
from lingo_ds.export.hub import is_hub_id, listing, page_of, publish, require_publishable
from lingo_ds.export.merge import REPORT, save_merged
from lingo_ds.export.model_card import CardNotes, task_notes
from lingo_ds.export.open_adapter import open_adapter, require_same_tokens
from lingo_ds.export.peft_format import CONFIG
from lingo_ds.models.backbone.hub import backbone_address, is_builtin, public_address
from lingo_ds.models.backbone.spec import BackboneSpec
from lingo_ds.models.backbone.tokenizer import read_tokenizer
from lingo_ds.utils import logging as logs
from lingo_ds.utils.errors import Mistake, UserError
from lingo_ds.utils.files import default_cache, require_free
from lingo_ds.utils.safe_read import read_own_json

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ExportRequest:
    """What the command line asks for.

    Attributes:
        adapter: the folder of a run, the `adapter/` in it, or the hub id of a published one.
        to: `adalora`, `lora` or `merged`.
        output: the folder to write.
        backbone: folder or hub id of the backbone, if it has moved.
        dtype: fp32, bf16 or fp16 for merged weights; None: the backbone's own.
        shard_gb: size of the largest file of a merged model.
        license: license for the model card, as the hub names it.
        overwrite: whether to replace an earlier export.
        push: hub id to publish the folder under; None: it is not published.
        private: whether only its owner sees what is published.
        dry_run: whether to list what would be published, and not to publish it.
    """

    adapter: Path
    to: str
    output: Path
    backbone: str | None = None
    dtype: str | None = None
    shard_gb: float = 4.0
    license: str = "other"
    overwrite: bool = False
    push: str | None = None
    private: bool = False
    dry_run: bool = False


def export(request: ExportRequest, env: DistEnv) -> None:
    """Writes a run's adapter in another format, and publishes it where asked; global rank 0 does it.

    Raises:
        UserError: where the adapter is damaged, its backbone is another one, the output cannot be written, or
            the hub refuses it.
    """
    if not env.is_main:
        return
    logs.quieten_libraries()
    _check(request)
    request = replace(request, adapter=find_adapter(request.adapter))
    saved, spec = open_adapter(request.adapter, backbone=request.backbone, cache=default_cache())
    require_free(
        request.output,
        kept=[request.adapter, spec.folder],
        overwrite=request.overwrite,
        markers=(CONFIG, REPORT),
    )
    saved = _at_address(saved, request.backbone)
    tokenizer = read_tokenizer(spec.folder)
    require_same_tokens(saved.card, tokenizer, spec)
    test = _test_metrics(request.adapter, saved.card)
    notes = task_notes(saved.card.task, spec, tokenizer, license=request.license, test=test)
    notes = notes._replace(hub=request.push)
    try:
        for line in _write(request, saved, spec, notes):
            logs.results.print(line, highlight=False, soft_wrap=True)
    except (OSError, SafetensorError) as error:
        rule = f"cannot be written ({error})"
        fix = "free disk space, or choose another folder"
        raise UserError(Mistake("--output", request.output, rule, fix)) from None
    logs.results.print(f"{request.to}: {request.output}", highlight=False, soft_wrap=True)
    if request.push:
        _publish(request, request.push, saved.card)


def _publish(request: ExportRequest, name: str, card: Card) -> None:
    """Lists what goes to the hub, and uploads it unless this is a dry run."""
    path = card.backbone.path
    if request.to != "merged" and is_builtin(path):
        logger.warning("%s comes with lingo_ds, which finds it anywhere; stock PEFT does not", path)
    elif request.to != "merged" and not is_hub_id(path):
        advice = "if it is on the hub too, give --backbone OWNER/NAME"
        logger.warning("the adapter's files name its backbone as %s, on this machine: %s", path, advice)
    page, sight = page_of(name), "private" if request.private else "public"
    head = f"would be uploaded to {page} ({sight}):" if request.dry_run else f"uploading to {page} ({sight}):"
    for line in (head, *listing(request.output)):
        logs.results.print(line, highlight=False, soft_wrap=True)
    if not request.dry_run:
        url = publish(request.output, name, private=request.private, overwrite=request.overwrite)
        logs.results.print(f"published: {url}", highlight=False, soft_wrap=True)


def _check(request: ExportRequest) -> None:
    if request.dtype and request.to != "merged":
        rule = "is for --to merged; adapters stay fp32"
        raise UserError(Mistake("--dtype", request.dtype, rule, "leave it out"))
    if request.push is None:
        for option, given in (("--private", request.private), ("--dry-run", request.dry_run)):
            if given:
                rule, fix = "has no effect without --push", "give --push OWNER/NAME, or leave it out"
                raise UserError(Mistake(option, "set", rule, fix))
    else:
        require_publishable(request.push, dry_run=request.dry_run)
    if not 0 < request.shard_gb < math.inf:
        raise UserError(Mistake("--shard-gb", request.shard_gb, "must be above 0", "give a size in GB"))


def _at_address(saved: SavedAdapter, backbone: str | None) -> SavedAdapter:
    """The adapter whose card names the backbone where it is now."""
    card = saved.card
    address = backbone_address(backbone or card.backbone.path)
    card = card.model_copy(update={"backbone": card.backbone.model_copy(update={"path": address})})
    return replace(saved, card=card)


def _write(
    request: ExportRequest, saved: SavedAdapter, spec: BackboneSpec, notes: CardNotes
) -> Iterable[str]:
    """Writes the output. Returns lines for the terminal."""
    path = saved.card.backbone.path
    if not (request.push and is_builtin(path)):  # published files name no folder of this machine needlessly
        path = public_address(path, spec.folder)
    if request.to == "merged":
        size = int(request.shard_gb * 1e9)
        merged = save_merged(
            request.output,
            saved,
            spec=spec,
            backbone_path=path,
            dtype=request.dtype,
            shard_bytes=size,
            notes=notes,
        )
        return merged.lines()
    saved = {"lora": as_lora, "adalora": as_svd}[request.to](saved)
    settings = read_settings(request.adapter, saved)
    save_adapter(request.output, saved, spec=spec, backbone_path=path, settings=settings, notes=notes)
    return ()


def _test_metrics(adapter: Path, card: Card) -> dict[str, float | None] | None:
    """Metrics on test; None where the report beside the adapter is not of the run that selected it."""
    try:
        report = read_own_json(adapter.resolve().parent, "report.json")
        if (report["task"]["name"], report["selected_step"]) != (card.task.name, card.step):
            return None
        test = report["metrics"]["test"]
        return {str(k): v if v is None else float(v) for k, v in test.items()} or None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError):
        return None
