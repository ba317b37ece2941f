"""A run's files read back: all that its page shows comes from them, however long ago the run has ended."""

import re
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import TypeAdapter, ValidationError

from lingo_ds.config.task_config import METRICS
from lingo_ds.config.yaml import parse_yaml
from lingo_ds.data.task import Task
from lingo_ds.evaluation.kept_answers import KeptAnswers, read_predictions
from lingo_ds.evaluation.most_wrong import MOST_WRONG, WrongAnswer, read_most_wrong
from lingo_ds.monitor.baselines import ModelResult, read_baselines
from lingo_ds.monitor.metrics_log import Curve, read_metrics
from lingo_ds.utils.errors import Mistake, UserError, printable, reason_of
from lingo_ds.utils.safe_read import read_json

PAGE = "report.html"
"""The page's name in a run's or a suite's folder."""

MAX_ANSWERS = 20_000_000
"""Most answers of a split that are read for curves and intervals: 160 MB."""

LOG_LINES, LOG_BYTES = 12, 20_000
"""Last lines of the log of a run without an end, and bytes in which they are looked for."""

_TASK = TypeAdapter(Task)


class RunRecord(NamedTuple):
    """A run as its folder tells it; what is absent is empty or None.

    Attributes:
        folder: of the run.
        config: its settings.
        plan: what `plan.json` holds.
        report: what `report.json` holds; empty: the run has not ended.
        task: what its outputs mean, with the thresholds of its adapter; None: the run had not got so far.
        answers: its answers on dev and test.
        wrong: the worst answers on test.
        curves: what it recorded while it trained.
        baselines: what models without a language model reach, by name.
        log: the last lines of its log, where it has not ended.
    """

    folder: Path
    config: dict[str, Any]
    plan: dict[str, Any]
    report: dict[str, Any]
    task: Task | None
    answers: dict[str, KeptAnswers]
    wrong: list[WrongAnswer]
    curves: dict[str, Curve]
    baselines: dict[str, ModelResult]
    log: list[str]

    @property
    def metric(self) -> str:
        """The metric on dev by which the run selected its adapter."""
        chosen: str = value_at(self.config, "selection.metric") or "auto"
        kind = self.task.kind if self.task else value_at(self.config, "task.kind")
        family = kind if kind in ("multilabel", "regression") else "classes"
        return METRICS[family][0] if chosen == "auto" else chosen

    def metrics(self, split: str) -> dict[str, float | None]:
        """The metrics on a split; empty where it was not evaluated."""
        return value_at(self.report, f"metrics.{split}") or {}

    @property
    def shown(self) -> str:
        """The split to look at: test, or dev where there is no test yet."""
        return "test" if self.metrics("test") else "dev"


def value_at(tree: Any, key: str) -> Any:
    """What lies under a dotted key of nested dicts; None: nothing."""
    for name in key.split("."):
        tree = tree.get(name) if isinstance(tree, dict) else None
    return tree


def read_run(folder: Path) -> RunRecord:
    """Reads what a run has written.

    Raises:
        UserError: where the folder holds no run, or one of its files is damaged.
    """
    path = folder / "config.yaml"
    if not path.is_file():
        fix = "name the output_dir of a run or suite that lingo-ds train has begun"
        raise UserError(Mistake("RUN", folder, "holds no run: there is no config.yaml in it", fix))
    try:
        path = folder / "report.json"
        report = read_json(path) if path.exists() else {}
        task = _task(folder, report)
        path = folder / "config.yaml"
        config = parse_yaml(path.read_text(encoding="utf-8"))
        path = folder / "plan.json"
        plan = read_json(path) if path.exists() else {}
        path = folder / MOST_WRONG
        wrong = read_most_wrong(path)
        baselines = read_baselines(folder)
        path = folder / "predictions"
        answers = _answers(path, report, task) if task else {}
        path = folder / "metrics.jsonl"
        curves, log = read_metrics(path), [] if report else _end_of_log(folder / "train.log")
    except (OSError, ValueError, TypeError, LookupError) as error:
        reason = "is not as it was written" if isinstance(error, ValidationError) else reason_of(error)
        fix = "restore it, or run the same command again"
        raise UserError(Mistake(str(path), "damaged or unreadable", reason, fix)) from None
    return RunRecord(folder, config, plan, report, task, answers, wrong, curves, baselines, log)


def _task(folder: Path, report: dict[str, Any]) -> Task | None:
    """The task of the saved adapter, whose thresholds were chosen on dev; else that of the report."""
    saved = folder / "adapter" / "task.json"
    found = read_json(saved)["task"] if saved.exists() else report.get("task")
    return found and _TASK.validate_python(found)


def _answers(folder: Path, report: dict[str, Any], task: Task) -> dict[str, KeptAnswers]:
    """The answers on each split that the report has metrics of, those of the selected step on dev."""
    found = {}
    for split in ("dev", "test"):
        if not value_at(report, f"metrics.{split}"):
            continue
        kept = read_predictions(folder / f"{split}.parquet", task, most=MAX_ANSWERS)
        if kept and len(kept.labels) and (split == "test" or kept.step == report.get("selected_step")):
            found[split] = kept
    return found


def _end_of_log(path: Path) -> list[str]:
    """The last lines of a log, without control characters."""
    if not path.is_file():
        return []
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - LOG_BYTES))
        text = file.read().decode(errors="replace")
    return [printable(re.sub(r"\x1b\[[0-9;]*m", "", line)) for line in text.splitlines()[-LOG_LINES:]]
