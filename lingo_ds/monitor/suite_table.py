"""The table of a suite: each task's metric over seeds, beside published scores."""

import csv
import io
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from rich.table import Table

from lingo_ds.utils.files import atomic_write


class TaskResult(NamedTuple):
    """Results of the runs of one task.

    Attributes:
        task: name of the task.
        metric: name of the metric.
        planned: number of runs, one per seed, when all are done.
        dev, test: metric of the selected step, one per finished run; None where it is not defined.
        published: 100 x the published metric on test, by model.
    """

    task: str
    metric: str
    planned: int
    dev: Sequence[float | None]
    test: Sequence[float | None]
    published: Mapping[str, float]


def result_rows(results: Sequence[TaskResult]) -> list[dict[str, str]]:
    """One row per task, all with the same columns; numbers are 100 x the metric.

    The spread over seeds is the sample's standard deviation (n - 1); a single run has none.
    """
    models = list(dict.fromkeys(model for result in results for model in result.published))
    return [
        {
            "task": result.task,
            "metric": result.metric,
            "runs": f"{len(result.test)}/{result.planned}",
            **_mean_and_spread("dev", result.dev),
            **_mean_and_spread("test", result.test),
            **{model: _number(result.published.get(model)) for model in models},
        }
        for result in results
    ]


def _mean_and_spread(split: str, values: Sequence[float | None]) -> dict[str, str]:
    known = [100 * value for value in values if value is not None]
    mean = statistics.mean(known) if known else None
    spread = statistics.stdev(known) if len(known) > 1 else None
    return {split: _number(mean), f"{split} sd": _number(spread)}


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def write_results(folder: Path, results: Sequence[TaskResult], *, notes: Sequence[str]) -> None:
    """Writes `results.csv` and `results.md`; `notes` are listed below the latter's table."""
    rows = result_rows(results)
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    atomic_write(folder / "results.csv", lambda aside: aside.write_text(text.getvalue(), encoding="utf-8"))
    markdown = _markdown(rows) + "".join(f"\n- {note}" for note in notes) + "\n"
    atomic_write(folder / "results.md", lambda aside: aside.write_text(markdown, encoding="utf-8"))


def _markdown(rows: Sequence[Mapping[str, str]]) -> str:
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(list(row.values()) for row in rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"


def results_table(name: str, results: Sequence[TaskResult]) -> Table:
    """The table for a terminal."""
    rows = result_rows(results)
    table = Table(title=f"{name}, 100 x the metric of the selected step", title_justify="left")
    for column in rows[0]:
        table.add_column(column, justify="left" if column in ("task", "metric") else "right")
    for row in rows:
        table.add_row(*row.values())
    return table
