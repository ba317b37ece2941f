"""What a run has reached, for its page: sentences, metrics with intervals, the worst answers."""

import math

import numpy as np

from lingo_ds.config.known_tasks import registry
from lingo_ds.data.task import Task
from lingo_ds.evaluation.bootstrap import Interval, Intervals, bootstrap
from lingo_ds.evaluation.kept_answers import KeptAnswers
from lingo_ds.evaluation.most_wrong import MAX_BASES, WrongAnswer, most_wrong
from lingo_ds.monitor.html_report import (
    Bases,
    Block,
    Cell,
    Column,
    Definitions,
    KeyFacts,
    PageTable,
    Ranged,
    Text,
)
from lingo_ds.training.page.record import RunRecord, value_at
from lingo_ds.training.page.words import (
    METRIC_WORDS,
    capital,
    duration,
    in_order,
    interval_text,
    level,
    metric_name,
    number,
)


def split_intervals(record: RunRecord) -> dict[str, Intervals]:
    """The intervals of the metrics on each split whose answers the run has kept."""
    assert record.task is not None or not record.answers  # answers are read by their task
    return {
        split: bootstrap(
            kept.answers, kept.labels, kind=record.task.kind, thresholds=record.task.thresholds, seed=0
        )
        for split, kept in record.answers.items()
        if record.task is not None
    }


def result_blocks(record: RunRecord) -> list[Block]:
    """The result: in a sentence, in short answers, and as a table of all metrics."""
    if record.task is None or not record.metrics(record.shown):
        return [Text("There is no result yet: the run has not come to an evaluation.", strong=True)]
    intervals = split_intervals(record)
    found: list[Block] = [Text(_sentence(record, record.task, intervals), strong=True)]
    if record.shown == "dev":
        found.append(
            Text(
                "These numbers are of dev, which also chose the step: they are a little too good. The run "
                "was not evaluated on test."
            )
        )
    found += [_facts(record, intervals), _metrics_table(record, intervals)]
    if published := _published_table(record):
        found.append(published)
    shown = [name for name in in_order(record.metrics(record.shown)) if name in METRIC_WORDS]
    meanings = [(metric_name(name), METRIC_WORDS[name].meaning) for name in shown]
    return [*found, Definitions("What these numbers mean", meanings)]


def _sentence(record: RunRecord, task: Task, intervals: dict[str, Intervals]) -> str:
    split, metrics = record.shown, record.metrics(record.shown)
    rows = value_at(record.report, f"data.rows.{split}") or 0
    begin = f"On {rows:,} {split} sequences{_seen(record)}, the model "
    if task.kind == "regression":
        what = f"predicts values that correlate with the measured ones by {_with_interval(record, intervals)}"
        share = metrics.get("r2")
        return (
            begin + what + ("." if share is None else f"; it explains {max(share, 0):.0%} of their variance.")
        )
    if task.kind == "multilabel":
        return (
            f"{begin}ranks which sequences have a label: {_with_interval(record, intervals)} over "
            f"{task.classes} labels, where 0.5 of an AUROC is guessing."
        )
    accuracy, majority = metrics.get("accuracy"), _majority(record)
    right = "" if accuracy is None else f"decides {round(accuracy * rows):,} correctly ({accuracy:.1%})"
    other = (
        ""
        if majority is None
        else f"; always answering the most frequent class would be right for {majority:.1%}"
    )
    return f"{begin}{right}{other}. {capital(_with_interval(record, intervals))}."


def _seen(record: RunRecord) -> str:
    """How many sequences of the split that is shown were trained on."""
    doubled = value_at(record.report, f"data.duplicates.{record.shown}_in_train")
    return f", {doubled:,} of which are in train, too" if doubled else " that it was not trained on"


def _with_interval(record: RunRecord, intervals: dict[str, Intervals]) -> str:
    """The metric that the run was selected by, with its interval and a word for it."""
    metric, split = record.metric, record.shown
    value = record.metrics(split).get(metric)
    remarks = []
    if interval := _interval(intervals, split, metric):
        remarks.append(f"95 % interval {interval_text(interval, metric)}")
    if word := level(metric, value):
        remarks.append(word)
    return f"{metric_name(metric)} {number(value, metric)}" + (f" ({'; '.join(remarks)})" if remarks else "")


