"""`lingo-ds baseline`: one-hot logistic regression and a small CNN on a run's splits, beside the run."""

import logging
from collections.abc import Sequence
from typing import get_args

from lingo_ds.commands.suite_results import finished_report
from lingo_ds.config.run_config import RunConfig
from lingo_ds.config.suite_config import BaselineName, Member, Suite
from lingo_ds.distributed.process_group import DistEnv
from lingo_ds.monitor.baselines import ModelResult, comparison_table, read_baselines, write_baselines
from lingo_ds.training.baselines.choose import compute_baseline, made_from
from lingo_ds.training.baselines.rows import find_rows
from lingo_ds.utils import logging as logs
from lingo_ds.utils.files import default_cache, make_folder, report_disk_full

logger = logging.getLogger(__name__)


def baseline(config: RunConfig, env: DistEnv, *, names: Sequence[BaselineName]) -> None:
    """Computes baselines of a run into its `baselines.json` and prints them beside it; global rank 0 does it.

    The run itself need not have been trained, and its backbone is not read.

    Raises:
        UserError: for mistakes in the data, or where nothing can be written.
    """
    if env.is_main:
        _compute_and_show(config, names, config.name)


def baseline_suite(suite: Suite, env: DistEnv, *, names: Sequence[BaselineName]) -> None:
    """Computes baselines of every task of a suite, into the folder of each of its runs.

    Raises:
        UserError: as `baseline`.
    """
    if env.is_main:
        for task, members in _by_task(suite).items():
            _compute_and_show(members[0].config, names, task)
            _copy_to_all(members)


def compute_of_suite(suite: Suite) -> None:
    """Computes the baselines that a suite asks for, where its folders lack them; for one process.

    Those of a task are of its first run: its seed, and of a grid its first setting.

    Raises:
        UserError: as `baseline`.
    """
    for task, members in _by_task(suite).items():
        logger.info("baselines of %s", task)
        _compute(members[0].config, suite.config.baselines or ())
        _copy_to_all(members)


def _by_task(suite: Suite) -> dict[str, list[Member]]:
    found: dict[str, list[Member]] = {}
    for member in suite.members:
        found.setdefault(member.task, []).append(member)
    return found


def _copy_to_all(members: Sequence[Member]) -> None:
    """Writes the baselines of a task's first run into the folders of its other runs."""
    baselines = read_baselines(members[0].config.run_dir)
    for member in members[1:]:
        write_baselines(member.config.run_dir, baselines)


def _compute_and_show(config: RunConfig, names: Sequence[BaselineName], task: str) -> None:
    kind = _compute(config, names)
    baselines = read_baselines(config.run_dir)
    models = [*_run_itself(config), *(baselines[name] for name in names)]
    logs.results.print(comparison_table(task, kind, models))
    logs.results.print(f"baselines: {config.run_dir / 'baselines.json'}", highlight=False, soft_wrap=True)


def _compute(config: RunConfig, names: Sequence[BaselineName]) -> str:
    """Computes what the run's folder lacks of the named baselines; returns the task's kind.

    One that is there is kept if it was made from the same data and settings; others are dropped.
    """
    folder, cache = config.run_dir, config.data.cache_dir or default_cache()
    make_folder(folder, setting="output_dir")
    make_folder(cache, setting="data.cache_dir")
    with report_disk_full(folder):
        data = find_rows(config, cache=cache)
        there = read_baselines(folder)
        kept = {
            name: there[name]
            for name in get_args(BaselineName)
            if name in there and there[name].made_from == made_from(name, data)
        }
        for name in names:
            if name in kept:
                logger.info("baseline %s: is there, of the same data and settings", name)
                continue
            kept[name] = compute_baseline(name, data)
            write_baselines(folder, kept)
    return data.task.kind


def _run_itself(config: RunConfig) -> list[ModelResult]:
    """The run as one more model, where it has finished with this very config."""
    report = finished_report(config)
    if report is None:
        logger.info("no finished run of these settings in %s: the baselines stand alone", config.run_dir)
        return []
    metrics = {split: scores for split, scores in report.metrics.items() if scores}
    trained, seconds = report.parameters.get("trainable"), report.throughput.get("seconds")
    return [ModelResult(title="this run", parameters=trained, seconds=seconds, metrics=metrics)]
