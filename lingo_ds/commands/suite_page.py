"""`report.html` of a suite: all tasks and seeds beside published numbers, from the files in its folder."""

import json
import logging
import statistics
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from pydantic import BaseModel, ValidationError

from lingo_ds.monitor.baselines import read_baselines
from lingo_ds.monitor.html_report import (
    Block,
    Cell,
    Code,
    Column,
    KeyFacts,
    LinkCell,
    Page,
    PageSection,
    PageTable,
    Ranged,
    Text,
    Warnings,
    write_page,
)
from lingo_ds.monitor.suite_table import TaskResult, result_rows, setting_rows
from lingo_ds.training.page.record import PAGE
from lingo_ds.training.page.words import duration, metric_name, written_from
from lingo_ds.training.report import RunReport, read_report
from lingo_ds.utils.errors import Mistake, UserError
from lingo_ds.utils.files import atomic_write
from lingo_ds.utils.safe_read import read_json

logger = logging.getLogger(__name__)

RESULTS = "results.json"
"""What a suite has reached, in its folder; it also tells that a folder is a suite's."""


class SuiteRun(BaseModel, strict=True):
    """One run of a suite.

    Attributes:
        task, setting, seed: which one it is; `setting` is empty without a grid.
        folder: its folder, below that of the suite.
        metric: by which it is selected.
        counted: whether its setting is the chosen one, so that the table counts it.
    """

    task: str
    setting: str
    seed: int
    folder: str
    metric: str
    counted: bool


class SuiteResults(BaseModel):
    """What a suite has reached.

    Attributes:
        name: of the suite.
        tasks: the results of each task.
        runs: all of its runs, in their order.
        notes: where the numbers come from.
    """

    name: str
    tasks: list[TaskResult]
    runs: list[SuiteRun]
    notes: list[str]


def write_suite_results(folder: Path, results: SuiteResults) -> None:
    """Writes `results.json`, and the page on it, which only warns where it cannot be written."""
    tasks = [
        task._asdict() | {"tried": [one._asdict() for one in task.tried], "published": dict(task.published)}
        for task in results.tasks
    ]
    text = json.dumps(results.model_dump(exclude={"tasks"}) | {"tasks": tasks}, indent=1)
    atomic_write(folder / RESULTS, lambda aside: aside.write_text(text, encoding="utf-8"))
    try:
        write_suite_page(folder)
    except Exception as error:  # the table is there already
        logger.warning("%s: %s: %s", folder / PAGE, type(error).__name__, error)


def read_results(folder: Path) -> SuiteResults:
    """Reads `results.json`.

    Raises:
        UserError: where it is damaged.
    """
    try:
        return SuiteResults.model_validate(read_json(folder / RESULTS))
    except (ValueError, TypeError) as error:
        reason = "is not as it was written" if isinstance(error, ValidationError) else str(error)
        fix = "run lingo-ds train with the suite's recipe again"
        raise UserError(Mistake(str(folder / RESULTS), "damaged", reason, fix)) from None


def write_suite_page(folder: Path) -> Path:
    """Writes the page of the suite in a folder; returns the page's path.

    Raises:
        UserError: where a file in it is damaged.
        OSError: where the page cannot be written.
    """
    write_page(folder / PAGE, suite_page(folder, read_results(folder)))
    return folder / PAGE


def suite_page(folder: Path, suite: SuiteResults) -> Page:
    """The page of a suite; pages of runs that are there are linked."""
    reports = [read_report(folder / run.folder / "report.json") for run in suite.runs]
    counted = sum(len(task.test) for task in suite.tasks)
    planned = sum(task.planned for task in suite.tasks)
    seeds = len({run.seed for run in suite.runs})
    lead = f"{len(suite.tasks)} tasks with {seeds} seeds each; {counted} of {planned} runs are finished."
    sections = [
        PageSection("result", "Result", _result(folder, suite, reports)),
        PageSection("runs", "Every run", [_by_seed(folder, suite, reports)]),
        PageSection("settings", "Settings tried", _settings(suite)),
        PageSection("notes", "Where the numbers come from", [Text(note) for note in suite.notes]),
        PageSection("repeat", "Repeat it", [Code("", f"# make these pages anew\nlingo-ds report {folder}")]),
    ]
    return Page(suite.name, "lingo_ds, report of a suite", lead, sections, written_from(folder))


def _result(folder: Path, suite: SuiteResults, reports: Sequence[RunReport | None]) -> list[Block]:
    """The table of tasks, with mean and spread over seeds beside published numbers and baselines."""
    open_runs = sum(report is None for report in reports)
    blocks: list[Block] = []
    if open_runs:
        missing = f"{open_runs} of {len(reports)} runs have not ended: the numbers below lack them"
        blocks.append(Warnings([missing]))
    blocks += [_facts(suite, reports), _table(folder, suite)]
    return blocks


