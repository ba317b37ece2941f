"""95 % intervals of metrics by resampling the examples (Efron 1979): pure numbers, no model.

A resample is a number of times that each example counts, so that all resamples are computed at once: sorted
once, the areas under curves are cumulative sums, and everything else is a matrix product.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np

from lingo_ds.evaluation.thresholds import DEFAULT_THRESHOLD, f1, mcc

RESAMPLES, MIN_RESAMPLES = 1000, 100
"""Resamples of a split, and the least that tell an interval."""

MAX_WORK = 5e7
"""Most answers of all resamples together, some three seconds of work: larger splits get fewer resamples."""

WORK_AT_ONCE = 2_000_000
"""Entries of a table of resamples and examples that are in memory at a time."""

MIN_DEFINED = 0.95
"""Share of the resamples in which a metric must be defined to have an interval."""

Statistics = Callable[[np.ndarray], dict[str, np.ndarray]]
"""Metrics by name, (resamples,) each, of the times that each example counts, (resamples, examples)."""


class Interval(NamedTuple):
    """The 2.5 % and the 97.5 % quantile of a metric over resamples."""

    low: float
    high: float


class Intervals(NamedTuple):
    """The intervals of a split's metrics.

    Attributes:
        by_metric: the interval of each metric that is defined in nearly all resamples.
        resamples: number of resamples; 0: the split is too large for them.
    """

    by_metric: dict[str, Interval]
    resamples: int


def bootstrap(
    answers: np.ndarray,
    labels: np.ndarray,
    *,
    kind: str,
    thresholds: Sequence[float] | None,
    seed: int = 0,
) -> Intervals:
    """Intervals of the metrics that `evaluation.metrics` has for this kind of task, by the same names.

    Args:
        answers: (n, outputs) probabilities, or values.
        labels: (n,) classes, or (n, outputs) labels or values, NaN where unknown.
        kind: of the task, see `Task.kind`.
        thresholds: of the task, see `Task.thresholds`.
        seed: of the draw of examples.
    """
    examples, outputs = answers.shape
    resamples = int(min(RESAMPLES, MAX_WORK // max(1, examples * outputs)))
    if resamples < MIN_RESAMPLES or examples < 2:
        return Intervals({}, 0)
    statistics = _statistics(answers, labels, kind, thresholds)
    draw, found = np.random.default_rng(seed), []
    at_once = max(1, WORK_AT_ONCE // examples)
    for begin in range(0, resamples, at_once):
        count = min(at_once, resamples - begin)
        rows = draw.integers(examples, size=(count, examples), dtype=np.int32)
        found.append(statistics(np.stack([np.bincount(row, minlength=examples) for row in rows])))
    with np.errstate(invalid="ignore"):
        columns = {name: np.concatenate([part[name] for part in found]) for name in found[0]}
        return Intervals(_quantiles(columns), resamples)


def _quantiles(columns: dict[str, np.ndarray]) -> dict[str, Interval]:
    intervals = {}
    for name, values in columns.items():
        defined = values[np.isfinite(values)]
        if len(defined) >= MIN_DEFINED * len(values):
            low, high = np.quantile(defined, [0.025, 0.975])
            intervals[name] = Interval(float(low), float(high))
    return intervals


def _statistics(
    answers: np.ndarray, labels: np.ndarray, kind: str, thresholds: Sequence[float] | None
) -> Statistics:
    """The metrics of a kind of task as a function of resamples; what does not depend on them is done once."""
    if kind == "regression":
        return partial(_of_values, outputs=[_Value(*pair) for pair in zip(answers.T, labels.T, strict=True)])
    if kind == "multilabel":
        curves = [_Curve(*pair) for pair in zip(answers.T, labels.T, strict=True)]
        positive = answers > np.asarray(thresholds or DEFAULT_THRESHOLD)
        known, truth = ~np.isnan(labels), labels == 1
        cells = [(known & a & b).sum(1) for a in (positive, ~positive) for b in (truth, ~truth)]
        return partial(_of_labels, curves=curves, cells=np.stack(cells, axis=1).astype(np.float64))
    classes = answers.shape[1]
    decided = answers[:, 1] > thresholds[0] if thresholds else answers.argmax(1)
    one_hot = np.eye(classes)[labels]
    curves = [
        _Curve(answers[:, c], (labels == c).astype(float)) for c in ([1] if classes == 2 else range(classes))
    ]
    errors = np.square(answers - one_hot).sum(1) / (2 if classes == 2 else 1)
    cells = np.eye(classes * classes)[labels * classes + decided.astype(np.int64)]
    return partial(_of_classes, curves=curves, cells=cells, errors=errors, classes=classes)


def _of_classes(
    times: np.ndarray, *, curves: "list[_Curve]", cells: np.ndarray, errors: np.ndarray, classes: int
) -> dict[str, np.ndarray]:
    """Metrics of classes; `cells` is (n, classes^2), the place of each example in the confusion matrix."""
    weights = times.astype(np.float64)
    confusion = (weights @ cells).reshape(-1, classes, classes)  # true class, decided class
    right = np.diagonal(confusion, axis1=1, axis2=2)
    true, decided, total = confusion.sum(2), confusion.sum(1), weights.sum(1)
    occurs = (true + decided) > 0
    precision = np.where(decided > 0, right / np.maximum(decided, 1), 0.0)
    recall = np.where(true > 0, right / np.maximum(true, 1), 0.0)
    of_class_f1 = 2 * right / np.maximum(true + decided, 1)
    covariance = right.sum(1) * total - (true * decided).sum(1)
    norm = np.sqrt((total**2 - np.square(true).sum(1)) * (total**2 - np.square(decided).sum(1)))
    areas = [curve.areas(times) for curve in curves]
    return {
        "accuracy": right.sum(1) / total,
        "macro_f1": (of_class_f1 * occurs).sum(1) / occurs.sum(1),
        "mcc": np.where(norm > 0, covariance / np.where(norm > 0, norm, 1), 0.0),
        "macro_precision": (precision * occurs).sum(1) / occurs.sum(1),
        "macro_recall": (recall * occurs).sum(1) / occurs.sum(1),
        "auroc": np.mean([area[0] for area in areas], axis=0),
        "auprc": np.mean([area[1] for area in areas], axis=0),
        "brier": weights @ errors / total,
    }


def _of_labels(times: np.ndarray, *, curves: "list[_Curve]", cells: np.ndarray) -> dict[str, np.ndarray]:
    """Metrics of labels; `cells` is (n, 4), the labels of each example that are tp, fp, fn and tn."""
    counts = (times.astype(np.float64) @ cells).T
    areas = np.array([curve.areas(times) for curve in curves])  # labels, 2, resamples
    defined = np.isfinite(areas)
    means = np.where(defined, areas, 0).sum(0) / np.where(defined.any(0), defined.sum(0), np.nan)
    return {
        "macro_auroc": means[0],
        "macro_auprc": means[1],
        "micro_f1": f1(*counts),
        "micro_mcc": mcc(*counts),
    }


def _of_values(times: np.ndarray, *, outputs: "list[_Value]") -> dict[str, np.ndarray]:
    by_value = [output.statistics(times) for output in outputs]
    return {name: _mean_of_defined([one[name] for one in by_value]) for name in by_value[0]}


def _mean_of_defined(values: list[np.ndarray]) -> np.ndarray:
    table = np.stack(values)
    defined = np.isfinite(table)
    count = defined.sum(0)
    return np.where(count > 0, np.where(defined, table, 0).sum(0) / np.maximum(count, 1), np.nan)


class _Curve:
    """One label's examples in the order of their probabilities."""

    def __init__(self, probabilities: np.ndarray, labels: np.ndarray):
        """Takes both as (n,); a label is 1, 0, or NaN where it is unknown."""
        known = np.flatnonzero(~np.isnan(labels))
        self._order = known[np.argsort(-probabilities[known], kind="stable")]
        ordered = probabilities[self._order]
        self._truth = labels[self._order] == 1
        self._ends = np.flatnonzero(np.append(ordered[1:] != ordered[:-1], True)[: len(ordered)])

    def areas(self, times: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Area under the ROC curve and average precision, (resamples,); NaN where undefined."""
        if not len(self._order):
            return np.full(len(times), np.nan), np.full(len(times), np.nan)
        counted = times[:, self._order].astype(np.float64)
        above = counted.cumsum(1)[:, self._ends]
        tp = np.where(self._truth, counted, 0.0).cumsum(1)[:, self._ends]
        positives, negatives = tp[:, -1], above[:, -1] - tp[:, -1]
        new_tp, new_above = np.diff(tp, prepend=0.0, axis=1), np.diff(above, prepend=0.0, axis=1)
        with np.errstate(divide="ignore", invalid="ignore"):
            auroc = ((new_above - new_tp) * (tp - new_tp / 2)).sum(1) / (positives * negatives)
            auprc = (new_tp * tp / np.maximum(above, 1)).sum(1) / positives
        return auroc, np.where(negatives > 0, auprc, np.nan)


class _Value:
    """One value's examples, with the ranks that they have in a resample."""

    def __init__(self, predicted: np.ndarray, values: np.ndarray):
        """Takes both as (n,); a value is NaN where it is unknown."""
        self._known = np.flatnonzero(~np.isnan(values))
        self._x, self._y = (of[self._known].astype(np.float64) for of in (predicted, values))

    def statistics(self, times: np.ndarray) -> dict[str, np.ndarray]:
        """The metrics of `regression_metrics`, (resamples,); NaN where undefined."""
        weights = times[:, self._known].astype(np.float64)
        total, errors = weights.sum(1), self._x - self._y
        centred = self._y - self._y.mean() if len(self._y) else self._y
        with np.errstate(divide="ignore", invalid="ignore"):
            mean_square = weights @ np.square(errors) / total
            variance = weights @ np.square(centred) / total - np.square(weights @ centred / total)
            return {
                "pearson": _correlations(weights, self._x, self._y),
                "spearman": _correlations(weights, _ranks(weights, self._x), _ranks(weights, self._y)),
                "r2": np.where(variance > 0, 1 - mean_square / variance, np.nan),
                "rmse": np.sqrt(mean_square),
                "mae": weights @ np.abs(errors) / total,
            }


def _ranks(weights: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The mean rank of each example in each resample, (resamples, n): equal values share theirs."""
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    new = np.append(True, ordered[1:] != ordered[:-1])[: len(ordered)]
    ends = np.flatnonzero(np.append(new[1:], True)[: len(ordered)])
    up_to = weights[:, order].cumsum(1)[:, ends]
    before = np.concatenate([np.zeros((len(weights), 1)), up_to[:, :-1]], axis=1)
    ranks = np.empty_like(weights)
    ranks[:, order] = ((before + up_to + 1) / 2)[:, new.cumsum() - 1]
    return ranks


def _correlations(weights: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Pearson's correlation in each resample, (resamples,); `x` and `y` are (n,) or (resamples, n)."""
    total = weights.sum(1)

    def centred(values: np.ndarray) -> np.ndarray:
        return values - ((weights * values).sum(1) / total)[:, None]

    x, y = centred(x), centred(y)
    xx, yy, xy = ((weights * one * other).sum(1) for one, other in ((x, x), (y, y), (x, y)))
    norm = np.sqrt(xx * yy)
    return np.where(norm > 1e-12 * max(1.0, float(norm.max(initial=0))), xy / norm, np.nan)
