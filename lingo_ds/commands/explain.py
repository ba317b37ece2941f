"""`lingo-ds explain`: which bases of each sequence decide, and the motifs that they make."""

from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from lingo_ds.commands.explained_folder import (
    TABLES,
    draw_pictures,
    print_summary,
    require_folder,
    write_motifs,
)
from lingo_ds.commands.predict import PredictRequest, log_windows, open_input, warn_of_losses
from lingo_ds.config.run_config import PredictConfig
from lingo_ds.data.readers.bed import Center
from lingo_ds.data.streams.alleles import Alleles
from lingo_ds.data.streams.intervals import Regions
from lingo_ds.data.streams.sequences import Chunk, Records
from lingo_ds.data.streams.variants import Variants
from lingo_ds.distributed import agreement
from lingo_ds.distributed.job import job
from lingo_ds.distributed.process_group import DistEnv
from lingo_ds.evaluation.load_predictor import build_predictor, locate_adapter, read_source
from lingo_ds.evaluation.one_hot import no_gradient
from lingo_ds.evaluation.prediction_file import PredictionFile, table_format
from lingo_ds.evaluation.prediction_job import Part, PartJob, run_job
from lingo_ds.evaluation.predictor import SEQUENCES_PER_CHUNK, Predictor
from lingo_ds.export.adapter_folder import adapter_fingerprint
from lingo_ds.interpret.explained import ExplainedBatch, is_of_job, table_schema, to_table
from lingo_ds.interpret.extras import import_extra
from lingo_ds.interpret.gradients import integrate
from lingo_ds.interpret.saturation import saturate
from lingo_ds.interpret.target import Target, find_target
from lingo_ds.utils.errors import UserError

GRADIENT_CHUNK = 64
"""Sequences after which integrated gradients are written."""

Rows = Records | Regions | Alleles
"""What is explained: sequences, intervals of a genome, or both alleles of variants."""


@dataclass(frozen=True, kw_only=True)
class ExplainRequest:
    """What the command line asks for.

    Attributes:
        adapter: the folder of a run, or the `adapter/` in it.
        source: the file to read: sequences, or with `genome` a BED, or a VCF, whose alleles are explained.
        output: the folder to write.
        target: name or number of the output to explain; None: the positive class of two, or the only output.
        method: how.
        steps: of integrated gradients.
        both_strands: whether to average over both strands of each sequence.
        limit: sequences to explain, from the first on; None: all.
        pictures: sequences to draw at most.
        motifs: whether to find the motifs of all sequences.
        database: a MEME file of known motifs to compare those with; None: none.
        sequence_column, id_column, genome, window, flank, center, strict: as of `PredictRequest`.
        overwrite: whether to replace what another job wrote into `output`.
    """

    adapter: Path
    source: Path
    output: Path
    target: str | None = None
    method: Literal["ism", "integrated-gradients"] = "ism"
    steps: int = 32
    both_strands: bool = False
    limit: int | None = None
    pictures: int = 20
    motifs: bool = False
    database: Path | None = None
    sequence_column: str = "sequence"
    id_column: str | None = None
    genome: Path | None = None
    window: int | None = None
    flank: int | None = None
    center: Center | None = None
    strict: bool = False
    overwrite: bool = False

    @property
    def table(self) -> Path:
        """The table of effects or attributions."""
        return self.output / TABLES[self.method]

    def as_input(self) -> PredictRequest:
        """The same input for the readers of `predict`."""
        names = ("sequence_column", "id_column", "genome", "window", "flank", "center", "strict")
        options = {name: getattr(self, name) for name in names}
        return PredictRequest(adapter=self.adapter, source=self.source, target=self.table, **options)


def explain(request: ExplainRequest, config: PredictConfig, env: DistEnv) -> bool:
    """Explains every sequence of a file, or resumes a job that was stopped.

    A table that the same job has finished is not computed again: its pictures and motifs are made from it.

    Args:
        request: which files, and how to read them.
        config: how the adapter is computed.
        env: this process's rank and device.

    Returns:
        Whether the output is complete; False after Ctrl-C or SIGTERM.

    Raises:
        UserError: for mistakes in the request, the adapter or the file.
    """
    with job(config.to_yaml(), env, output=request.output):
        _require_extras(request)
        request = replace(request, adapter=locate_adapter(request.adapter, env))
        source = read_source(request.adapter, config, env)
        task = source.adapter.card.task
        target = find_target(task, request.target)
        if request.method != "ism" and task.tokens == "text":
            raise UserError(no_gradient().mistakes, on_all=True)
        agreement.run_once_per_host(lambda: _open(request), env)  # makes an index of the genome
        with agreement.errors_raised_on_all(env):
            rows = _open(request)
        facts = _facts(request, config, rows, target)
        with agreement.errors_raised_on_all(env):
            if env.is_main:
                require_folder(request.output, request.table, facts, overwrite=request.overwrite)
        finished = env.is_main and not request.overwrite and is_of_job(request.table, facts)
        if not agreement.broadcast_json(finished, env):
            log_windows(_file(rows), request.adapter)
            predictor = build_predictor(source, config, env)
            complete = run_job(
                _job(predictor, rows, target, request, facts),
                before_joining=lambda done: warn_of_losses(_file(rows), done.truncated, predictor),
            )
            if not complete:
                return False
        if env.is_main:
            _finish(request, target)
    return True