def _interval(intervals: dict[str, Intervals], split: str, metric: str) -> Interval | None:
    return intervals[split].by_metric.get(metric) if split in intervals else None


def _majority(record: RunRecord) -> float | None:
    """Share of the most frequent class in the split that is shown."""
    counts = value_at(record.report, f"data.by_output.{record.shown}")
    return max(counts) / sum(counts) if counts and sum(counts) else None


def _facts(record: RunRecord, intervals: dict[str, Intervals]) -> KeyFacts:
    report, split, metric = record.report, record.shown, record.metric
    value, rows = record.metrics(split).get(metric), value_at(report, "data.rows") or {}
    interval = interval_text(_interval(intervals, split, metric), metric)
    items = [(f"{metric_name(metric)} on {split}", number(value, metric), interval and f"95 %: {interval}")]
    second = {"mcc": "auroc", "auroc": "accuracy", "pearson": "r2", "macro_auroc": "macro_auprc"}.get(metric)
    if second and second in record.metrics(split):
        between = interval_text(_interval(intervals, split, second), second)
        value = record.metrics(split)[second]
        items.append(
            (f"{metric_name(second)} on {split}", number(value, second), between and f"95 %: {between}")
        )
    items.append(("trained on", f"{rows.get('train', 0):,}", "sequences"))
    saved, backbone = (value_at(report, f"parameters.{name}") for name in ("saved", "backbone"))
    if saved and backbone:
        items.append(("learned numbers", f"{saved:,}", f"{saved / backbone:.2%} of the frozen backbone's"))
    seconds = value_at(report, "throughput.seconds")
    if seconds:
        speed = value_at(report, "throughput.tokens_per_second") or 0
        items.append(("time of training", duration(seconds), f"{speed:,.0f} tokens/s"))
    return KeyFacts(items)


def _metrics_table(record: RunRecord, intervals: dict[str, Intervals]) -> PageTable:
    splits = [split for split in ("test", "dev") if record.metrics(split)]
    names = in_order({name: None for split in splits for name in record.metrics(split)})
    baselines = {
        name: one.metrics[record.shown]
        for name, one in record.baselines.items()
        if record.shown in one.metrics
    }
    rows: list[list[Cell]] = []
    for name in names:
        lower = name in METRIC_WORDS and METRIC_WORDS[name].lower_is_better and name != "labels_left_out"
        cells: list[Cell] = [metric_name(name) + (" (less is better)" if lower else "")]
        for split in splits:
            interval = interval_text(_interval(intervals, split, name), name)
            cells.append(Ranged(number(record.metrics(split).get(name), name), interval))
        cells += [number(of[name], name) if name in of else "" for of in baselines.values()]
        rows.append(cells)
    columns = [
        Column("metric"),
        *(Column(split, numeric=True) for split in splits),
        *(Column(f"{name} ({record.shown})", numeric=True) for name in baselines),
    ]
    return PageTable("All metrics", columns, rows, note=_about_intervals(intervals, splits))


def _about_intervals(intervals: dict[str, Intervals], splits: list[str]) -> str:
    counts = {intervals[split].resamples for split in splits if split in intervals}
    drawn = sorted(count for count in counts if count)
    text = ""
    if drawn:
        times = " or ".join(f"{count:,}" for count in drawn)
        text = (
            f"Behind each number its 95 % interval: percentiles of {times} resamples of the split's "
            "sequences with replacement (bootstrap, seed 0). It tells how far the number would move with "
            "other sequences of this kind, and not how far with another seed of training. "
        )
    elif splits:
        text = "There are no intervals: the answers are not kept, or too many to be resampled. "
    return text + (
        "dev has chosen the step, so its numbers are a little too good." if "dev" in splits else ""
    )


def _published_table(record: RunRecord) -> PageTable | None:
    """What others reached on the same test set, where the task is a known one."""
    name = value_at(record.config, "data.task")
    known = registry().tasks.get(name) if name else None
    if not known or not known.scores or known.metric not in record.metrics("test"):
        return None
    ours = number(record.metrics("test")[known.metric], known.metric)
    rows: list[list[Cell]] = [["this run", ours, "selected on dev"]]
    for model, score in known.scores.items():
        source = registry().models[model]
        rows.append([model, number(score / 100, known.metric), f"{source.source}; {source.note}"])
    columns = [
        Column("model"),
        Column(f"{metric_name(known.metric)} on test", numeric=True),
        Column("source"),
    ]
    return PageTable(f"Published for {name}", columns, rows, sortable=True)


