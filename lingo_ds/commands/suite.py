"""Many runs one after the other over one loaded backbone, and the table of what they reached."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from lingo_ds.commands.evaluate import evaluate_one
from lingo_ds.commands.plan import plan_one
from lingo_ds.commands.train import train_one
from lingo_ds.config.known_tasks import missing_folder, registry
from lingo_ds.config.run_config import RunConfig
from lingo_ds.config.suite_config import Member, Suite
from lingo_ds.config.yaml import parse_yaml
from lingo_ds.distributed import agreement
from lingo_ds.distributed.job import job
from lingo_ds.distributed.process_group import DistEnv
from lingo_ds.models.adapted_model import AdaptedModel
from lingo_ds.models.backbone.backbone import Backbone, BackboneOptions, load_backbone
from lingo_ds.monitor.suite_table import TaskResult, results_table, write_results
from lingo_ds.training.setup import RunSetup, adapt, backbone_options, prepare
from lingo_ds.utils import logging as logs
from lingo_ds.utils.errors import Mistake, UserError
from lingo_ds.utils.safe_read import read_json

logger = logging.getLogger(__name__)


class SharedBackbone:
    """The backbone of all runs: loaded for the first, and again only where one needs it loaded otherwise."""

    def __init__(self) -> None:
        self._key: Any = None
        self._backbone: Backbone | None = None
        self._last: AdaptedModel | None = None

    def build(self, setup: RunSetup) -> AdaptedModel:
        """A run's model: the backbone with a new bank, after the last run's bank was taken off."""
        if self._last:
            self._last.detach()
        self._last = None
        options = backbone_options(setup)
        key = setup.backbone_fingerprint, setup.dtype, _without_batch(options)
        if key != self._key:
            self._backbone = None  # before the next one needs its memory
            self._backbone = load_backbone(setup.spec, options, dtype=setup.dtype, env=setup.env)
            self._key = key
            logger.info("backbone loaded, for all runs that need it in this way")
        self._last = adapt(setup, self._backbone)
        return self._last


def _without_batch(options: BackboneOptions) -> BackboneOptions:
    """The options without the micro-batch, which DeepSpeed's settings must name and nothing here follows."""
    if options.ds_config is None:
        return options
    kept = {key: value for key, value in options.ds_config.items() if key != "train_micro_batch_size_per_gpu"}
    return replace(options, ds_config=kept)


def train_suite(suite: Suite, env: DistEnv) -> None:
    """Trains what is not finished yet, each run into its own folder, and writes the table after each.

    Raises:
        UserError: for mistakes in the data or the plan of any task, before anything is trained; else as a
            single run.
    """
    with _runs(suite, env) as backbone:
        finished = _all_finished(suite, env)
        _require_plans([one for one, over in zip(suite.members, finished, strict=True) if not over], env)
        for number, member in enumerate(suite.members, 1):
            what = f"run {number} of {len(suite.members)}: {member.task}, seed {member.seed}"
            if finished[number - 1]:
                logger.info("%s: finished before", what)
                continue
            logger.info("%s", what)
            report = train_one(member.config, env, build=backbone.build)
            if env.is_main:
                _write_table(suite)
            if report["outcome"] == "interrupted":
                logger.info("interrupted; the same command goes on there")
                break
        if env.is_main:
            logs.results.print(results_table(suite.config.name, _write_table(suite)))
            where = suite.config.folder / "results.md"
            logs.results.print(f"table: {where} and .csv", highlight=False, soft_wrap=True)


def evaluate_suite(suite: Suite, env: DistEnv) -> None:
    """Evaluates every run's saved adapter on its test split again.

    Raises:
        UserError: where a run has none.
    """
    with _runs(suite, env) as backbone:
        for member in suite.members:
            if env.is_main:
                logs.results.print(f"{member.task}, seed {member.seed}", highlight=False)
            evaluate_one(member.config, env, build=backbone.build)


def plan_suite(suite: Suite, env: DistEnv) -> None:
    """Prints the plan of every task; its seeds are planned alike."""
    with _runs(suite, env):
        for task, config in {member.task: member.config for member in suite.members}.items():
            if env.is_main:
                logs.results.print(f"\n{task}, {len(suite.config.seeds)} runs", highlight=False)
            plan_one(config, env)


