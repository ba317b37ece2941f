"""A baseline of a run: fitted at every point of a small grid, chosen on dev, tested once."""

import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from lingo_ds.config.suite_config import BaselineName
from lingo_ds.data.task import Task
from lingo_ds.evaluation.answers import answers, mean_of_strands, with_best_thresholds
from lingo_ds.evaluation.evaluate import score
from lingo_ds.monitor.baselines import ModelResult
from lingo_ds.monitor.progress import ProgressBar
from lingo_ds.training.baselines.cnn import fit_cnn
from lingo_ds.training.baselines.fitting import Fitted, OneHotSplit, Point, Problem
from lingo_ds.training.baselines.linear import fit_linear
from lingo_ds.training.baselines.rows import MOST_POSITIONS, BaselineData
from lingo_ds.utils import logging as logs
from lingo_ds.utils.errors import Mistake, UserError

logger = logging.getLogger(__name__)

VERSION = 1
"""Part of `made_from`; increased with every change of what is computed."""

LINEAR_GRID = tuple(Point(l2) for l2 in (1, 16, 256, 4096))
CNN_GRID = (Point(0.0, 1e-3), Point(0.0, 3e-3))

MOST_EPOCHS, LEAST_EPOCHS = 40, 2
MOST_READ = 20_000_000
"""Positions that the CNN reads in training, over all epochs and rates: about a minute of one core."""

MOST_PLACES, LEAST_POSITIONS = 16_384, 16
"""Outputs times positions of a linear model at most, and its positions at least."""


class _Choice(NamedTuple):
    point: Point
    fitted: Fitted


def made_from(name: BaselineName, data: BaselineData) -> str:
    """32 hex digits that change with everything that a baseline's numbers follow from, but for libraries."""
    config, task = data.config, data.task
    facts: list[object] = [VERSION, name, data.examples.folder.name, config.seed, config.metric]
    facts += [config.data.reverse_complement, config.task.threshold, task.kind, task.thresholds, task.names]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]


def compute_baseline(name: BaselineName, data: BaselineData) -> ModelResult:
    """Fits and tests one baseline on the CPU, seeded by the run's seed.

    Raises:
        UserError: where it diverges at every point of its grid.
    """
    begin, config = time.perf_counter(), data.config
    bin = data.bin(_positions(name, data.task))
    if name == "cnn":
        positions = -(-sum(data.widths) // bin) * (1 + config.data.augments)
        data = data.with_train_rows(max(1, MOST_READ // (LEAST_EPOCHS * len(CNN_GRID) * positions)))
    problem = Problem(data.task, config.metric, data.read_train(bin=bin), data.read("dev", bin=bin))
    logger.info("baseline %s: %s", name, _in_words(data, problem, bin))
    point, fitted = _chosen(name, problem, seed=config.seed)
    task, metrics = data.task, {}
    for split, rows in (("dev", problem.dev), ("test", data.read("test", bin=bin))):
        logits = _both_strands(fitted, rows, task)
        if split == "dev" and config.task.threshold == "dev":
            task = with_best_thresholds(task, answers(logits, task), rows.labels, metric=config.metric)
        metrics[split] = score(logits, rows.labels, task).overall
    chosen = {"l2": point.l2} if point.rate is None else {"learning_rate": point.rate}
    return ModelResult(
        title=_title(name, data.task),
        parameters=fitted.parameters,
        seconds=round(time.perf_counter() - begin, 1),
        metrics=metrics,
        rows={split: len(rows) for split, rows in data.rows.items()},
        bases_per_position=bin,
        chosen=chosen,
        made_from=made_from(name, data),
    )


def _title(name: BaselineName, task: Task) -> str:
    linear = "ridge regression" if task.kind == "regression" else "logistic regression"
    return linear if name == "logistic" else "CNN"


def _positions(name: BaselineName, task: Task) -> int:
    """Most positions: a linear model of many outputs reads coarser ones, or it would take hours."""
    if name == "cnn":
        return MOST_POSITIONS
    return min(MOST_POSITIONS, max(LEAST_POSITIONS, MOST_PLACES // task.classes))


def _in_words(data: BaselineData, problem: Problem, bin: int) -> str:
    """How much of the data it reads."""
    counts = [(split, len(rows), data.examples.rows[split]) for split, rows in data.rows.items()]
    words = ", ".join(f"{split} {used:,}" + f" of {all:,}" * (used < all) for split, used, all in counts)
    words += " rows"
    if any(used < all for _, used, all in counts):
        words += f", drawn with seed {data.config.seed}"
    positions = problem.train.bases.shape[-1]
    each = "one base each" if bin == 1 else f"each the mean of {bin:,} bases"
    return f"{words}, {positions:,} positions, {each}"


def _chosen(name: BaselineName, problem: Problem, *, seed: int) -> _Choice:
    """The fit that is best on dev; the first of equally good ones."""
    best: _Choice | None = None
    best_quality = float("-inf")
    for point, fitted in (_linear_fits if name == "logistic" else _cnn_fits)(problem, seed):
        logits = fitted.logits(problem.dev.bases)
        if not np.isfinite(logits).all():
            continue
        quality = problem.quality(logits)
        if best is None or quality > best_quality:
            best, best_quality = _Choice(point, fitted), quality
    if best is None:
        rule, fix = "diverges on this data", "leave it out, and look for values far from all others"
        raise UserError(Mistake("baselines", name, rule, fix))
    return best


def _linear_fits(problem: Problem, seed: int) -> Iterator[_Choice]:
    with _progress(len(LINEAR_GRID), "fit") as progress:
        for done, point in enumerate(LINEAR_GRID, 1):
            yield _Choice(point, fit_linear(problem, point))
            progress.update(done)


def _cnn_fits(problem: Problem, seed: int) -> Iterator[_Choice]:
    rows, _, positions = problem.train.bases.shape
    affordable = MOST_READ // (len(CNN_GRID) * rows * positions)
    epochs = min(MOST_EPOCHS, max(LEAST_EPOCHS, affordable))
    with _progress(len(CNN_GRID) * epochs, "epoch") as progress:
        count = _Counter(progress.update)
        for point in CNN_GRID:
            yield _Choice(point, fit_cnn(problem, point, seed, epochs=epochs, epoch_ended=count))


def _progress(total: int, unit: str) -> ProgressBar:
    return ProgressBar(total, unit, enabled=True, console=logs.console)


class _Counter:
    """Counts its calls, and shows how many there were."""

    def __init__(self, show: Callable[[int], None]):
        self._done, self._show = 0, show

    def __call__(self) -> None:
        self._done += 1
        self._show(self._done)


def _both_strands(fitted: Fitted, split: OneHotSplit, task: Task) -> np.ndarray:
    """(rows, outputs) float32, whose answers are the means over both strands where these are read."""
    logits = fitted.logits(split.bases).astype(np.float32)
    if split.reverse is None:
        return logits
    return mean_of_strands(np.concatenate([logits, fitted.logits(split.reverse).astype(np.float32)]), task)
