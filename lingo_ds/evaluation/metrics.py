"""Metrics of answers against labels: pure numbers, no model and no process group.

scipy and scikit-learn are imported where they are called: that takes a second, which every start would wait.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from lingo_ds.evaluation.thresholds import f1, mcc

Metrics = dict[str, float | None]
"""Numbers by the name of the metric; None where undefined."""


class Scores(NamedTuple):
    """Metrics of a task with several labels or values: overall, and for each of them by its name."""

    overall: Metrics
    by_output: dict[str, Metrics]


def classification_metrics(
    logits: np.ndarray, labels: np.ndarray, *, threshold: float | None = None
) -> Metrics:
    """Scores logits against labels as GUE does (arXiv 2306.15006), plus ranking and calibration.

    Macro averages run over the classes that occur among labels or predictions, and a class that is never
    predicted has precision 0, as in GUE's own evaluation. MCC of constant predictions or labels is 0.

    Args:
        logits: (n, classes), any real dtype; class 1 of two is the positive one.
        labels: (n,) integers in [0, classes).
        threshold: the probability above which class 1 of two is predicted; None: the most probable class is.

    Returns:
        `accuracy`, `macro_f1`, `mcc`, `macro_precision`, `macro_recall`; `auroc` and `auprc` (average
        precision), for more than two classes the mean over one-vs-rest, None where a class is absent from the
        labels and they are undefined; `brier`, (p1 - y)^2 for two classes, else the squared distance between
        probabilities and one-hot label, both averaged over examples.

    Raises:
        ValueError: logits or labels have the wrong shape, a label is no class, or a logit is not finite.
    """
    from sklearn.metrics import accuracy_score, matthews_corrcoef, precision_recall_fscore_support

    logits, labels = _checked(logits, labels)
    probabilities = _softmax(logits)
    predictions = logits.argmax(axis=1) if threshold is None else probabilities[:, 1] > threshold
    precision, recall, f1, _ = precision_recall_fscore_support(
        labels, predictions, average="macro", zero_division=0
    )
    several_classes = np.unique(labels).size > 1
    return {
        "accuracy": float(accuracy_score(labels, predictions)),
        "macro_f1": float(f1),
        "mcc": float(matthews_corrcoef(labels, predictions)) if several_classes else 0.0,
        "macro_precision": float(precision),
        "macro_recall": float(recall),
        **_ranking(probabilities, labels),
        "brier": _brier(probabilities, labels),
    }


def multilabel_metrics(
    probabilities: np.ndarray,
    labels: np.ndarray,
    *,
    thresholds: Sequence[float] | float,
    names: Sequence[str],
) -> Scores:
    """Scores the probabilities of labels, any number of which may be true.

    Args:
        probabilities: (n, labels).
        labels: (n, labels) 0 or 1, NaN where unknown: such entries count nowhere.
        thresholds: the probabilities above which a label is predicted, one for each or one for all.
        names: the names of the labels.

    Returns:
        Overall: `macro_auroc` and `macro_auprc` (average precision), means over the labels that occur with
        both values, None where there is none; `labels_left_out`, the number of the others; `micro_f1` and
        `micro_mcc` of all known entries together, 0 where they are undefined. By label: `auroc` and
        `auprc`, None where left out, and `positives`.
    """
    by_label = {name: _ranked(p, y) for name, p, y in zip(names, probabilities.T, labels.T, strict=True)}
    known = ~np.isnan(labels)
    truth, predicted = labels[known] == 1, (probabilities > np.asarray(thresholds))[known]
    counts = [(a & b).sum() for a in (predicted, ~predicted) for b in (truth, ~truth)]  # tp, fp, fn, tn
    overall = {
        "macro_auroc": _mean(one["auroc"] for one in by_label.values()),
        "macro_auprc": _mean(one["auprc"] for one in by_label.values()),
        "micro_f1": float(f1(*counts)),
        "micro_mcc": float(mcc(*counts)),
        "labels_left_out": float(sum(one["auroc"] is None for one in by_label.values())),
    }
    return Scores(overall, by_label)


def _ranked(probabilities: np.ndarray, labels: np.ndarray) -> Metrics:
    """Areas under the curves of one label, over the examples (n,) whose label is known.

    They are scikit-learn's, computed in a sixth of its time: a task may have a thousand labels, and all
    processes wait.
    """
    known = ~np.isnan(labels)
    order = np.argsort(-probabilities[known], kind="stable")
    p, truth = probabilities[known][order], labels[known][order] == 1
    positives, negatives = int(truth.sum()), int((~truth).sum())
    if not positives or not negatives:
        return {"auroc": None, "auprc": None, "positives": float(positives)}
    above = (
        np.flatnonzero(np.append(p[1:] != p[:-1], True)) + 1
    )  # number of examples with each distinct probability or a higher one
    tp = truth.cumsum()[above - 1]
    new_tp, new_fp = np.diff(tp, prepend=0), np.diff(above - tp, prepend=0)
    return {
        "auroc": float((new_fp * (tp - new_tp / 2)).sum() / (positives * negatives)),
        "auprc": float((new_tp * tp / above).sum() / positives),
        "positives": float(positives),
    }


def regression_metrics(predicted: np.ndarray, values: np.ndarray, *, names: Sequence[str]) -> Scores:
    """Scores predicted values.

    Args:
        predicted: (n, values), in the data's units.
        values: (n, values), NaN where unknown: such entries count nowhere.
        names: the names of the values.

    Returns:
        `pearson`, `spearman`, `r2` (1 - squared error over variance), `rmse` and `mae`, for each value, and
        overall the means over the values for which they are defined: correlations need two different
        numbers on both sides, `r2` two different true ones, errors one known value.
    """
    by_value = {name: _errors(p, y) for name, p, y in zip(names, predicted.T, values.T, strict=True)}
    metrics = next(iter(by_value.values()))
    return Scores({key: _mean(one[key] for one in by_value.values()) for key in metrics}, by_value)


def _errors(predicted: np.ndarray, values: np.ndarray) -> Metrics:
    from scipy.stats import rankdata

    known = ~np.isnan(values)
    x, y = predicted[known].astype(np.float64), values[known].astype(np.float64)
    errors, deviations = np.square(x - y), np.square(y - y.mean()) if len(y) else y
    return {
        "pearson": _correlation(x, y),
        "spearman": _correlation(rankdata(x), rankdata(y)),
        "r2": float(1 - errors.sum() / deviations.sum()) if deviations.any() else None,
        "rmse": float(np.sqrt(errors.mean())) if len(y) else None,
        "mae": float(np.abs(x - y).mean()) if len(y) else None,
    }


def _correlation(x: np.ndarray, y: np.ndarray) -> float | None:
    """Pearson's correlation; None where either side is constant."""
    if min(np.unique(x).size, np.unique(y).size) < 2:
        return None
    x, y = x - x.mean(), y - y.mean()
    return float(np.clip((x / np.linalg.norm(x)) @ (y / np.linalg.norm(y)), -1, 1))


