"""`lingo-ds predict`: answers for new sequences, or what variants change, from a file into another."""

import logging
import time
from contextlib import ExitStack, closing
from pathlib import Path

import torch

from lingo_ds.config.run_config import PredictConfig
from lingo_ds.data.readers.bed import BED_SUFFIXES
from lingo_ds.data.readers.genome import Genome
from lingo_ds.data.readers.lines import suffix_of
from lingo_ds.data.streams.intervals import Regions
from lingo_ds.data.streams.sequences import Records
from lingo_ds.data.streams.variants import Variants
from lingo_ds.data.task import Task
from lingo_ds.distributed import agreement, process_group
from lingo_ds.distributed.job import job
from lingo_ds.distributed.process_group import DistEnv
from lingo_ds.distributed.stop_signals import StopSignals
from lingo_ds.evaluation.load_predictor import make_predictor
from lingo_ds.evaluation.prediction_file import Done, Output, check_output
from lingo_ds.evaluation.prediction_tables import SequenceTable, VariantTable
from lingo_ds.evaluation.predictor import SEQUENCES_PER_CHUNK, Predictor
from lingo_ds.export.adapter_folder import adapter_fingerprint, read_card
from lingo_ds.monitor.progress import ProgressBar
from lingo_ds.utils import logging as logs
from lingo_ds.utils.errors import Mistake, UserError
from lingo_ds.utils.files import default_cache

logger = logging.getLogger(__name__)

ON_GENOME = (".vcf", *BED_SUFFIXES)
"""Endings of files that name places of a genome."""

Input = Records | Regions | Variants


def predict(
    config: PredictConfig,
    env: DistEnv,
    *,
    adapter: Path,
    source: Path,
    target: Path,
    sequence_column: str = "sequence",
    id_column: str | None = None,
    genome: Path | None = None,
    window: int | None = None,
    strict: bool = False,
    overwrite: bool = False,
) -> bool:
    """Predicts every row of a file into another, or goes on where an unfinished job stopped.

    Args:
        config: how the adapter is computed.
        env: place of this process.
        adapter: `adapter/` of a run.
        source: sequences, or with `genome` a VCF or BED.
        target: the file to write.
        sequence_column, id_column: of a table.
        genome: FASTA that the places in `source` are of.
        window: bases around a variant, default the adapter's own; around the middle of an interval of a BED.
        strict: refuse a VCF or BED that does not fit the genome, instead of skipping such rows.
        overwrite: replace a `target` that is there.

    Returns:
        Whether it came to the end; False after Ctrl-C or SIGTERM.

    Raises:
        UserError: for mistakes in the arguments, the adapter or the file.
    """

    def opened() -> Input:
        if suffix_of(source) not in ON_GENOME:
            _refuse_places(source, genome, window, strict)
            return Records(source, sequence_column=sequence_column, id_column=id_column)
        return _on_genome(source, adapter, genome=genome, window=window, strict=strict)

    with job(config.to_yaml(), env, output=target), ExitStack() as held:
        agreement.run_once_per_host(opened, env)  # makes an index of the genome
        with agreement.errors_raised_on_all(env):
            rows = opened()
            if env.is_main:
                check_output(target, source=source, overwrite=overwrite)
        if isinstance(rows, Variants):
            logger.info("windows of %s bases around each variant", f"{rows.window:,}")
        predictor = make_predictor(adapter, config, env)
        table = _table(rows, predictor.task)
        output = Output(target, schema=table.schema)
        with agreement.errors_raised_on_all(env):
            if env.is_main:
                held.enter_context(output.held())
        meaning = {
            "adapter": adapter_fingerprint(adapter), "input": rows.fingerprint(),
            "settings": config.model_dump(mode="json", exclude={"zero"}), "dtype": predictor.dtype,
        }  # fmt: skip
        done = Done(*agreement.broadcast_json(output.resume(meaning) if env.is_main else None, env))
        if done.rows:
            logger.info("going on behind the %s %s that are done", f"{done.rows:,}", table.unit)
        return _predict_on(predictor, rows, table, output, done)


def _refuse_places(source: Path, genome: Path | None, window: int | None, strict: bool) -> None:
    """Options that say nothing about a file of sequences are a misunderstanding."""
    options = {"--genome": genome, "--window": window, "--strict": strict or None}
    rule, fix = f"is for {', '.join(ON_GENOME)}, not for {source.name}", "leave it out"
    mistakes = [Mistake(option, value, rule, fix) for option, value in options.items() if value is not None]
    if mistakes:
        raise UserError(mistakes)


def _on_genome(
    source: Path, adapter: Path, *, genome: Path | None, window: int | None, strict: bool
) -> Variants | Regions:
    kind = suffix_of(source)
    if genome is None:
        rule = f"is needed for {kind}"
        raise UserError(Mistake("--genome", "nothing", rule, "give the FASTA that its places are of"))
    if window is not None and window < 1:
        raise UserError(Mistake("--window", window, "is no number of bases", "give 1 or more"))
    fasta = Genome(genome, cache=default_cache())
    if kind in BED_SUFFIXES:
        return Regions(source, genome=fasta, window=window, strict=strict)
    data = read_card(adapter).data
    window = window or (data and data.bases)
    if window is None:
        rule, fix = "is needed: the adapter does not say how long its sequences were", "give it in bases"
        raise UserError(Mistake("--window", "nothing", rule, fix))
    return Variants(source, genome=fasta, window=window, strict=strict)


def _table(rows: Input, task: Task) -> SequenceTable | VariantTable:
    if isinstance(rows, Variants):
        return VariantTable(task)
    return SequenceTable(task, numbered=rows.numbered)


def _predict_on(
    predictor: Predictor, rows: Input, table: SequenceTable | VariantTable, output: Output, done: Done
) -> bool:
    """Predicts what is not yet done; False where a signal ended it."""
    env, began, (number, cut) = predictor.env, time.monotonic(), done
    chunks = rows.chunks(skip=number, most=SEQUENCES_PER_CHUNK, most_bases=predictor.chunk_bases)
    progress = ProgressBar(None, table.unit, enabled=env.is_main, done=number, console=logs.console)
    stop = StopSignals()
    with stop.installed(), progress, closing(predictor.stream(chunks)) as stream:
        for chunk, answers, cut_here in stream:
            if env.is_main:
                output.add(chunk.begin, table.rows(chunk, answers), cut_here)
            number, cut = number + chunk.size, cut + cut_here
            progress.update(number, fraction=chunk.read)
            if process_group.all_gather(torch.tensor([stop.requested], device=env.device)).any():
                logger.info("interrupted after %s %s; the same command goes on from there",
                            f"{number:,}", table.unit)  # fmt: skip
                return False
    _say_what_was_noticed(rows, cut, predictor.task.max_length)
    if env.is_main:
        output.finish()
        seconds = time.monotonic() - began
        rate = (number - done.rows) / max(seconds, 1e-9)
        logs.results.print(
            f"{number:,} {table.unit}, {rate:,.0f} {table.unit}/s in {seconds:.1f} s: {output.path}",
            highlight=False, soft_wrap=True,
        )  # fmt: skip
    return True


def _say_what_was_noticed(rows: Input, cut: int, max_length: int) -> None:
    if rows.skipped.counts:
        logger.warning("skipped: %s", rows.skipped)
    if cut:
        advice = "; give a smaller --window" if isinstance(rows, Variants) else ""
        logger.warning("%s sequences were cut to the adapter's %d tokens%s", f"{cut:,}", max_length, advice)
