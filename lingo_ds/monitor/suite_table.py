"""The tables of a suite: each task's metric over seeds, beside published scores, and what a grid tried."""

import csv
import io
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from rich.table import Table
from rich.text import Text

from lingo_ds.utils.files import atomic_write


class SettingResult(NamedTuple):
    """What became of one setting of a task's grid.

    Attributes:
        setting: what it is called.
        scores: fraction of the steps and mean over seeds of the metric on dev by then, each time settings
            were compared; None where it is not defined for all seeds.
        dropped: fraction of the steps after which it was dropped; 1.0: another was chosen at the end.
        chosen: whether it is the one that is evaluated on test.
        failed: number of its runs that failed.
    """

    setting: str
    scores: Sequence[tuple[float, float | None]]
    dropped: float | None = None
    chosen: bool = False
    failed: int = 0

    @property
    def outcome(self) -> str:
        """What became of it, in words; empty while it is undecided."""
        dropped = "" if self.dropped is None else f"dropped at {self.dropped:g}"
        words = "chosen" if self.chosen else "not chosen" if self.dropped == 1 else dropped
        failed = f"runs failed: {self.failed}" if self.failed else ""
        return ", ".join(filter(None, (words, failed)))


class BaselineScore(NamedTuple):
    """The metric of a task that a baseline reaches; None where it is not defined."""

    dev: float | None
    test: float | None


class TaskResult(NamedTuple):
    """Results of one task: of its runs, where there is a grid of those with the chosen setting.

    Attributes:
        task: name of the task.
        metric: name of the metric.
        planned: number of runs, one per seed, when all are done.
        dev, test: metric of the selected step, one per finished run; None where it is not defined.
        published: 100 x the published metric on test, by model.
        tried: the settings of the grid, in its order; empty without a grid.
        baselines: what models without a language model reach, by name; empty where none was computed.
    """

    task: str
    metric: str
    planned: int
    dev: Sequence[float | None]
    test: Sequence[float | None]
    published: Mapping[str, float]
    tried: Sequence[SettingResult] = ()
    baselines: Mapping[str, BaselineScore] = MappingProxyType({})

    @property
    def above_baselines(self) -> float | None:
        """The mean on test less that of the baseline that is best on dev; None where either is unknown."""
        known = [value for value in self.test if value is not None]
        chosen = [one for one in self.baselines.values() if one.dev is not None]
        rival = max(chosen, key=lambda one: one.dev or 0.0).test if chosen else None
        return statistics.mean(known) - rival if known and rival is not None else None

    @property
    def setting(self) -> str:
        """The chosen setting; empty without a grid, and before one is chosen."""
        return next((one.setting for one in self.tried if one.chosen), "")


def result_rows(results: Sequence[TaskResult]) -> list[dict[str, str]]:
    """One row per task, all with the same columns; numbers are 100 x the metric.

    The spread over seeds is the sample's standard deviation (n - 1); a single run has none.
    """
    models = list(dict.fromkeys(model for result in results for model in result.published))
    baselines = list(dict.fromkeys(name for result in results for name in result.baselines))
    with_grid = any(result.tried for result in results)
    return [
        {
            "task": result.task,
            **({"setting": result.setting} if with_grid else {}),
            "metric": result.metric,
            "runs": f"{len(result.test)}/{result.planned}",
            **_mean_and_spread("dev", result.dev),
            **_mean_and_spread("test", result.test),
            **_beside(result, baselines),
            **{model: _number(result.published.get(model)) for model in models},
        }
        for result in results
    ]


def setting_rows(results: Sequence[TaskResult]) -> list[dict[str, str]]:
    """One row per task and setting of the grid, all with the same columns; none without a grid."""
    tried = [(result, one) for result in results for one in result.tried]
    fractions = sorted({fraction for _, one in tried for fraction, _ in one.scores})
    return [
        {
            "task": result.task,
            "setting": one.setting,
            "metric": result.metric,
            **{f"dev at {at:g}": _number(_times_100(dict(one.scores).get(at))) for at in fractions},
            "outcome": one.outcome,
        }
        for result, one in tried
    ]


def _beside(result: TaskResult, baselines: Sequence[str]) -> dict[str, str]:
    """The test metric of each baseline, and how far the runs are above them; nothing where there is none."""
    scores = {f"{name} test": result.baselines.get(name) for name in baselines}
    cells = {column: _number(_times_100(score and score.test)) for column, score in scores.items()}
    return cells | {"above baselines": _number(_times_100(result.above_baselines))} if cells else {}


def _mean_and_spread(split: str, values: Sequence[float | None]) -> dict[str, str]:
    known = [100 * value for value in values if value is not None]
    mean = statistics.mean(known) if known else None
    spread = statistics.stdev(known) if len(known) > 1 else None
    return {split: _number(mean), f"{split} sd": _number(spread)}


def _times_100(value: float | None) -> float | None:
    return None if value is None else 100 * value


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def write_results(folder: Path, results: Sequence[TaskResult], *, notes: Sequence[str]) -> None:
    """Writes `results.csv` and `results.md`, which lists `notes` below the table.

    What a grid tried is a second table there, and `settings.csv`.
    """
    rows, tried = result_rows(results), setting_rows(results)
    markdown = _markdown(rows) + "".join(f"\n- {note}" for note in notes) + "\n"
    _write(folder / "results.csv", _csv(rows))
    if tried:
        markdown += f"\n## Settings tried\n\n{_markdown(tried)}"
        _write(folder / "settings.csv", _csv(tried))
    _write(folder / "results.md", markdown)


def _write(path: Path, text: str) -> None:
    atomic_write(path, lambda aside: aside.write_text(text, encoding="utf-8"))


def _csv(rows: Sequence[Mapping[str, str]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _markdown(rows: Sequence[Mapping[str, str]]) -> str:
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(list(row.values()) for row in rows)]
    escaped = ([cell.replace("|", "\\|") for cell in cells] for cells in lines)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in escaped) + "\n"


def results_table(name: str, results: Sequence[TaskResult]) -> Table:
    """The table for a terminal."""
    rows = result_rows(results)
    table = Table(title=f"{name}, 100 x the metric of the selected step", title_justify="left")
    for column in rows[0]:
        table.add_column(column, justify="left" if column in ("task", "setting", "metric") else "right")
    for row in rows:
        table.add_row(*map(Text, row.values()))  # a Text, since [..] in a setting is no markup
    return table
