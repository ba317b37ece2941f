"""The verb `train`: config -> data -> plan -> backbone -> adapters -> training -> report."""

import json
import logging
import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from lingo_ds.config.run_config import RunConfig, from_anywhere
from lingo_ds.distributed import agreement
from lingo_ds.distributed.job import job
from lingo_ds.distributed.numerics import repeatable
from lingo_ds.distributed.process_group import DistEnv
from lingo_ds.evaluation.evaluate import Evaluation, remark_on_answers
from lingo_ds.models.adapted_model import AdaptedModel
from lingo_ds.monitor.progress import Progress, ProgressBar
from lingo_ds.monitor.report import summary_table, what_to_open, write_report
from lingo_ds.monitor.tensorboard import Tracker
from lingo_ds.training.build_model import build_model
from lingo_ds.training.fleet import Steps, run_alone
from lingo_ds.training.page.page import try_write_page
from lingo_ds.training.resume import find_start
from lingo_ds.training.saved_answers import save_answers
from lingo_ds.training.session import Session
from lingo_ds.training.setup import RunSetup, prepare
from lingo_ds.training.trainer import UNFINISHED
from lingo_ds.utils import logging as logs
from lingo_ds.utils.files import atomic_write, exclusive_lock
from lingo_ds.utils.units import as_bytes

logger = logging.getLogger(__name__)

Build = Callable[[RunSetup], AdaptedModel]
Watch = Callable[..., Progress]


def train(config: RunConfig, env: DistEnv) -> dict[str, Any]:
    """Trains, selects on dev, evaluates the selected adapter on test once; writes everything to `run_dir`.

    Returns:
        The report; its times are those of this process.

    Raises:
        UserError: for mistakes in config or input, before anything is trained; and where training diverges.
    """
    with job(config.to_yaml(), env, output=config.run_dir):
        return train_one(config, env)


def train_one(config: RunConfig, env: DistEnv) -> dict[str, Any]:
    """Does the work of `train` inside a job."""
    with repeatable_on_all(config.train.deterministic, env):
        report = run_alone(train_steps(config, env), timeout=config.train.timeout)
    if env.is_main:
        logs.results.print(summary_table(report))
        logs.results.print(what_to_open(config.run_dir), highlight=False, soft_wrap=True)
    return report


@contextmanager
def repeatable_on_all(wanted: bool, env: DistEnv) -> Iterator[None]:
    """While inside, operations give the same bits each time, where `wanted`, see `numerics.repeatable`.

    Raises:
        UserError: on every process, where one of them cannot have it.
    """
    with ExitStack() as held:
        with agreement.errors_raised_on_all(env):
            held.enter_context(repeatable(wanted))
        yield


def train_steps(
    config: RunConfig,
    env: DistEnv,
    *,
    build: Build = build_model,
    watch: Watch = ProgressBar,
    alone: bool = True,
    until: float = 1.0,
    tested: Callable[[], bool] = lambda: True,
) -> Steps[dict[str, Any]]:
    """One run from its data to its report, as steps that may be computed with those of other runs.

    Args:
        config: the run's settings.
        env: this process's rank and device.
        build: makes the model, maybe on a backbone that others use, too.
        watch: makes what shows how far the run is.
        alone: whether its steps are computed by themselves.
        until: share of the plan's steps after which it pauses, to go on later from its checkpoint.
        tested: whether its best adapter is evaluated on test; asked once training is over.
    """
    with ExitStack() as held:
        with agreement.errors_raised_on_all(env):
            held.enter_context(logs.written_to(config.run_dir, is_main=env.is_main))
            if env.is_main:
                held.enter_context(exclusive_lock(config.run_dir, setting="output_dir"))
        setup, checkpoint = find_start(prepare(config, env))
        for line in setup.plan.equations():
            logger.info("%s", line)
        model = build(setup)
        held.callback(model.detach)
        logger.info(
            "process 0 holds %s of %s backbone entries, in %s",
            f"{model.backbone.held_entries():,}",
            f"{setup.spec.parameters:,}",
            as_bytes(model.backbone.held_bytes()),
        )
        session = Session(setup, model, alone=alone)
        first_step = 1
        if checkpoint:
            session.resume(checkpoint)
            first_step += checkpoint.state.step
        _write_inputs(setup)
        pause = math.ceil(until * setup.plan.steps)
        with _watching(setup, first_step, watch) as (tracker, progress):
            outcome = yield from session.train(first_step, tracker, progress, pause_after=pause)
        test = None
        if session.best.step and outcome.reason not in UNFINISHED and tested():
            test = session.evaluate_best("test")
            if remark := remark_on_answers(test, setup.data.splits["test"].labels):
                logger.warning("test: %s", remark)
        report = session.report(outcome, test)
        if env.is_main:
            _write_results(session, setup, test, report)
        return report


@contextmanager
def _watching(setup: RunSetup, first_step: int, watch: Watch) -> Iterator[tuple[Tracker, Progress]]:
    """TensorBoard and the progress bar, on global rank 0."""
    env, folder = setup.env, setup.config.run_dir
    tracker = Tracker.null()
    if env.is_main:
        tracker = Tracker(folder / "tensorboard", purge_from=first_step, lines=folder / "metrics.jsonl")
    tracker.text(first_step, "run/config", f"```yaml\n{setup.resolved_config.to_yaml()}```")
    progress = watch(setup.plan.steps, "step", enabled=env.is_main, done=first_step - 1, console=logs.console)
    try:
        with progress:
            yield tracker, progress
    finally:
        tracker.close()


def _write_inputs(setup: RunSetup) -> None:
    """Writes the resolved config and the plan, so that the run can be repeated from its folder."""
    if setup.env.is_main:
        folder = setup.config.run_dir
        config_text = from_anywhere(setup.resolved_config).to_yaml()
        atomic_write(folder / "config.yaml", lambda aside: aside.write_text(config_text))
        plan_text = json.dumps(setup.plan.to_dict(), indent=2)
        atomic_write(folder / "plan.json", lambda aside: aside.write_text(plan_text))


def _write_results(
    session: Session, setup: RunSetup, test: Evaluation | None, report: dict[str, Any]
) -> None:
    """Writes answers, report.json and, unless the run goes on in this very process, the page on them."""
    if session.best_on_dev:
        save_answers(setup, session.best_on_dev, split="dev", step=session.best.step)
    if test:
        save_answers(setup, test, split="test")
    write_report(setup.config.run_dir / "report.json", report)
    if report["outcome"] != "paused":
        try_write_page(setup.config.run_dir)
    _log_interruption(report)


def _log_interruption(report: dict[str, Any]) -> None:
    """Tells how an interrupted run is resumed."""
    if report["outcome"] != "interrupted":
        return
    last, steps = report["checkpoints"]["last"], report["steps"]
    where = "from there" if last == steps else "from an earlier checkpoint"
    if last and last != steps:
        where = f"from step {last}"
    logger.info("interrupted after step %d: run the same command again to resume %s", steps, where)
