"""What the runs of a suite have reached: their reports, and the table of results."""

import os
from collections.abc import Mapping, Sequence

from lingo_ds.commands.suite_page import SuiteResults, SuiteRun, write_suite_results
from lingo_ds.config.known_tasks import registry
from lingo_ds.config.run_config import RunConfig, from_anywhere
from lingo_ds.config.suite_config import Suite
from lingo_ds.config.yaml import parse_yaml
from lingo_ds.monitor.baselines import read_baselines
from lingo_ds.monitor.suite_table import BaselineScore, SettingResult, TaskResult, write_results
from lingo_ds.planning.automatic import AUTOMATIC
from lingo_ds.training.report import RunReport, read_report
from lingo_ds.training.search import Search
from lingo_ds.training.trainer import UNFINISHED


def finished_report(config: RunConfig) -> RunReport | None:
    """The report of this very run; None where it was not finished, or made with another config."""
    report = read_report(config.run_dir / "report.json")
    if report is None or report.outcome in UNFINISHED or not _same_config(config):
        return None
    return report


def _same_config(config: RunConfig) -> bool:
    try:
        written = parse_yaml((config.run_dir / "config.yaml").read_text(encoding="utf-8"))
        asked = parse_yaml(from_anywhere(config).to_yaml())
        for section, name in AUTOMATIC:
            if asked[section][name] == "auto":  # what it stands for follows from the rest
                asked[section][name] = written[section][name]
        return bool(written == asked)
    except (OSError, ValueError, TypeError, LookupError):
        return False


def write_table(suite: Suite, search: Search) -> list[TaskResult]:
    """Writes the table of what is finished, with the settings that the search has chosen so far."""
    results = _results(suite, search)
    folder, notes = suite.config.folder, _notes(suite, results)
    write_results(folder, results, notes=notes)
    runs = _runs(suite, search.chosen())
    write_suite_results(folder, SuiteResults(name=suite.config.name, tasks=results, runs=runs, notes=notes))
    return results


def _runs(suite: Suite, chosen: Mapping[str, str]) -> list[SuiteRun]:
    """Every run, as the suite's page lists it."""
    return [
        SuiteRun(
            task=member.task,
            setting=member.label,
            seed=member.seed,
            folder=os.path.relpath(member.config.run_dir, suite.config.folder),
            metric=member.config.metric,
            counted=chosen.get(member.task) == member.label,
        )
        for member in suite.members
    ]


def all_reports(suite: Suite) -> list[RunReport | None]:
    """The report of each run that is finished."""
    return [finished_report(member.config) for member in suite.members]


def metric_of(report: RunReport, split: str, config: RunConfig) -> float | None:
    """The metric of a run on a split; None where it was not evaluated, or is not defined."""
    return (report.metrics.get(split) or {}).get(config.metric)


def _results(suite: Suite, search: Search) -> list[TaskResult]:
    """The results of each task: of the finished runs with its chosen setting."""
    reports = all_reports(suite)
    chosen, tried = search.chosen(), search.history() if suite.config.grid else {}
    configs = {member.task: member.config for member in suite.members}
    counted: dict[str, list[RunReport]] = {task: [] for task in configs}
    for member, report in zip(suite.members, reports, strict=True):
        if report and member.label == chosen.get(member.task):
            counted[member.task].append(report)
    planned = len(suite.config.seeds)
    return [
        _result(task, config, planned, counted[task], tried.get(task, ())) for task, config in configs.items()
    ]


def _result(
    task: str, config: RunConfig, planned: int, reports: Sequence[RunReport], tried: Sequence[SettingResult]
) -> TaskResult:
    known = registry().tasks.get(config.data.task) if config.data.task else None
    published = known.scores if known and known.metric == config.metric else {}
    dev, test = ([metric_of(report, split, config) for report in reports] for split in ("dev", "test"))
    baselines = {
        name: BaselineScore(one.metric("dev", config.metric), one.metric("test", config.metric))
        for name, one in read_baselines(config.run_dir).items()
    }
    return TaskResult(task, config.metric, planned, dev, test, published, tried, baselines)


def _notes(suite: Suite, results: Sequence[TaskResult]) -> list[str]:
    """The origin of the numbers of the table, ours first."""
    first = suite.members[0].config
    ours = f"dev, test: {first.backbone.path}, selected on dev, test evaluated once; sd over seeds"
    shown = dict.fromkeys(model for result in results for model in result.published)
    models = {name: registry().models[name] for name in shown}
    published = [f"{name}: {model.source}; {model.note}" for name, model in models.items()]
    return [ours, *_baseline_notes(results), *_search_notes(suite), *published]


def _baseline_notes(results: Sequence[TaskResult]) -> list[str]:
    """What the baselines are."""
    notes = {
        "logistic": "logistic test: logistic regression of one-hot bases (of values: ridge regression)",
        "cnn": "cnn test: a small CNN on one-hot bases",
    }
    found = [note for name, note in notes.items() if any(name in one.baselines for one in results)]
    if found:
        found = [f"{note}, on the same splits, chosen on dev, one seed" for note in found]
        found.append("above baselines: test less that of the baseline that is best on dev")
    return found


def _search_notes(suite: Suite) -> list[str]:
    """How the settings of the grid were compared."""
    if not suite.config.grid:
        return []
    search, rule = suite.config.search, "every setting is trained to its end"
    if search.method == "halving":
        times = " and ".join(f"{at:g}" for at in search.at)
        work = f"{Search(suite.members, search).work():.4g} trainings in place of {len(suite.members)}"
        rule = f"successive halving (arXiv 1502.07943), {search.keep:g} go on at {times} of the steps: {work}"
    return [f"setting: the best mean over seeds on dev; {rule}"]
