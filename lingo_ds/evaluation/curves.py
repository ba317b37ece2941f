"""What is drawn of answers against labels: ROC, precision-recall, calibration, confusion. Pure numbers."""

from typing import NamedTuple

import numpy as np

BINS = 10
"""Bins of equal width of a calibration curve."""


class RocPoints(NamedTuple):
    """Rates among the negatives and among the positives that are above each threshold, from 0 to 1."""

    false_positive_rate: np.ndarray
    true_positive_rate: np.ndarray
    area: float


class PrecisionRecallPoints(NamedTuple):
    """Precision and recall above each threshold, by increasing recall; `area` is the average precision."""

    recall: np.ndarray
    precision: np.ndarray
    area: float
    share_of_positives: float


class CalibrationBin(NamedTuple):
    """The answers whose probability lies in one bin.

    Attributes:
        probability: their mean.
        frequency: the share of them that is true.
        low, high: 95 % interval of that share (Wilson 1927).
        size: their number.
    """

    probability: float
    frequency: float
    low: float
    high: float
    size: int


def roc_and_precision_recall(
    probabilities: np.ndarray, truth: np.ndarray
) -> tuple[RocPoints, PrecisionRecallPoints] | None:
    """The two curves of (n,) probabilities of what is true or not; None where all or nothing is true."""
    order = np.argsort(-probabilities, kind="stable")
    ordered, hits = probabilities[order], truth[order].astype(bool)
    positives, negatives = int(hits.sum()), int((~hits).sum())
    if not positives or not negatives:
        return None
    ends = np.flatnonzero(np.append(ordered[1:] != ordered[:-1], True))
    tp, above = hits.cumsum()[ends], ends + 1
    tpr, fpr = np.append(0, tp) / positives, np.append(0, above - tp) / negatives
    precision = tp / above
    average = float((np.diff(tp, prepend=0) * precision).sum() / positives)
    return (
        RocPoints(fpr, tpr, float(np.trapezoid(tpr, fpr))),
        PrecisionRecallPoints(tp / positives, precision, average, positives / len(hits)),
    )


def calibration(probabilities: np.ndarray, truth: np.ndarray) -> list[CalibrationBin]:
    """The bins, without empty ones, of (n,) probabilities of what is true or not."""
    places = np.minimum((probabilities * BINS).astype(int), BINS - 1)
    found = []
    for place in np.unique(places):
        inside = places == place
        count, share = int(inside.sum()), float(truth[inside].mean())
        low, high = _wilson(share, count)
        found.append(CalibrationBin(float(probabilities[inside].mean()), share, low, high, count))
    return found


def calibration_error(bins: list[CalibrationBin]) -> float:
    """The mean distance of probability and frequency over all answers (arXiv 1706.04599)."""
    total = sum(one.size for one in bins)
    return sum(abs(one.probability - one.frequency) * one.size for one in bins) / total


def confusion(decided: np.ndarray, labels: np.ndarray, *, classes: int) -> np.ndarray:
    """Counts of examples by class and decision, (classes, classes)."""
    return np.bincount(labels * classes + decided, minlength=classes * classes).reshape(classes, classes)


def _wilson(share: float, count: int) -> tuple[float, float]:
    z = 1.96
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z * np.sqrt(share * (1 - share) / count + z * z / (4 * count * count)) / (1 + z * z / count)
    return max(0.0, float(centre - half)), min(1.0, float(centre + half))