def _require_extras(request: ExplainRequest) -> None:
    """Raises, before any work, where a library that will be needed is not installed."""
    if request.pictures or request.motifs or request.database:
        import_extra("logomaker", option="--pictures" if request.pictures else "--motifs")
    if request.motifs or request.database:
        import_extra("tangermeme.seqlet", option="--motifs")
        import_extra("memelite", option="--motifs")


def _open(request: ExplainRequest) -> Rows:
    rows = open_input(request.as_input())
    return Alleles(rows) if isinstance(rows, Variants) else rows


def _file(rows: Rows) -> Records | Regions | Variants:
    """What reads the file of the rows."""
    return rows.variants if isinstance(rows, Alleles) else rows


def _facts(request: ExplainRequest, config: PredictConfig, rows: Rows, target: Target) -> dict[str, Any]:
    """All that decides the table's numbers."""
    facts = {
        "adapter": adapter_fingerprint(request.adapter),
        "input": rows.fingerprint(),
        "settings": config.model_dump(mode="json", exclude={"zero"}),
        "method": request.method,
        "target": target.name,
        "both_strands": request.both_strands,
        "limit": request.limit,
    }
    return facts if request.method == "ism" else facts | {"steps": request.steps}


def _job(
    predictor: Predictor,
    rows: Rows,
    target: Target,
    request: ExplainRequest,
    facts: dict[str, Any],
) -> PartJob:
    """What is computed and written for the sequences."""
    schema = table_schema(request.method, numbered=rows.numbered, facts=facts)

    def parts(_: int, number: int) -> Generator[Part, None, None]:
        with closing(_stream(predictor, rows, target, request, skip=number)) as stream:
            for found, read, truncated in stream:
                size, table = (
                    sum(one.effects.size for one in found),
                    partial(to_table, found, schema, first=number),
                )
                yield Part(size, len(found), table, read, truncated)
                number += len(found)

    return PartJob(
        PredictionFile(request.table, format=table_format(request.table, schema)),
        key={**facts, "dtype": predictor.dtype},
        env=predictor.env,
        unit="sequences",
        amount=lambda table_rows: _sequences_of(rows, table_rows, request.method),
        parts=parts,
        tells_rate=False,
    )


def _sequences_of(rows: Rows, table_rows: int, method: str) -> int:
    """How many sequences from the first on have so many rows in the table."""
    number, per_base = 0, 4 if method == "ism" else 1
    if table_rows:
        for chunk in rows.chunks(most=SEQUENCES_PER_CHUNK, most_bases=1 << 24):
            for sequence in chunk.sequences:
                if table_rows <= 0:
                    return number
                table_rows -= per_base * len(sequence)
                number += 1
    return number


def _stream(
    predictor: Predictor, rows: Rows, target: Target, request: ExplainRequest, *, skip: int
) -> Generator[ExplainedBatch, None, None]:
    both = request.both_strands
    if request.method == "ism":
        chunks = _chunks(rows, request, skip=skip, most=SEQUENCES_PER_CHUNK, bases=predictor.chunk_bases)
        return saturate(predictor, chunks, target, both_strands=both)
    chunks = _chunks(rows, request, skip=skip, most=GRADIENT_CHUNK, bases=predictor.chunk_bases)
    model = predictor.one_hot_model()
    return integrate(model, chunks, target, steps=request.steps, both_strands=both, env=predictor.env)


def _chunks(rows: Rows, request: ExplainRequest, *, skip: int, most: int, bases: int) -> Iterator[Chunk]:
    """The chunks after the first `skip` sequences, up to the limit."""
    for chunk in rows.chunks(skip=skip, most=most, most_bases=bases):
        if request.limit is None:
            yield chunk
            continue
        left, end = request.limit - chunk.begin, chunk.begin + len(chunk.ids)
        if left > 0:
            read = min(end, request.limit) / request.limit
            yield chunk._replace(ids=chunk.ids[:left], sequences=chunk.sequences[:left], read=read)
        if end >= request.limit:
            return


def _finish(request: ExplainRequest, target: Target) -> None:
    """Makes pictures and motifs from the table, and tells what was found."""
    drawn = draw_pictures(
        request.table, request.output / "pictures", most=request.pictures, scale=target.scale
    )
    print_summary(request.table, target.scale, drawn=drawn)
    if request.motifs or request.database:
        write_motifs(request.table, request.output, database=request.database)
