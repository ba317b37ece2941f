"""Many runs one after the other over one loaded backbone, and the table of their results."""

import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from lingo_ds.commands.evaluate import evaluate_one
from lingo_ds.commands.plan import plan_one
from lingo_ds.commands.train import train_steps
from lingo_ds.config.known_tasks import missing_folder, registry
from lingo_ds.config.run_config import RunConfig, from_anywhere
from lingo_ds.config.suite_config import Member, SearchConfig, Suite
from lingo_ds.config.yaml import parse_yaml
from lingo_ds.distributed import agreement
from lingo_ds.distributed.job import job
from lingo_ds.distributed.process_group import DistEnv
from lingo_ds.models.adapted_model import AdaptedModel
from lingo_ds.models.backbone.backbone import Backbone, BackboneOptions
from lingo_ds.monitor.suite_table import SettingResult, TaskResult, results_table, write_results
from lingo_ds.planning.automatic import AUTOMATIC
from lingo_ds.training.build_model import adapt, backbone_options, load
from lingo_ds.training.fleet import run_alone
from lingo_ds.training.report import RunReport, read_report
from lingo_ds.training.search import Search
from lingo_ds.training.setup import RunSetup, prepare
from lingo_ds.utils import logging as logs
from lingo_ds.utils.errors import Mistake, UserError

logger = logging.getLogger(__name__)


class SharedBackbone:
    """The backbone of all runs: loaded for the first, and again only where a run needs it in another form."""

    def __init__(self) -> None:
        """Loads nothing yet."""
        self._key: Any = None
        self._backbone: Backbone | None = None
        self._last: AdaptedModel | None = None

    def build(self, setup: RunSetup) -> AdaptedModel:
        """Makes a run's model: the backbone with a new bank, in place of the last run's bank."""
        if self._last:
            self._last.detach()
        self._last = None
        options = backbone_options(setup)
        key = setup.backbone_fingerprint, setup.dtype, _without_batch(options)
        if self._backbone is None or key != self._key:
            self._backbone = None  # frees its memory for the next one
            self._backbone = load(setup, options)
            self._key = key
            logger.info("backbone loaded; all runs that need it in this form share it")
        self._last = adapt(setup, self._backbone)
        return self._last


def _without_batch(options: BackboneOptions) -> BackboneOptions:
    """The options that the shards depend on: DeepSpeed requires a micro-batch, but does not use it here."""
    if options.ds_config is None:
        return options
    kept = {key: value for key, value in options.ds_config.items() if key != "train_micro_batch_size_per_gpu"}
    return replace(options, ds_config=kept)


def train_suite(suite: Suite, env: DistEnv) -> None:
    """Trains what is not finished yet, each run into its own folder, and writes the table after each.

    Raises:
        UserError: for mistakes in the data or the plan of any task, before anything is trained; otherwise as
            `train` does.
    """
    with _runs(suite, env) as backbone:
        finished = _all_finished(suite, env)
        _check_plans([one for one, skip in zip(suite.members, finished, strict=True) if not skip], env)
        for number, (member, skip) in enumerate(zip(suite.members, finished, strict=True), 1):
            run = f"run {number} of {len(suite.members)}: {member.title}, seed {member.seed}"
            logger.info("%s: already finished" if skip else "%s", run)
            if skip:
                continue
            steps = train_steps(member.config, env, build=backbone.build)
            report = run_alone(steps, timeout=member.config.train.timeout)
            if env.is_main:
                _write_table(suite)
            if report["outcome"] == "interrupted":
                logger.info("interrupted; run the same command again to resume the suite")
                break
        if env.is_main:
            logs.results.print(results_table(suite.config.name, _write_table(suite)))
            table = suite.config.folder / "results.md"
            logs.results.print(f"table: {table} and .csv", highlight=False, soft_wrap=True)


def evaluate_suite(suite: Suite, env: DistEnv) -> None:
    """Evaluates the saved adapters of the chosen settings, without a grid all, on their test splits again.

    Raises:
        UserError: where a run has no adapter, or no setting is chosen yet.
    """
    with _runs(suite, env) as backbone:
        for member in _chosen_members(suite, env):
            if env.is_main:
                title = f"{member.title}, seed {member.seed}"
                logs.results.print(title, highlight=False, markup=False)
            evaluate_one(member.config, env, build=backbone.build)


