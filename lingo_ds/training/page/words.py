"""The words of a run's page: names of metrics and what they mean, the task and the result in sentences."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from lingo_ds.evaluation.bootstrap import Interval
from lingo_ds.utils.versions import versions


class MetricWords(NamedTuple):
    """A metric in words.

    Attributes:
        name: as the field writes it.
        meaning: what it tells.
        lower_is_better: whether a small number is a good one.
    """

    name: str
    meaning: str
    lower_is_better: bool = False


METRIC_WORDS = {
    "mcc": MetricWords(
        "MCC",
        "Matthews' correlation between truth and decision: 1 is perfect, 0 is what guessing reaches, "
        "whatever the share of the classes.",
    ),
    "accuracy": MetricWords(
        "accuracy",
        "The share of sequences that are decided correctly. Compare it with the share of the most frequent "
        "class.",
    ),
    "auroc": MetricWords(
        "AUROC",
        "How often a random positive gets a higher probability than a random negative: 1 is perfect, 0.5 is "
        "guessing. Of more than two classes the mean of each against the rest.",
    ),
    "auprc": MetricWords(
        "AUPRC",
        "Average precision, the area under the precision-recall curve: 1 is perfect, the share of positives "
        "is guessing.",
    ),
    "macro_f1": MetricWords(
        "macro F1", "The harmonic mean of precision and recall, averaged over the classes with equal weight."
    ),
    "macro_precision": MetricWords(
        "macro precision",
        "Of what is decided to be of a class, the share that is; averaged over the classes.",
    ),
    "macro_recall": MetricWords(
        "macro recall", "Of what is of a class, the share that is found; averaged over the classes."
    ),
    "brier": MetricWords(
        "Brier score",
        "The mean squared distance between probability and truth: 0 is perfect.",
        lower_is_better=True,
    ),
    "macro_auroc": MetricWords(
        "macro AUROC",
        "How often a random positive gets a higher probability than a random negative, averaged over the "
        "labels: 1 is perfect, 0.5 is guessing.",
    ),
    "macro_auprc": MetricWords(
        "macro AUPRC",
        "Average precision, averaged over the labels: 1 is perfect, the share of positives is guessing.",
    ),
    "micro_f1": MetricWords(
        "micro F1", "The harmonic mean of precision and recall over the answers of all labels together."
    ),
    "micro_mcc": MetricWords(
        "micro MCC",
        "Matthews' correlation over the answers of all labels together: 1 is perfect, 0 is guessing.",
    ),
    "pearson": MetricWords(
        "Pearson r",
        "Linear correlation of predicted and measured values: 1 is perfect, 0 is none.",
    ),
    "spearman": MetricWords(
        "Spearman rho", "Correlation of the ranks of predicted and measured values: 1 is the same order."
    ),
    "r2": MetricWords(
        "R2",
        "The share of the variance that is explained: 1 is perfect, 0 is always answering the mean, below 0 "
        "is worse than that.",
    ),
    "rmse": MetricWords(
        "RMSE",
        "Square root of the mean squared error, in the units of the data.",
        lower_is_better=True,
    ),
    "mae": MetricWords("MAE", "Mean absolute error, in the units of the data.", lower_is_better=True),
    "positives": MetricWords("positives", "Number of sequences of which the label is true."),
    "labels_left_out": MetricWords(
        "labels left out",
        "Labels with only one of the two answers in this split, for which no area is defined.",
        lower_is_better=True,
    ),
}
"""Every metric, in the order in which they are shown."""

LEVELS = {
    "mcc": ((0.9, "nearly perfect"), (0.7, "good"), (0.4, "moderate"), (0.1, "weak")),
    "micro_mcc": ((0.9, "nearly perfect"), (0.7, "good"), (0.4, "moderate"), (0.1, "weak")),
    "auroc": ((0.97, "nearly perfect"), (0.9, "good"), (0.75, "moderate"), (0.55, "weak")),
    "macro_auroc": ((0.97, "nearly perfect"), (0.9, "good"), (0.75, "moderate"), (0.55, "weak")),
    "pearson": ((0.95, "nearly perfect"), (0.8, "good"), (0.5, "moderate"), (0.15, "weak")),
}
"""Least values of a metric that are called so."""

OUTCOMES = {
    "finished": "The run is finished.",
    "early stopping": "The run stopped early: dev had not become better for as long as allowed.",
    "interrupted": "The run was interrupted; the same command resumes it.",
    "paused": "The run was paused; it goes on if its suite chooses it.",
}


def metric_name(metric: str) -> str:
    """A metric's name as the field writes it."""
    return METRIC_WORDS[metric].name if metric in METRIC_WORDS else metric.replace("_", " ")


def in_order(metrics: Mapping[str, object]) -> list[str]:
    """Names of metrics in the order in which they are shown."""
    known = [name for name in METRIC_WORDS if name in metrics]
    return known + [name for name in metrics if name not in METRIC_WORDS]


def number(value: float | None, metric: str = "") -> str:
    """A metric's value; of unbounded ones four digits, of counts all."""
    if value is None:
        return "undefined"
    if metric in ("positives", "labels_left_out"):
        return f"{value:,.0f}"
    return f"{value:.4g}" if metric in ("rmse", "mae") else f"{value:.3f}"


def interval_text(interval: Interval | None, metric: str = "") -> str:
    """An interval as it stands behind its number; empty without one."""
    if interval is None:
        return ""
    return f"{number(interval.low, metric)} to {number(interval.high, metric)}"


def level(metric: str, value: float | None) -> str:
    """What one may call a value in a word; empty where there is no custom."""
    if value is None or metric not in LEVELS:
        return ""
    return next((word for least, word in LEVELS[metric] if value >= least), "no better than guessing")


def duration(seconds: float) -> str:
    """Seconds as one would say them."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def joined(words: list[str], *, most: int = 6) -> str:
    """Words as a list in a sentence, `most` at most."""
    shown = words if len(words) <= most else [*words[: most - 1], f"{len(words) - most + 1} more"]
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"


def written_from(folder: Path) -> str:
    """When, by what and from what a page is written."""
    version, when = versions()["lingo_ds"], time.strftime("%Y-%m-%d %H:%M %Z")
    return f"Written by lingo_ds {version} on {when} from the files in {folder.resolve()}."


def capital(text: str) -> str:
    """A text that begins a sentence."""
    return text[:1].upper() + text[1:]