def _mean(values: Iterable[float | None]) -> float | None:
    """The mean of the defined values; None where there is none."""
    defined = [value for value in values if value is not None]
    return float(np.mean(defined)) if defined else None


def _checked(logits: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns logits (n, classes) as float64 and labels (n,) as int64; raises ValueError for wrong ones."""
    logits, labels = np.asarray(logits), np.asarray(labels)
    if logits.ndim != 2 or logits.shape[0] < 1 or logits.shape[1] < 2:
        raise ValueError(f"logits have shape {logits.shape}: (n >= 1, classes >= 2) is needed")
    if labels.shape != logits.shape[:1]:
        raise ValueError(
            f"labels have shape {labels.shape}: ({len(logits)},), one per row of logits, is needed"
        )
    if not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"labels have dtype {labels.dtype}: integers are needed")
    outside = (labels < 0) | (labels >= logits.shape[1])
    if outside.any():
        row = int(outside.argmax())
        raise ValueError(f"label {labels[row]} in row {row} is not one of 0 to {logits.shape[1] - 1}")
    bad_rows = ~np.isfinite(logits).all(axis=1)
    if bad_rows.any():
        raise ValueError(
            f"logits of {bad_rows.sum()} of {len(logits)} examples are not finite, first in row "
            f"{bad_rows.argmax()}: no metric is defined on them; training has probably diverged"
        )
    return logits.astype(np.float64), labels.astype(np.int64)


def _softmax(logits: np.ndarray) -> np.ndarray:
    """Class probabilities (n, classes) in float64."""
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def _ranking(probabilities: np.ndarray, labels: np.ndarray) -> Metrics:
    """Areas under the ROC and the precision-recall curve; the mean over one-vs-rest of several classes."""
    from sklearn.metrics import average_precision_score, roc_auc_score

    classes = probabilities.shape[1]
    if np.unique(labels).size < classes:
        return {"auroc": None, "auprc": None}
    one_vs_rest = [(labels == c, probabilities[:, c]) for c in ([1] if classes == 2 else range(classes))]
    return {
        "auroc": float(np.mean([roc_auc_score(positive, p) for positive, p in one_vs_rest])),
        "auprc": float(np.mean([average_precision_score(positive, p) for positive, p in one_vs_rest])),
    }


def _brier(probabilities: np.ndarray, labels: np.ndarray) -> float:
    if probabilities.shape[1] == 2:
        return float(np.mean((probabilities[:, 1] - labels) ** 2))
    one_hot = np.eye(probabilities.shape[1])[labels]
    return float(np.mean(np.sum((probabilities - one_hot) ** 2, axis=1)))