def _chosen_members(suite: Suite, env: DistEnv) -> list[Member]:
    """Every run of a chosen setting, as global rank 0 sees the reports; the same on every process."""
    chosen = None
    with agreement.errors_raised_on_all(env):
        if env.is_main:
            chosen = _search(suite, _reports(suite)).chosen()
            if not chosen:
                rule, fix = "has no chosen setting yet", "train the suite to its end first"
                raise UserError(Mistake("grid", list(suite.config.grid), rule, fix))
    chosen = agreement.broadcast_json(chosen, env)
    return [member for member in suite.members if chosen.get(member.task) == member.label]


def plan_suite(suite: Suite, env: DistEnv) -> None:
    """Prints the plan of every task and setting; all its seeds have the same plan."""
    with _runs(suite, env):
        for title, config in {member.title: member.config for member in suite.members}.items():
            if env.is_main:
                text = f"\n{title}, {len(suite.config.seeds)} runs"
                logs.results.print(text, highlight=False, markup=False)
            plan_one(config, env)


@contextmanager
def _runs(suite: Suite, env: DistEnv) -> Iterator[SharedBackbone]:
    """Opens the job around all runs, after checking that the data of every task exists."""
    with job(suite.to_yaml(), env, output=suite.config.folder):
        agreement.run_once_per_host(lambda: _check_data(suite), env)
        yield SharedBackbone()


def _check_data(suite: Suite) -> None:
    """Raises for every task whose folder is missing."""
    by_task = {member.task: member.config.data for member in suite.members}
    found = [missing_folder(data.task, path=data.path, root=data.root) for data in by_task.values()]
    mistakes = [mistake for mistake in found if mistake]
    if mistakes:
        existing = [name for name, mistake in zip(by_task, found, strict=True) if not mistake]
        fix = f"set data.root, or choose with tasks=[{','.join(existing)}]" if existing else "set data.root"
        raise UserError([Mistake(one.where, one.value, one.rule, fix) for one in mistakes])


def _check_plans(members: Sequence[Member], env: DistEnv) -> None:
    """Reads the data of every task and plans its runs, since the last run may start in days only."""
    mistakes: dict[Mistake, None] = {}
    for title, config in {member.title: member.config for member in members}.items():
        logger.info("data and plan of %s", title)
        try:
            prepare(config, env)
        except UserError as error:  # raised on all processes, so they all continue with the next task
            mistakes |= dict.fromkeys(error.mistakes)
    if mistakes:
        raise UserError(list(mistakes), on_all=True)


def _all_finished(suite: Suite, env: DistEnv) -> list[bool]:
    """Whether each run is finished, as global rank 0 sees the folders; the same on every process."""
    finished = None
    with agreement.errors_raised_on_all(env):
        if env.is_main:
            finished = [report is not None for report in _reports(suite)]
    return agreement.broadcast_json(finished, env)


def _finished_report(member: Member) -> RunReport | None:
    """The report of this very run; None where it was not finished, or made with another config."""
    report = read_report(member.config.run_dir / "report.json")
    if report is None or report.outcome == "interrupted" or not _same_config(member.config):
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


def _write_table(suite: Suite) -> list[TaskResult]:
    results = _results(suite)
    write_results(suite.config.folder, results, notes=_notes(suite, results))
    return results


def _reports(suite: Suite) -> list[RunReport | None]:
    """The report of each run that is finished."""
    return [_finished_report(member) for member in suite.members]


def _search(suite: Suite, reports: Sequence[RunReport | None]) -> Search:
    """The search over the grid as the finished runs leave it: every setting to its end."""
    search = Search(suite.members, SearchConfig())
    while job := search.next():
        if report := reports[job.member]:
            score = _metric(report, "dev", suite.members[job.member].config)
            search.finished(job, math.nan if score is None else score)
    return search


def _metric(report: RunReport, split: str, config: RunConfig) -> float | None:
    return (report.metrics.get(split) or {}).get(config.metric)


def _results(suite: Suite) -> list[TaskResult]:
    """The results of each task: of the finished runs with its chosen setting."""
    reports = _reports(suite)
    search = _search(suite, reports)
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
    dev, test = ([_metric(report, split, config) for report in reports] for split in ("dev", "test"))
    return TaskResult(task, config.metric, planned, dev, test, published, tried)


def _notes(suite: Suite, results: Sequence[TaskResult]) -> list[str]:
    """The origin of the numbers of the table, ours first."""
    first = suite.members[0].config
    ours = f"dev, test: {first.backbone.path}, selected on dev, test evaluated once; sd over seeds"
    shown = dict.fromkeys(model for result in results for model in result.published)
    models = {name: registry().models[name] for name in shown}
    published = [f"{name}: {model.source}; {model.note}" for name, model in models.items()]
    return [ours, *_search_notes(suite), *published]


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
