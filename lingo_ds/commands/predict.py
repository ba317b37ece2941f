"""`lingo-ds predict`: reads sequences or variants from one file, and writes the answers into another."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lingo_ds.config.run_config import PredictConfig
from lingo_ds.data.readers.bed import Center, WindowRule
from lingo_ds.data.readers.formats import ENDINGS, format_of, unread_mistake
from lingo_ds.data.readers.genome import Genome
from lingo_ds.data.streams.intervals import Regions
from lingo_ds.data.streams.sequences import Records, require_readable
from lingo_ds.data.streams.variants import Variants
from lingo_ds.distributed import agreement
from lingo_ds.distributed.job import job
from lingo_ds.distributed.process_group import DistEnv
from lingo_ds.evaluation.load_predictor import build_predictor, locate_adapter, read_source
from lingo_ds.evaluation.prediction_file import PredictionFile, check_output, table_format
from lingo_ds.evaluation.prediction_job import PartJob, prediction_job, run_job, warn_of_truncated
from lingo_ds.evaluation.prediction_tables import PredictionTable, SequenceTable, VariantTable
from lingo_ds.evaluation.predictor import Predictor
from lingo_ds.export.adapter_folder import adapter_fingerprint, read_card
from lingo_ds.models.embedding_model import find_layer
from lingo_ds.utils.errors import Mistake, UserError
from lingo_ds.utils.files import default_cache

logger = logging.getLogger(__name__)

GENOME_SUFFIXES = (*ENDINGS["vcf"], *ENDINGS["bed"])
"""Endings of files whose rows are positions of a genome."""


@dataclass(frozen=True, kw_only=True)
class PredictRequest:
    """What the command line asks for.

    Attributes:
        adapter: the folder of a run, the `adapter/` in it, or the hub id of a published one.
        source: the file to read: sequences, or with `genome` a VCF or BED.
        target: the file to write.
        sequence_column: the column of a table that holds the DNA.
        id_column: the column of a table that holds the ids; None: `id` where there is one.
        genome: the FASTA to which the positions in `source` refer.
        window: bases around a variant, None: as many as the adapter's training sequences had; or around the
            centre of an interval, None: as in training, or with a `flank` none.
        flank: bases on both sides of an interval; None: as in training, or with a `window` none.
        center: what is an interval's centre: its middle, or the summit of a peak; None: as in training.
        strict: whether to refuse a VCF or BED that does not fit the genome, instead of skipping such rows.
        overwrite: whether to replace a `target` that exists.
        embeddings: whether to write pooled hidden states, too.
        layer: whose, 0 for the input embeddings; None: the last, which the head reads.
    """

    adapter: Path
    source: Path
    target: Path
    sequence_column: str = "sequence"
    id_column: str | None = None
    genome: Path | None = None
    window: int | None = None
    flank: int | None = None
    center: Center | None = None
    strict: bool = False
    overwrite: bool = False
    embeddings: bool = False
    layer: int | None = None


def predict(request: PredictRequest, config: PredictConfig, env: DistEnv) -> bool:
    """Predicts every row of a file into another, or resumes a job that was stopped.

    Args:
        request: which files, and how to read them.
        config: how the adapter is computed.
        env: this process's rank and device.

    Returns:
        Whether the output is complete; False after Ctrl-C or SIGTERM.

    Raises:
        UserError: for mistakes in the request, the adapter or the file.
    """
    with job(config.to_yaml(), env, output=request.target):
        request = replace(request, adapter=locate_adapter(request.adapter, env))
        source = read_source(request.adapter, config, env)
        agreement.run_once_per_host(lambda: open_input(request), env)  # makes an index of the genome
        with agreement.errors_raised_on_all(env):
            rows = open_input(request)
            _check_embeddings(request)
            if env.is_main:
                check_output(request.target, source=request.source, overwrite=request.overwrite)
        log_windows(rows, request.adapter)
        layer = find_layer(request.layer, layers=source.spec.layers) if request.embeddings else None
        predictor = build_predictor(source, config, env)
        return run_job(
            _job(request, config, predictor, rows, layer),
            before_joining=lambda done: warn_of_losses(rows, done.truncated, predictor),
        )


def _job(
    request: PredictRequest,
    config: PredictConfig,
    predictor: Predictor,
    rows: Records | Regions | Variants,
    layer: int | None,
) -> PartJob:
    """What is computed and written for the rows; with a `layer` its embeddings, too."""
    key: dict[str, Any] = {
        "adapter": adapter_fingerprint(request.adapter),
        "input": rows.fingerprint(),
        "settings": config.model_dump(mode="json", exclude={"zero"}),
        "dtype": predictor.dtype,
    }
    size = None
    if layer is not None:
        size, key["layer"] = predictor.embedding_size(layer), layer
    table: PredictionTable[Any]
    if isinstance(rows, Variants):
        table = VariantTable(predictor.task, embedding_size=size)
    else:
        table = SequenceTable(predictor.task, numbered=rows.numbered, embedding_size=size)
    output = PredictionFile(request.target, format=table_format(request.target, table.schema))
    return prediction_job(predictor, rows, table, output, key=key, layer=layer)


def _check_embeddings(request: PredictRequest) -> None:
    """Raises for a layer of no embeddings, and for embeddings in a table of text."""
    if request.layer is not None and not request.embeddings:
        raise UserError(Mistake("--layer", request.layer, "has no effect without --embeddings", "add it"))
    if request.embeddings and not request.target.name.lower().endswith(".parquet"):
        rule, fix = "is a table of text, which cannot hold embeddings", "name a file that ends with .parquet"
        raise UserError(Mistake("--output", request.target, rule, fix))


def open_input(request: PredictRequest) -> Records | Regions | Variants:
    """The rows of the input, of the format that its first bytes or its ending tell.

    Raises:
        UserError: where it cannot be read, or options do not go with its format.
    """
    require_readable(request.source, fix="give a file of sequences, variants or intervals")
    format = format_of(request.source)
    if format is None:
        raise UserError(unread_mistake(request.source, where="--input"))
    if format in ("table", "fasta"):
        options = ("genome", "window", "flank", "center", "strict")
        _refuse(request, options, f"is for {', '.join(GENOME_SUFFIXES)}, not for {request.source.name}")
        return Records(request.source, sequence_column=request.sequence_column, id_column=request.id_column)
    if request.genome is None:
        rule = f"is needed for {request.source.name}, which is a {format.upper()}"
        raise UserError(Mistake("--genome", "nothing", rule, "give the FASTA to which its positions refer"))
    for option, least in (("window", 1), ("flank", 0)):
        if (value := getattr(request, option)) is not None and value < least:
            rule = f"must be {least} or more"
            raise UserError(Mistake(f"--{option}", value, rule, "give a number of bases"))
    if format == "bed":
        windows = _windows_of_intervals(request)
        genome = Genome(request.genome, cache=default_cache())
        return Regions(request.source, genome=genome, windows=windows, strict=request.strict)
    _refuse(request, ("flank", "center"), "is for intervals, not for variants")
    window = request.window or trained_window(request.adapter)
    genome = Genome(request.genome, cache=default_cache())
    return Variants(request.source, genome=genome, window=window, strict=request.strict)


def _windows_of_intervals(request: PredictRequest) -> WindowRule:
    """What is read of the genome for an interval: as in training, where the options do not say otherwise.

    Raises:
        UserError: for options that contradict each other.
    """
    rule = _trained_windows(request.adapter) or WindowRule()
    if request.window is not None and request.flank is not None:
        fix = "give only one of them"
        raise UserError(Mistake("--flank", request.flank, "cannot be combined with --window", fix))
    if request.window is not None:
        rule = WindowRule(request.window, center=rule.center)
    elif request.flank is not None:
        rule = WindowRule(flank=request.flank)
    rule = rule._replace(center=request.center or rule.center)
    if rule.center == "summit" and rule.window is None:
        fix = "give --window, a number of bases"
        raise UserError(Mistake("--center", rule.center, "needs a window to lie around it", fix))
    return rule


def _trained_windows(adapter: Path) -> WindowRule | None:
    """What was read for an interval in training; None where that is not known, or there were none."""
    data = read_card(adapter).data
    return WindowRule(**data.windows.model_dump()) if data and data.windows else None


def log_windows(rows: Records | Regions | Variants, adapter: Path) -> None:
    """Logs how windows are cut, and warns where training cut them otherwise."""
    if isinstance(rows, Variants):
        logger.info("windows of %s bases of the forward strand around each variant", f"{rows.window:,}")
    elif isinstance(rows, Regions):
        trained = _trained_windows(adapter)
        if trained in (rows.windows, None):
            logger.info("of the genome is read%s: %s", " as in training" if trained else "", rows.windows)
        else:
            logger.warning("of the genome is read: %s; but in training it was: %s", rows.windows, trained)


def _refuse(request: PredictRequest, names: Sequence[str], rule: str) -> None:
    """Raises for options that have no effect on the input: they show a misunderstanding."""
    default = PredictRequest(adapter=request.adapter, source=request.source, target=request.target)
    given = [name for name in names if getattr(request, name) != getattr(default, name)]
    if given:
        raise UserError([Mistake(f"--{name}", getattr(request, name), rule, "remove it") for name in given])


def trained_window(adapter: Path) -> int:
    """As many bases as the adapter's training sequences had."""
    data = read_card(adapter).data
    if data is None or not data.bases:
        rule = "is needed: the adapter does not say how long its training sequences were"
        raise UserError(Mistake("--window", "nothing", rule, "give a number of bases"))
    return data.bases


def warn_of_losses(rows: Records | Regions | Variants, truncated: int, predictor: Predictor) -> None:
    """Warns of rows that were skipped or have one id, and of sequences that were not read whole or at all."""
    if isinstance(rows, Records | Regions) and (remark := rows.doubled.remark()):
        logger.warning("%s", remark)
    if rows.skipped.counts:
        logger.warning("skipped: %s", rows.skipped)
    advice = "; give a smaller --window" if isinstance(rows, Variants) else ""
    warn_of_truncated(truncated, predictor, advice=advice)
