"""A run's answers on a split in its folder, with those that are most wrong."""

import logging

from lingo_ds.data.examples import read_examples
from lingo_ds.evaluation.answers import answers
from lingo_ds.evaluation.evaluate import Evaluation
from lingo_ds.evaluation.kept_answers import write_predictions
from lingo_ds.evaluation.most_wrong import MOST_WRONG, most_wrong, with_sequences, write_most_wrong
from lingo_ds.training.setup import RunSetup

logger = logging.getLogger(__name__)


def save_answers(setup: RunSetup, evaluation: Evaluation, *, split: str, step: int | None = None) -> None:
    """Writes `predictions/<split>.parquet`, for test also `predictions/most_wrong.json`; on global rank 0.

    Args:
        setup: the run.
        evaluation: the answers.
        split: their split.
        step: step whose adapter answered; None: that of the run's report.
    """
    folder, labels = setup.config.run_dir, setup.data.splits[split].labels
    write_predictions(folder / "predictions" / f"{split}.parquet", evaluation, labels, step=step)
    if split != "test":
        return
    wrong = most_wrong(answers(evaluation.logits, evaluation.task), labels, evaluation.task)
    try:
        if setup.data.examples:
            wrong = with_sequences(wrong, read_examples(setup.data.examples), split=split)
    except OSError as error:  # somebody has emptied the cache; the answers are worth keeping anyway
        logger.warning("%s: the sequences cannot be read any more (%s)", MOST_WRONG, error)
    write_most_wrong(folder / MOST_WRONG, wrong)
