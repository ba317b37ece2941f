"""The pictures of a run's answers for its page: ROC, precision-recall, calibration, confusion, scatter."""

from collections.abc import Iterator

import numpy as np

from lingo_ds.data.task import Task
from lingo_ds.evaluation.curves import (
    CalibrationBin,
    PrecisionRecallPoints,
    RocPoints,
    calibration,
    calibration_error,
    confusion,
    roc_and_precision_recall,
)
from lingo_ds.evaluation.kept_answers import KeptAnswers
from lingo_ds.monitor.html_report import Block, Cell, Column, PageTable, Picture, Pictures, Shaded
from lingo_ds.training.page.record import RunRecord

MAX_LINES = 8
"""Classes or labels with a curve of their own; more are drawn together."""

MAX_CELLS = 12
"""Classes of a confusion matrix that is a table; a larger one is a picture."""

MAX_SCATTERS = 4
"""Values with a scatter plot of their own."""

MAX_DRAWN = 1_000_000
"""Answers that are drawn; of more, evenly spaced rows are."""


def picture_blocks(record: RunRecord) -> list[Block]:
    """The pictures of the split that is shown; none where its answers are not kept."""
    kept, task = record.answers.get(record.shown), record.task
    if kept is None or task is None:
        return []
    every = -(-kept.answers.size // MAX_DRAWN)
    kept = KeptAnswers(kept.answers[::every], kept.labels[::every], kept.step)
    if task.kind == "regression":
        return _non_empty(_scatters(kept, task))
    found: list[Picture] = [*_curves(kept, task), *_calibration(kept, task)]
    if task.kind == "multilabel":
        return _non_empty(found)
    counts = confusion(kept.decided(task), kept.labels, classes=task.classes)
    if task.classes > MAX_CELLS:
        return _non_empty([*found, _confusion_picture(counts, task)])
    return [*_non_empty(found), _confusion_table(counts, task)]


def _non_empty(pictures: list[Picture]) -> list[Block]:
    return [Pictures(pictures)] if pictures else []


def _curves(kept: KeptAnswers, task: Task) -> Iterator[Picture]:
    """ROC and precision-recall."""
    from lingo_ds.monitor.report_plots import Line, draw_precision_recall, draw_roc

    found: list[tuple[str, RocPoints, PrecisionRecallPoints]] = []
    for name, probabilities, truth in _one_vs_rest(kept, task):
        if points := roc_and_precision_recall(probabilities, truth):
            found.append((name, *points))
    if not found:
        return
    one = len(found) == 1
    rocs = [Line("" if one else f"{name}: {roc.area:.3f}", roc[0], roc[1]) for name, roc, _ in found]
    prs = [Line("" if one else f"{name}: {pr.area:.3f}", pr[0], pr[1]) for name, _, pr in found]
    areas = ", ".join(f"{name} {roc.area:.3f}" for name, roc, _ in found)
    averages = ", ".join(f"{name} {pr.area:.3f}" for name, _, pr in found)
    share = found[0][2].share_of_positives if one else None
    yield Picture(
        "ROC curve",
        draw_roc(rocs),
        f"ROC curve: true positive rate over false positive rate. Area: {areas}.",
        f"Area under the curve: {areas}. The nearer to the upper left corner, the better.",
    )
    yield Picture(
        "Precision and recall",
        draw_precision_recall(prs, positives=share),
        f"Precision over recall. Average precision: {averages}.",
        f"Average precision: {averages}."
        + (f" The share of positives, which guessing reaches, is {share:.1%}." if share is not None else ""),
    )


def _one_vs_rest(kept: KeptAnswers, task: Task) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Name, probabilities and truth of each curve."""
    names = task.output_names
    if task.kind == "binary":
        yield f"class {names[1]}", kept.answers[:, 1], kept.labels == 1
        return
    labels = kept.labels
    if task.kind == "multiclass":
        labels = np.eye(task.classes)[kept.labels]
    known = ~np.isnan(labels)
    if task.classes > MAX_LINES:
        what = "labels" if task.kind == "multilabel" else "classes"
        yield f"all {task.classes} {what} together", kept.answers[known], labels[known] == 1
        return
    for place, name in enumerate(names):
        rows = known[:, place]
        yield name, kept.answers[rows, place], labels[rows, place] == 1


def _calibration(kept: KeptAnswers, task: Task) -> Iterator[Picture]:
    from lingo_ds.monitor.report_plots import Bar, draw_calibration

    if task.kind == "multiclass":
        probabilities, truth = kept.answers.max(1), kept.answers.argmax(1) == kept.labels
        x_label, y_label = "probability of the likeliest class", "share that is right"
    elif task.kind == "binary":
        probabilities, truth = kept.answers[:, 1], kept.labels == 1
        x_label = f"probability of class {task.output_names[1]}"
        y_label = f"share that is class {task.output_names[1]}"
    else:
        known = ~np.isnan(kept.labels)
        probabilities, truth = kept.answers[known], kept.labels[known] == 1
        x_label, y_label = "probability of a label", "share that is true"
    bins = calibration(probabilities, truth)
    if not bins:
        return
    error = calibration_error(bins)
    sure = "too sure of itself" if _overconfident(bins, task) else "not sure enough of itself"
    verdict = "its probabilities can be taken at their word" if error < 0.05 else f"it is {sure} on average"
    points = ", ".join(f"{one.probability:.2f} to {one.frequency:.2f} ({one.size})" for one in bins)
    yield Picture(
        "Calibration",
        draw_calibration([Bar(*one) for one in bins], x_label=x_label, y_label=y_label),
        f"Calibration curve: probability to observed share, with the number of answers: {points}.",
        f"On the diagonal, probabilities are what they say. Mean distance (ECE): {error:.3f}; {verdict}. "
        "Bars: 95 % intervals; below: how many answers there are.",
    )


def _overconfident(bins: list[CalibrationBin], task: Task) -> bool:
    """Whether the truth is less certain than the probabilities: nearer to 0.5, or below the likeliest."""
    likeliest = task.kind == "multiclass"
    signs = [1 if likeliest or one.probability > 0.5 else -1 for one in bins]
    excess = sum(
        sign * (one.probability - one.frequency) * one.size for sign, one in zip(signs, bins, strict=True)
    )
    return excess > 0


def _confusion_table(counts: np.ndarray, task: Task) -> PageTable:
    names = task.output_names
    rows: list[list[Cell]] = []
    for name, row in zip(names, counts, strict=True):
        total = max(int(row.sum()), 1)
        cells = [Shaded(f"{count:,}", count / total, f"{count / total:.0%}") for count in row.tolist()]
        rows.append([f"is {name}", *cells, f"{int(row.sum()):,}"])
    columns = [
        Column("truth"),
        *(Column(f"decided {name}", numeric=True) for name in names),
        Column("all", numeric=True),
    ]
    return PageTable("Confusion matrix", columns, rows, note="Shares are those of the true class, the row.")


def _confusion_picture(counts: np.ndarray, task: Task) -> Picture:
    from lingo_ds.monitor.report_plots import draw_confusion

    off = counts - np.diag(np.diag(counts))
    true, decided = np.unravel_index(int(off.argmax()), off.shape)
    names = task.output_names
    most = f"most often {names[true]} is taken for {names[decided]}, {int(off.max()):,} times"
    alt = f"Confusion matrix of {task.classes} classes as shares of the true class: {most}."
    return Picture(
        "Confusion matrix",
        draw_confusion(counts, names),
        alt,
        f"The darker, the larger the share of the row; {most}.",
    )


def _scatters(kept: KeptAnswers, task: Task) -> list[Picture]:
    from lingo_ds.monitor.report_plots import draw_scatter

    found = []
    for place, name in enumerate(task.output_names[:MAX_SCATTERS]):
        known = ~np.isnan(kept.labels[:, place])
        if not known.any():
            continue
        measured, predicted = kept.labels[known, place], kept.answers[known, place]
        title = "Predicted and measured" if task.classes == 1 else f"Predicted and measured: {name}"
        alt = (
            f"Predicted over measured {name} of {len(measured):,} sequences; measured from "
            f"{measured.min():.4g} to {measured.max():.4g}, predicted from {predicted.min():.4g} to "
            f"{predicted.max():.4g}."
        )
        data = draw_scatter(measured, predicted, name="value" if task.classes == 1 else name)
        found.append(Picture(title, data, alt, "On the dotted line, the prediction is the measured value."))
    return found
