"""What a classifier's logits are worth: pure numbers, no model and no process group."""

import numpy as np
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    matthews_corrcoef,
    precision_recall_fscore_support,
    roc_auc_score,
)


def classification_metrics(logits: np.ndarray, labels: np.ndarray) -> dict[str, float | None]:
    """Scores logits against labels as GUE does (arXiv 2306.15006), plus ranking and calibration.

    Macro averages run over the classes that occur among labels or predictions, and a class that is never
    predicted has precision 0, as in GUE's own evaluation. MCC of constant predictions or labels is 0.

    Args:
        logits: (n, classes), any real dtype; class 1 of two is the positive one.
        labels: (n,) integers in [0, classes).

    Returns:
        `accuracy`, `macro_f1`, `mcc`, `macro_precision`, `macro_recall`; `auroc` and `auprc` (average
        precision), for more than two classes the mean over one-vs-rest, None where a class is absent from the
        labels and they are undefined; `brier`, (p1 - y)^2 for two classes, else the squared distance between
        probabilities and one-hot label, both averaged over examples.

    Raises:
        ValueError: logits or labels have the wrong shape, a label is no class, or a logit is not finite.
    """
    logits, labels = _checked(logits, labels)
    predictions = logits.argmax(axis=1)
    precision, recall, f1, _ = precision_recall_fscore_support(
        labels, predictions, average="macro", zero_division=0
    )
    probabilities = _softmax(logits)
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


def _checked(logits: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Logits (n, classes) as float64 and labels (n,) as int64, or a ValueError that says what is wrong."""
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


def _ranking(probabilities: np.ndarray, labels: np.ndarray) -> dict[str, float | None]:
    """Areas under the ROC and the precision-recall curve; the mean over one-vs-rest of several classes."""
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
