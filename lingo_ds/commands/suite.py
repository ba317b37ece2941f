"""Many runs over one loaded backbone, several of them at a time, and the table of their results."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from lingo_ds.commands import baseline
from lingo_ds.commands.evaluate import evaluate_one
from lingo_ds.commands.group_queue import GroupQueue
from lingo_ds.commands.plan import group_size, plan_one
from lingo_ds.commands.suite_plan import PlannedRuns, by_title, plan_passes, plan_runs
from lingo_ds.commands.suite_queue import SuiteQueue
from lingo_ds.commands.suite_state import SuiteState
from lingo_ds.commands.train import repeatable_on_all
from lingo_ds.config.known_tasks import missing_folder
from lingo_ds.config.suite_config import Member, Suite
from lingo_ds.distributed import agreement, process_group, watchdog
from lingo_ds.distributed.job import job
from lingo_ds.distributed.job_log import JobLog
from lingo_ds.distributed.process_group import DistEnv
from lingo_ds.monitor.fleet_progress import FleetProgress
from lingo_ds.monitor.suite_table import results_table
from lingo_ds.planning.fleet import FleetPlan
from lingo_ds.training.fleet import Fleet
from lingo_ds.training.shared_backbone import SharedBackbone
from lingo_ds.utils import logging as logs
from lingo_ds.utils.errors import LoneError, Mistake, UserError

logger = logging.getLogger(__name__)


def train_suite(suite: Suite, env: DistEnv) -> None:
    """Trains what is not finished yet, each run into its own folder, and writes the table after each.

    Raises:
        UserError: for mistakes in the data or the plan of any task, before anything is trained; otherwise as
            `train` does, once all other runs have ended.
    """
    with _runs(suite, env) as backbone:
        state = SuiteState(suite, env)
        left = state.unfinished() or [suite.members[k] for k in state.untested(env)]
        mistakes, interrupted = [], False
        if left:
            planned = plan_runs(suite, left, env)
            for line in planned.plan.equations():
                logger.info("%s", line)
            with _queue(state, planned, env, backbone) as queue:
                _train(suite, queue, planned.plan.fleet)
                queue.test_chosen()
            mistakes, interrupted = queue.mistakes(), queue.interrupted
    if env.is_main:  # the other processes have left: what follows needs none of them
        _show(state, interrupted=interrupted)
    if mistakes:
        raise UserError(mistakes, on_all=True)


def _show(state: SuiteState, *, interrupted: bool) -> None:
    """Computes the baselines that are asked for, and prints the table of results."""
    config = state.suite.config
    if interrupted:
        logger.info("interrupted; run the same command again to resume the suite")
    elif config.baselines:
        baseline.compute_of_suite(state.suite)
    logs.results.print(results_table(config.name, state.write()))
    logs.results.print(f"table: {config.folder / 'results.md'} and .csv", highlight=False, soft_wrap=True)


def _train(suite: Suite, queue: SuiteQueue, fleet: FleetPlan) -> None:
    """Trains what the queue gives to these processes."""
    timeout = max(member.config.train.timeout for member in suite.members)
    deterministic = any(member.config.train.deterministic for member in suite.members)
    with repeatable_on_all(deterministic, queue.env), queue.display:
        Fleet(queue, size=fleet.runs, tokens=fleet.tokens, timeout=timeout).run()


@contextmanager
def _queue(
    state: SuiteState, planned: PlannedRuns, env: DistEnv, backbone: SharedBackbone
) -> Iterator[SuiteQueue]:
    """The queue of this process: that of all processes, or of its group, in which it is while inside."""
    runs, done, groups = len(state.suite.members), state.ended_before, planned.plan.groups
    if groups.groups == 1:
        display = FleetProgress(runs, done=done, enabled=env.is_main, console=logs.console)
        yield SuiteQueue(state, planned, env, backbone=backbone, display=display)
        return
    log = JobLog()
    with process_group.divided(groups.processes, env) as own, _mistakes_end_all_groups():
        watchdog.join_group(own.group)
        if own.is_main:
            logs.set_up(rank=env.global_rank, is_main=True)
        console = logs.console if env.is_main else None
        display = FleetProgress(runs, done=done, enabled=own.is_main, console=console)
        yield GroupQueue(log, state, planned, own, backbone=backbone, display=display)
    watchdog.join_group(0)


@contextmanager
def _mistakes_end_all_groups() -> Iterator[None]:
    """A mistake that ends one group is told to the others, which know nothing of it.

    Raises:
        LoneError: in its place.
    """
    try:
        yield
    except UserError as error:
        raise LoneError(error.mistakes) from error


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
    """Every run of a chosen setting, as global rank 0 sees the folders; the same on every process."""
    chosen = SuiteState(suite, env).search.chosen()
    if not chosen:
        rule, fix = "has no chosen setting yet", "train the suite to its end first"
        raise UserError(Mistake("grid", list(suite.config.grid), rule, fix), on_all=True)
    return [member for member in suite.members if chosen.get(member.task) == member.label]


def plan_suite(suite: Suite, env: DistEnv) -> None:
    """Prints the plan of every task and setting, and of the passes that its runs share.

    All seeds of a task and setting have the same plan.
    """
    with _runs(suite, env):
        plans = []
        for title, config in by_title(suite.members).items():
            if env.is_main:
                text = f"\n{title}, {len(suite.config.seeds)} runs"
                logs.results.print(text, highlight=False, markup=False)
            plans.append(plan_one(config, env, group=group_size(suite)))
        plan = plan_passes(plans, suite, len(suite.members), env)
        if env.is_main:
            logs.results.print(f"\n{suite.config.name}, {len(suite.members)} runs", highlight=False)
            for line in plan.equations():
                logs.results.print(line, highlight=False, soft_wrap=True)


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