@contextmanager
def _runs(suite: Suite, env: DistEnv) -> Iterator[SharedBackbone]:
    """The job around all runs, with the data of every task there."""
    with job(suite.to_yaml(), env, output=suite.config.folder):
        agreement.run_once_per_host(lambda: _require_data(suite), env)
        yield SharedBackbone()


def _require_data(suite: Suite) -> None:
    by_task = {member.task: member.config.data for member in suite.members}
    found = [missing_folder(data.task, path=data.path, root=data.root) for data in by_task.values()]
    mistakes = [mistake for mistake in found if mistake]
    if mistakes:
        there = [name for name, mistake in zip(by_task, found, strict=True) if not mistake]
        fix = f"set data.root, or choose with tasks=[{','.join(there)}]" if there else "set data.root"
        raise UserError([Mistake(one.where, one.value, one.rule, fix) for one in mistakes])


def _require_plans(members: Sequence[Member], env: DistEnv) -> None:
    """Reads the data of every task and plans its run, since the last one's turn may come in days."""
    mistakes = {}
    for task, config in {member.task: member.config for member in members}.items():
        logger.info("data and plan of %s", task)
        try:
            prepare(config, env)
        except UserError as error:  # on all processes alike: so they all go on to the next task
            mistakes |= dict.fromkeys(error.mistakes)
    if mistakes:
        raise UserError(list(mistakes), on_all=True)


def _all_finished(suite: Suite, env: DistEnv) -> list[bool]:
    """Of each run, as global rank 0 finds it, on every process."""
    finished = None
    with agreement.errors_raised_on_all(env):
        if env.is_main:
            finished = [_finished(member) for member in suite.members]
    return agreement.broadcast_json(finished, env)


def _finished(member: Member) -> bool:
    """Whether this very run has been made: its report says so, and its config is the same."""
    report = _report(member.config.run_dir)
    return bool(report) and report["outcome"] != "interrupted" and _same_config(member.config)


def _report(folder: Path) -> dict[str, Any] | None:
    """A run's report; None where there is none.

    Raises:
        UserError: where it is something else.
    """
    path = folder / "report.json"
    try:
        report = read_json(path)
        return {"outcome": report["outcome"], "metrics": report["metrics"]}
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError):
        fix = "remove it: the run is then made again"
        raise UserError(Mistake("output_dir", path, "is no report of a run", fix)) from None


def _same_config(config: RunConfig) -> bool:
    try:
        written = (config.run_dir / "config.yaml").read_text(encoding="utf-8")
        return parse_yaml(written) == parse_yaml(config.to_yaml())
    except (OSError, ValueError):
        return False


def _write_table(suite: Suite) -> list[TaskResult]:
    results = _results(suite)
    write_results(suite.config.folder, results, notes=_notes(suite, results))
    return results


def _results(suite: Suite) -> list[TaskResult]:
    """What the finished runs of each task reached, from their reports."""
    results = {}
    for member in suite.members:
        metric = member.config.metric
        known = registry().tasks.get(member.config.data.task)
        published = known.scores if known and known.metric == metric else {}
        result = results.setdefault(member.task, TaskResult(member.task, metric, 0, [], [], published))
        results[member.task] = result._replace(planned=result.planned + 1)
        if _finished(member):
            metrics = _report(member.config.run_dir)["metrics"]
            for split in ("dev", "test"):
                getattr(result, split).append((metrics[split] or {}).get(metric))
    return list(results.values())


def _notes(suite: Suite, results: Sequence[TaskResult]) -> list[str]:
    """Where the numbers of the table come from."""
    first = suite.members[0].config
    ours = f"dev, test: {first.backbone.path}, selected on dev, test evaluated once; sd over seeds"
    shown = dict.fromkeys(model for result in results for model in result.published)
    models = {name: registry().models[name] for name in shown}
    return [ours, *(f"{name}: {model.source}; {model.note}" for name, model in models.items())]