def _facts(suite: SuiteResults, reports: Sequence[RunReport | None]) -> KeyFacts:
    means = [statistics.mean(values) for task in suite.tasks if (values := _known(task.test))]
    metrics = {task.metric for task in suite.tasks}
    items = []
    if means and len(metrics) == 1:
        name = metric_name(next(iter(metrics)))
        remark = f"x 100, over {len(means)} of {len(suite.tasks)} tasks"
        items.append((f"mean {name} on test", f"{100 * statistics.mean(means):.1f}", remark))
    spreads = [statistics.stdev(values) for task in suite.tasks if len(values := _known(task.test)) > 1]
    if spreads:
        remark = "mean standard deviation, x 100"
        items.append(("spread over seeds", f"{100 * statistics.mean(spreads):.1f}", remark))
    ended = [report for report in reports if report]
    items.append(("runs that ended", f"{len(ended)} of {len(reports)}", "all settings and seeds"))
    seconds = sum(report.throughput.get("seconds") or 0 for report in ended)
    items.append(("time of training", duration(seconds), "sum over the runs"))
    return KeyFacts(items)


def _known(values: Sequence[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def _table(folder: Path, suite: SuiteResults) -> PageTable:
    shown = result_rows(suite.tasks)
    models = list(dict.fromkeys(model for task in suite.tasks for model in task.published))
    baselines = _baselines(folder, suite)
    with_grid = "setting" in shown[0]
    rows: list[list[Cell]] = []
    for task, row in zip(suite.tasks, shown, strict=True):
        cells: list[Cell] = [row["task"], *([row["setting"]] if with_grid else [])]
        cells += [metric_name(row["metric"]), row["runs"]]
        cells += [Ranged(row[split], _spread(row[f"{split} sd"])) for split in ("test", "dev")]
        cells += [row[model] for model in models]
        cells += [f"{100 * of[task.task]:.2f}" if task.task in of else "" for of in baselines.values()]
        rows.append(cells)
    heads = [Column("task"), *([Column("setting")] if with_grid else []), Column("metric"), Column("runs")]
    numbers = [Column(name, numeric=True) for name in ("test", "dev", *models, *baselines)]
    note = (
        "All numbers are 100 x the metric, published ones too. Behind the mean over seeds stands their "
        "standard deviation (n - 1). A click on a header sorts."
    )
    return PageTable("Tasks", [*heads, *numbers], rows, sortable=True, note=note)


def _spread(deviation: str) -> str:
    return deviation and f"\N{PLUS-MINUS SIGN} {deviation}"


def _baselines(folder: Path, suite: SuiteResults) -> dict[str, dict[str, float]]:
    """The mean over runs of the test metric of each baseline, by its name and the task."""
    found: dict[str, dict[str, list[float]]] = {}
    for run in suite.runs:
        for name, one in read_baselines(folder / run.folder).items():
            value = one.metric("test", run.metric)
            if value is not None and run.counted:
                found.setdefault(name, {}).setdefault(run.task, []).append(value)
    return {
        name: {task: statistics.mean(values) for task, values in by_task.items()}
        for name, by_task in found.items()
    }


def _by_seed(folder: Path, suite: SuiteResults, reports: Sequence[RunReport | None]) -> PageTable:
    """One row per task and setting, one column per seed; each number leads to its run's page."""
    seeds = list(dict.fromkeys(run.seed for run in suite.runs))
    with_grid = any(run.setting for run in suite.runs)
    cells: dict[tuple[str, str], dict[int, Cell]] = {}
    for run, report in zip(suite.runs, reports, strict=True):
        text = _score(run, report)
        there = (folder / run.folder / PAGE).is_file()
        cell: Cell = LinkCell(text, f"{quote(run.folder)}/{PAGE}") if there else text
        cells.setdefault((run.task, run.setting), {})[run.seed] = cell
    rows: list[list[Cell]] = [
        [task, *([setting] if with_grid else []), *(of_seed.get(seed, "") for seed in seeds)]
        for (task, setting), of_seed in cells.items()
    ]
    columns = [Column("task"), *([Column("setting")] if with_grid else [])]
    columns += [Column(f"seed {seed}", numeric=True) for seed in seeds]
    note = (
        "100 x the metric on test, or on dev where a run was not evaluated on test. A number leads to the "
        "report of its run."
    )
    return PageTable("", columns, rows, sortable=True, note=note)


def _score(run: SuiteRun, report: RunReport | None) -> str:
    if report is None:
        return "not ended"
    for split, suffix in (("test", ""), ("dev", " (dev)")):
        value = (report.metrics.get(split) or {}).get(run.metric)
        if value is not None:
            return f"{100 * value:.2f}{suffix}"
    return report.outcome


def _settings(suite: SuiteResults) -> list[Block]:
    """What a grid tried."""
    rows = setting_rows(suite.tasks)
    if not rows:
        return []
    columns = [Column(name, numeric=name.startswith("dev at")) for name in rows[0]]
    note = "100 x the mean over seeds of the metric on dev, when settings were compared."
    return [PageTable("", columns, [list(row.values()) for row in rows], sortable=True, note=note)]
