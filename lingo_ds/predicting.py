"""`lingo-ds predict`: classes, labels or values of new sequences, from a file into another."""

import logging
import time
from contextlib import ExitStack, closing
from pathlib import Path

import torch

from lingo_ds import distributed, logs
from lingo_ds.config import PredictConfig
from lingo_ds.data.records import Records
from lingo_ds.distributed import DistEnv
from lingo_ds.evaluation.output import Done, Output, check_output
from lingo_ds.evaluation.predict import CHUNK, Predictor
from lingo_ds.evaluation.ready import make_predictor
from lingo_ds.export import adapter_fingerprint
from lingo_ds.job import job
from lingo_ds.monitor.progress import SequenceProgress
from lingo_ds.training.trainer import StopSignals

logger = logging.getLogger(__name__)


def predict(
    config: PredictConfig,
    env: DistEnv,
    *,
    adapter: Path,
    source: Path,
    target: Path,
    sequence_column: str = "sequence",
    id_column: str | None = None,
    overwrite: bool = False,
) -> bool:
    """Predicts every sequence of a file into another, or goes on where an unfinished job stopped.

    Returns:
        Whether it came to the end; False after Ctrl-C or SIGTERM.

    Raises:
        UserError: for mistakes in the arguments, the adapter or the file.
    """
    with job(config, env, output=target), ExitStack() as held:
        with distributed.together(env):
            records = Records(source, sequence_column=sequence_column, id_column=id_column)
            if env.is_main:
                check_output(target, source=source, overwrite=overwrite)
        predictor = make_predictor(adapter, config, env)
        output = Output(target, task=predictor.task, numbered=records.numbered)
        with distributed.together(env):
            if env.is_main:
                held.enter_context(output.held())
        meaning = {
            "adapter": adapter_fingerprint(adapter), "input": records.fingerprint(),
            "settings": config.model_dump(mode="json", exclude={"zero"}), "dtype": predictor.dtype,
        }  # fmt: skip
        done = Done(*distributed.share_json(output.take_up(meaning) if env.is_main else None, env))
        if done.sequences:
            logger.info("going on behind the %s sequences that are done", f"{done.sequences:,}")
        return _predict_on(predictor, records, output, done)


def _predict_on(predictor: Predictor, records: Records, output: Output, done: Done) -> bool:
    """Predicts what is not yet done; False where a signal ended it."""
    env, began, (number, cut) = predictor.env, time.monotonic(), done
    chunks = records.chunks(skip=number, most=CHUNK, most_bases=predictor.chunk_bases)
    progress = SequenceProgress(enabled=env.is_main, done=number, console=logs.console)
    stop = StopSignals()
    with stop.installed(), progress, closing(predictor.stream(chunks)) as stream:
        for chunk, answers, cut_here in stream:
            if env.is_main:
                output.add(chunk.begin, chunk.ids, answers, cut_here)
            number, cut = number + len(chunk.ids), cut + cut_here
            progress.update(number, read=chunk.read)
            if distributed.all_gather(torch.tensor([stop.requested], device=env.device)).any():
                logger.info("interrupted after %s sequences; the same command goes on from there",
                            f"{number:,}")  # fmt: skip
                return False
    if cut:
        logger.warning(
            "%s sequences were cut to the adapter's %d tokens", f"{cut:,}", predictor.task.max_length
        )
    if env.is_main:
        output.finish()
        seconds = time.monotonic() - began
        rate = (number - done.sequences) / max(seconds, 1e-9)
        logs.results.print(
            f"{number:,} sequences, {rate:,.0f} sequences/s in {seconds:.1f} s: {output.path}",
            highlight=False, soft_wrap=True,
        )  # fmt: skip
    return True
