"""One job of many sequences: what is not finished yet is computed and kept, until the end or a signal."""

import logging
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, closing
from functools import partial
from typing import Any, NamedTuple, Protocol

import pyarrow as pa
import torch

from lingo_ds.data.streams.sequences import Chunk
from lingo_ds.data.streams.tiles import TileChunk
from lingo_ds.data.streams.variants import VariantChunk
from lingo_ds.distributed import agreement, process_group
from lingo_ds.distributed.process_group import DistEnv
from lingo_ds.distributed.stop_signals import StopSignals
from lingo_ds.evaluation.prediction_file import FinishedParts, PredictionFile
from lingo_ds.evaluation.prediction_tables import PredictionTable
from lingo_ds.evaluation.predictor import SEQUENCES_PER_CHUNK, Predictor
from lingo_ds.monitor.progress import ProgressBar
from lingo_ds.utils import logging as logs

logger = logging.getLogger(__name__)


class ChunkedInput(Protocol):
    """Rows to predict, read chunk by chunk."""

    def chunks(
        self, *, skip: int = 0, most: int, most_bases: int
    ) -> Iterator[Chunk | VariantChunk | TileChunk]:
        """The rows after the first `skip`."""


class Part(NamedTuple):
    """Neighbouring rows of an output, and how far the job has come with them.

    Attributes:
        rows: their number; 0: only `amount`, `read` and `truncated` count.
        amount: how much of the job's unit they are.
        table: makes the rows; called where they are written.
        read: share of the input that was read so far, 0 to 1.
        truncated: sequences that were longer than the adapter reads.
    """

    rows: int
    amount: int
    table: Callable[[], pa.Table]
    read: float
    truncated: int


class PartJob(NamedTuple):
    """What a job computes part by part, and where it goes.

    Attributes:
        output: keeps the parts.
        key: what the rows follow from; those of an earlier job with another one are computed again.
        env: this process's rank and device.
        unit: what is counted, a plural.
        amount: how much of the unit the first so many rows are.
        parts: the parts after the first so many rows, which are so much of the unit; every process asks for
            the same ones and gets the same.
        tells_rate: whether its end is printed, with the rate.
    """

    output: PredictionFile
    key: dict[str, Any]
    env: DistEnv
    unit: str
    amount: Callable[[int], int]
    parts: Callable[[int, int], Generator[Part, None, None]]
    tells_rate: bool = True


def prediction_job(
    predictor: Predictor,
    rows: ChunkedInput,
    table: PredictionTable[Any],
    output: PredictionFile,
    *,
    key: dict[str, Any],
    layer: int | None = None,
) -> PartJob:
    """The job of predicting rows.

    Args:
        predictor: computes the answers.
        rows: the rows.
        table: makes the rows of the output, of the chunks that `rows` gives.
        output: keeps them.
        key: what they follow from.
        layer: the layer whose pooled hidden states are kept beside the answers; None: none.
    """

    def parts(number: int, amount: int) -> Generator[Part, None, None]:
        chunks = rows.chunks(skip=number, most=SEQUENCES_PER_CHUNK, most_bases=predictor.chunk_bases)
        with closing(predictor.stream(chunks, layer=layer)) as stream:
            for predicted in stream:
                chunk = predicted.chunk
                number += chunk.size
                new, amount = table.amount(number) - amount, table.amount(number)
                yield Part(chunk.size, new, partial(table.rows, predicted), chunk.read, predicted.truncated)

    return PartJob(output, key, predictor.env, table.unit, table.amount, parts)


def run_job(job: PartJob, *, before_joining: Callable[[FinishedParts], None] = lambda _: None) -> bool:
    """Computes the parts that are not finished yet, and joins all to the output.

    Args:
        job: what is computed.
        before_joining: called on every process when all rows are there, with how many, those of an earlier
            job included, before they become the output.

    Returns:
        Whether the output is complete; False where a signal ended it.
    """
    env, output = job.env, job.output
    with ExitStack() as lock:
        with agreement.errors_raised_on_all(env):
            if env.is_main:
                lock.enter_context(output.lock())
        resumed = output.resume(job.key) if env.is_main else None
        finished = FinishedParts(*agreement.broadcast_json(resumed, env))
        before = job.amount(finished.rows)
        if finished.rows:
            logger.info("resuming after %s finished %s", f"{before:,}", job.unit)
        began = time.monotonic()
        done = _compute(job, finished, before)
        if done is None:
            return False
        before_joining(done)
        if env.is_main:
            output.finish()
            if job.tells_rate:
                _tell_rate(job, job.amount(done.rows), before, time.monotonic() - began)
    return True


def _compute(job: PartJob, finished: FinishedParts, amount: int) -> FinishedParts | None:
    """Writes every part after those that are finished; None where a signal ended it."""
    env, (rows, truncated) = job.env, finished
    unwritten = 0  # truncated sequences of parts without a row
    progress = ProgressBar(None, job.unit, enabled=env.is_main, done=amount, console=logs.console)
    stop = StopSignals()
    with stop.installed(), progress, closing(job.parts(rows, amount)) as parts:
        for part in parts:
            truncated, unwritten = truncated + part.truncated, unwritten + part.truncated
            if part.rows:
                if env.is_main:
                    job.output.write_part(rows, part.table(), truncated=unwritten)
                rows, amount, unwritten = rows + part.rows, amount + part.amount, 0
            progress.update(amount, fraction=part.read)
            if process_group.all_gather(torch.tensor([stop.requested], device=env.device)).any():
                text = "interrupted after %s %s; run the same command again to resume from there"
                logger.info(text, f"{amount:,}", job.unit)
                return None
    return FinishedParts(rows, truncated)


def _tell_rate(job: PartJob, total: int, before: int, seconds: float) -> None:
    rate = (total - before) / max(seconds, 1e-9)
    logs.results.print(
        f"{total:,} {job.unit}, {rate:,.0f} {job.unit}/s in {seconds:.1f} s: {job.output.path}",
        highlight=False,
        soft_wrap=True,
    )


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
