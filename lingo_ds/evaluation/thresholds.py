"""The probability above which an example is predicted as positive: pure numbers."""

import numpy as np

DEFAULT_THRESHOLD = 0.5


def choose_threshold(probabilities: np.ndarray, positive: np.ndarray, *, metric: str) -> float:
    """The threshold with which predictions score best; of equally good ones the nearest to 0.5.

    Args:
        probabilities: (n,).
        positive: (n,) whether the example is positive.
        metric: `accuracy`, `macro_f1` or `micro_f1` (F1 of the positives); MCC for any other name.

    Returns:
        0.5, or a number half way between two of the probabilities; 0.5 where all or no examples are positive.
    """
    positive = positive.astype(bool)
    if positive.all() or not positive.any():
        return DEFAULT_THRESHOLD
    ordered = np.sort(probabilities)
    candidates = np.append((ordered[1:] + ordered[:-1]) / 2, DEFAULT_THRESHOLD)
    tp, fp = (_above(probabilities[of], candidates) for of in (positive, ~positive))
    fn, tn = positive.sum() - tp, (~positive).sum() - fp
    quality = _QUALITIES.get(metric, mcc)(tp, fp, fn, tn)
    best = candidates[np.isclose(quality, quality.max(), rtol=1e-12, atol=1e-12)]
    return float(best[np.abs(best - DEFAULT_THRESHOLD).argmin()])


def _above(probabilities: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    """How many probabilities are above each candidate."""
    return len(probabilities) - np.searchsorted(np.sort(probabilities), candidates, side="right")


def _accuracy(tp: np.ndarray, fp: np.ndarray, fn: np.ndarray, tn: np.ndarray) -> np.ndarray:
    return (tp + tn) / (tp + fp + fn + tn)


def f1(tp: np.ndarray, fp: np.ndarray, fn: np.ndarray, tn: np.ndarray) -> np.ndarray:
    """F1 of the positives, by counts of any shape; 0 where it is undefined."""
    return 2 * tp / np.maximum(2 * tp + fp + fn, 1)


def _macro_f1(tp: np.ndarray, fp: np.ndarray, fn: np.ndarray, tn: np.ndarray) -> np.ndarray:
    return (f1(tp, fp, fn, tn) + f1(tn, fn, fp, tp)) / 2


def mcc(tp: np.ndarray, fp: np.ndarray, fn: np.ndarray, tn: np.ndarray) -> np.ndarray:
    """Matthews' correlation, by counts of any shape; 0 where it is undefined."""
    tp, fp, fn, tn = (count.astype(float) for count in (tp, fp, fn, tn))
    norm = np.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    return np.where(norm > 0, (tp * tn - fp * fn) / np.maximum(norm, 1), 0.0)


_QUALITIES = {"accuracy": _accuracy, "macro_f1": _macro_f1, "micro_f1": f1}
