"""One job of predictions: what is not finished yet is computed and kept, until the end or a signal."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from typing import Any, NamedTuple, Protocol, TypeVar

import torch

from lingo_ds.data.streams.sequences import Chunk
from lingo_ds.data.streams.tiles import TileChunk
from lingo_ds.data.streams.variants import VariantChunk
from lingo_ds.distributed import agreement, process_group
from lingo_ds.distributed.stop_signals import StopSignals
from lingo_ds.evaluation.prediction_file import FinishedParts, PredictionFile
from lingo_ds.evaluation.prediction_tables import PredictionTable
from lingo_ds.evaluation.predictor import SEQUENCES_PER_CHUNK, Predictor, RowChunk
from lingo_ds.monitor.progress import ProgressBar
from lingo_ds.utils import logging as logs

logger = logging.getLogger(__name__)

ReadChunk = TypeVar("ReadChunk", bound=Chunk | VariantChunk | TileChunk, covariant=True)


class ChunkedInput(Protocol[ReadChunk]):
    """Rows to predict, read chunk by chunk."""

    def chunks(self, *, skip: int = 0, most: int, most_bases: int) -> Iterator[ReadChunk]:
        """The rows after the first `skip`."""


class PredictionJob(NamedTuple):
    """What a job computes, and where it goes.

    Attributes:
        predictor: computes the answers.
        table: makes rows of them.
        output: keeps the rows.
        key: what the rows follow from; those of an earlier job with another one are computed again.
        layer: the layer whose pooled hidden states are kept beside the answers; None: none.
    """

    predictor: Predictor
    table: PredictionTable[Any]
    output: PredictionFile
    key: dict[str, Any]
    layer: int | None = None


def run_job(
    job: PredictionJob,
    rows: ChunkedInput[RowChunk],
    *,
    before_joining: Callable[[FinishedParts], None] = lambda _: None,
) -> bool:
    """Predicts the rows that are not finished yet, and joins all to the output.

    Args:
        job: what is computed.
        rows: the rows.
        before_joining: called on every process when all rows are there, with how many, those of an earlier
            job included, before they become the output.

    Returns:
        Whether the output is complete; False where a signal ended it.
    """
    env, table, output = job.predictor.env, job.table, job.output
    with ExitStack() as lock:
        with agreement.errors_raised_on_all(env):
            if env.is_main:
                lock.enter_context(output.lock())
        resumed = output.resume(job.key) if env.is_main else None
        finished = FinishedParts(*agreement.broadcast_json(resumed, env))
        if finished.rows:
            logger.info("resuming after %s finished %s", f"{table.amount(finished.rows):,}", table.unit)
        began = time.monotonic()
        done = _compute(job, rows, finished)
        if done is None:
            return False
        before_joining(done)
        if env.is_main:
            output.finish()
            seconds = time.monotonic() - began
            total, before = table.amount(done.rows), table.amount(finished.rows)
            rate = (total - before) / max(seconds, 1e-9)
            logs.results.print(
                f"{total:,} {table.unit}, {rate:,.0f} {table.unit}/s in {seconds:.1f} s: {output.path}",
                highlight=False,
                soft_wrap=True,
            )
    return True


def _compute(
    job: PredictionJob, rows: ChunkedInput[RowChunk], finished: FinishedParts
) -> FinishedParts | None:
    """Writes the part of every chunk after those that are finished; None where a signal ended it."""
    predictor, table, (number, truncated) = job.predictor, job.table, finished
    env = predictor.env
    chunks = rows.chunks(skip=number, most=SEQUENCES_PER_CHUNK, most_bases=predictor.chunk_bases)
    done = table.amount(number)
    progress = ProgressBar(None, table.unit, enabled=env.is_main, done=done, console=logs.console)
    stop = StopSignals()
    with stop.installed(), progress, closing(predictor.stream(chunks, layer=job.layer)) as stream:
        for predicted in stream:
            chunk = predicted.chunk
            if env.is_main:
                job.output.write_part(chunk.begin, table.rows(predicted), truncated=predicted.truncated)
            number, truncated = number + chunk.size, truncated + predicted.truncated
            progress.update(table.amount(number), fraction=chunk.read)
            if process_group.all_gather(torch.tensor([stop.requested], device=env.device)).any():
                logger.info(
                    "interrupted after %s %s; run the same command again to resume from there",
                    f"{table.amount(number):,}",
                    table.unit,
                )
                return None
    return FinishedParts(number, truncated)


def warn_of_truncated(truncated: int, predictor: Predictor, *, advice: str = "") -> None:
    """Warns of sequences that were not read whole, and of DNA that was lost on its way to tokens."""
    if truncated:
        share = predictor.losses.cut_in_words()
        cut = f" and lost {share}" if share else ""
        logger.warning(
            "%s sequences were truncated to the adapter's %d tokens%s%s",
            f"{truncated:,}",
            predictor.task.max_length,
            cut,
            advice,
        )
    if lost := predictor.losses.in_words():
        logger.warning("%s: an adapter trained with data.tokens=nucleotides reads every base", lost)
