"""A data set in a few lines, for the log: rows of each split and class, and what may spoil the result."""

from collections.abc import Iterator

import numpy as np

from lingo_ds.data.task import Task
from lingo_ds.data.tokenized import TokenizedData

MAX_NAMED = 12
"""Classes or columns that are named one by one."""

ONE_A_BASE = 0.01
"""How far bases for each token may be from 1 where a tokenizer reads DNA by base: pairs have a separator."""


def describe(data: TokenizedData, task: Task) -> Iterator[str]:
    """Rows of each split, in all and by class or label; the columns that labels came from."""
    rows = ", ".join(f"{name} {len(split):,}" for name, split in data.splits.items())
    yield f"rows: {rows}; {task.outputs}"
    if len(data.label_columns) > 1:
        yield f"columns of the labels: {_some(data.label_columns)}"
    if task.kind == "regression":
        return
    counts = {name: count_by_output(split.labels, task) for name, split in data.splits.items()}
    word = "rows with label" if task.kind == "multilabel" else "rows of class"
    shown = [
        f"{name}: {' / '.join(f'{of_split[place]:,}' for of_split in counts.values())}"
        for place, name in enumerate(task.output_names[: MAX_NAMED + 1])
    ]
    yield f"{word} in {' / '.join(counts)}: {_some(shown)}"


def describe_tokens(data: TokenizedData, *, around: int) -> str:
    """How many bases a token of the training sequences holds; `around` are tokens of the text around one."""
    split = data.splits["train"]
    losses, rows = split.losses, max(len(split), 1)
    bases = (losses.bases - losses.cut) * len(split) / max(losses.sequences, 1)
    tokens = max(int(split.lengths.sum()) - around * len(split), 1)
    text = f"{around} for the text around"
    if abs(bases / tokens - 1) < ONE_A_BASE:
        return f"tokens: one for each base, {tokens / rows:.1f} in an example, and {text}"
    return (
        f"tokens: {bases / tokens:.2f} bases in each, {tokens / rows:.1f} in an example, and {text}; "
        "data.tokens=nucleotides reads one for each base"
    )


def remark_on_labels(data: TokenizedData, task: Task) -> Iterator[str]:
    """What labels, answers and equal sequences may do to the metrics."""
    if task.kind in ("binary", "multiclass"):
        for name in ("dev", "test"):
            found = np.unique(data.splits[name].labels)
            if len(found) == 1:
                only = task.output_names[found[0]]
                yield (
                    f"{name} holds only class {only}: its metrics say nothing; draw the splits anew, e.g. by "
                    "leaving the file out"
                )
    unknown = {name: split.unknown for name, split in data.splits.items()}
    if any(unknown.values()):
        yield f"unknown labels or values are left out of loss and metrics: {_by_name(unknown)}"
    if any(data.duplicates.values()):
        yield f"the same sequence more than once: {_by_name(data.duplicates)}"


def remark_on_tokens(data: TokenizedData) -> Iterator[str]:
    """What sequences lost on their way to tokens."""
    for name, losses in data.losses.items():
        if cut := losses.cut_in_words():
            count = data.splits[name].truncated
            yield (
                f"{count:,} sequences of {name} were cut to fit into the longest input, which lost {cut}: "
                "raise data.max_length, or give shorter sequences"
            )
        if lost := losses.in_words():
            yield f"of {name}, {lost}: data.tokens=nucleotides reads every base"


def count_by_output(labels: np.ndarray, task: Task) -> np.ndarray:
    """(outputs,) rows of each class, or rows where each label is true; not of values."""
    if task.kind == "multilabel":
        return (labels == 1).sum(0)
    return np.bincount(labels, minlength=task.classes)


def _some(names: list[str] | tuple[str, ...]) -> str:
    return ", ".join(names[:MAX_NAMED]) + (", .." if len(names) > MAX_NAMED else "")


def _by_name(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.items() if count)
