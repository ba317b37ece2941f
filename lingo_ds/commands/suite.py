"""Many runs one after the other over one loaded backbone, and the table of their results."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from lingo_ds.commands.evaluate import evaluate_one
from lingo_ds.commands.plan import plan_one
from lingo_ds.commands.train import train_steps
from lingo_ds.config.known_tasks import missing_folder, registry
from lingo_ds.config.run_config import RunConfig, from_anywhere
from lingo_ds.config.suite_config import Member, Suite
from lingo_ds.config.yaml import parse_yaml
from lingo_ds.distributed import agreement
from lingo_ds.distributed.job import job
from lingo_ds.distributed.process_group import DistEnv
from lingo_ds.models.adapted_model import AdaptedModel
from lingo_ds.models.backbone.backbone import Backbone, BackboneOptions
from lingo_ds.monitor.suite_table import TaskResult, results_table, write_results
from lingo_ds.planning.automatic import AUTOMATIC
from lingo_ds.training.build_model import adapt, backbone_options, load
from lingo_ds.training.fleet import run_alone
from lingo_ds.training.report import RunReport, read_report
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
            run = f"run {number} of {len(suite.members)}: {member.task}, seed {member.seed}"
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
    """Evaluates every run's saved adapter on its test split again.

    Raises:
        UserError: where a run has no adapter.
    """
    with _runs(suite, env) as backbone:
        for member in suite.members:
            if env.is_main:
                logs.results.print(f"{member.task}, seed {member.seed}", highlight=False)
            evaluate_one(member.config, env, build=backbone.build)


def plan_suite(suite: Suite, env: DistEnv) -> None:
    """Prints the plan of every task; all its seeds have the same plan."""
    with _runs(suite, env):
        for task, config in {member.task: member.config for member in suite.members}.items():
            if env.is_main:
                logs.results.print(f"\n{task}, {len(suite.config.seeds)} runs", highlight=False)
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
    """Reads the data of every task and plans its run, since the last run may start in days only."""
    mistakes: dict[Mistake, None] = {}
    for task, config in {member.task: member.config for member in members}.items():
        logger.info("data and plan of %s", task)
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
            finished = [_finished_report(member) is not None for member in suite.members]
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


def _results(suite: Suite) -> list[TaskResult]:
    """The results of each task's finished runs, from their reports."""
    by_task: dict[str, list[Member]] = {}
    for member in suite.members:
        by_task.setdefault(member.task, []).append(member)
    return [_result(task, members) for task, members in by_task.items()]


def _result(task: str, members: Sequence[Member]) -> TaskResult:
    config = members[0].config
    known = registry().tasks.get(config.data.task) if config.data.task else None
    published = known.scores if known and known.metric == config.metric else {}
    metrics = [report.metrics for member in members if (report := _finished_report(member))]
    dev, test = ([(one.get(split) or {}).get(config.metric) for one in metrics] for split in ("dev", "test"))
    return TaskResult(task, config.metric, len(members), dev, test, published)


def _notes(suite: Suite, results: Sequence[TaskResult]) -> list[str]:
    """The origin of the numbers of the table, ours first."""
    first = suite.members[0].config
    ours = f"dev, test: {first.backbone.path}, selected on dev, test evaluated once; sd over seeds"
    shown = dict.fromkeys(model for result in results for model in result.published)
    models = {name: registry().models[name] for name in shown}
    return [ours, *(f"{name}: {model.source}; {model.note}" for name, model in models.items())]