# -- tables of single labels and of single answers


def by_output_table(record: RunRecord) -> list[Block]:
    """The metrics of each label or value, where there are several."""
    by_output = value_at(record.report, "metrics_by_output.test") or {}
    if len(by_output) < 2:
        return []
    names = in_order(next(iter(by_output.values())))
    what = "label" if record.task and record.task.kind == "multilabel" else "value"
    rows: list[list[Cell]] = [
        [output, *("" if found[name] is None else number(found[name], name) for name in names)]
        for output, found in by_output.items()
    ]
    columns = [Column(what), *(Column(metric_name(name), numeric=True) for name in names)]
    note = "A cell is empty where the number is not defined: all or no sequences of test have the label."
    return [
        PageTable(f"Each {what} on test", columns, rows, sortable=True, note=note if what == "label" else "")
    ]


def wrong_blocks(record: RunRecord) -> list[Block]:
    """The answers on test that are most wrong."""
    task, kept = record.task, record.answers.get("test")
    if task is None or not record.metrics("test"):
        return []
    wrong = record.wrong or (most_wrong(kept.answers, kept.labels, task) if kept else [])
    if not wrong:
        return [Text("No answer on test is wrong.")] if kept else []
    names, rows = task.output_names, [_wrong_row(one, task) for one in wrong]
    heads = {
        "regression": ["value", "measured", "predicted"],
        "multilabel": ["label", "in the data", "probability of that"],
    }.get(task.kind, ["true class", "decided", "probability of the truth"])
    columns = [
        Column("row"),
        *(Column(head, numeric="prob" in head) for head in heads),
        Column("sequence"),
        Column("bases", numeric=True),
    ]
    if task.kind == "regression" and len(names) == 1:
        rows, columns = [[row[0], *row[2:]] for row in rows], [columns[0], *columns[2:]]
    what = (
        "with the largest error"
        if task.kind == "regression"
        else "in which the model was surest of the wrong answer"
    )
    text = (
        f"The {len(rows)} test answers {what}{_of_all(kept, task)}. Look for mislabelled rows, and for what "
        "these sequences have in common."
    )
    note = (
        f"Rows are numbered from 0 in the order of the file; of long sequences the first {MAX_BASES} bases "
        "are shown."
    )
    return [Text(text), PageTable("", columns, rows, sortable=True, note=note)]


def _of_all(kept: KeptAnswers | None, task: Task) -> str:
    if kept is None or task.kind == "regression":
        return ""
    differs = kept.decided(task) != kept.labels
    wrong = int((differs & ~np.isnan(kept.labels)).sum())
    return f", of {wrong:,} wrong ones"


def _wrong_row(one: WrongAnswer, task: Task) -> list[Cell]:
    name = task.output_names[one.output]
    if task.kind == "regression":
        decimals = _decimals(task.scale[one.output] if task.scale else 1.0)
        middle = [name, f"{one.truth:,.{decimals}f}", f"{one.answer:,.{decimals}f}"]
    elif task.kind == "multilabel":
        middle = [name, "true" if one.truth else "false", f"{one.answer:.3g}"]
    else:
        middle = [task.output_names[int(one.truth)], name, f"{one.answer:.3g}"]
    parts = [(one.sequence, one.length), (one.pair, one.pair_length)]
    shown = [_cut(sequence, length) for sequence, length in parts if sequence is not None and length]
    length = sum(length or 0 for _, length in parts)
    sequence = Bases(" + ".join(shown)) if shown else "not kept"
    return [f"{one.row:,}", *middle, sequence, f"{length:,}" if length else ""]


def _decimals(spread: float) -> int:
    """Decimals of values of this spread that tell a hundredth of it."""
    return max(0, 2 - math.floor(math.log10(spread))) if spread > 0 else 3


def _cut(sequence: str, length: int) -> str:
    return sequence if length <= len(sequence) else f"{sequence}\N{HORIZONTAL ELLIPSIS}"
