"""The runs of a suite as a fleet takes them: which may start, and what follows from one that has ended."""

import logging
import math
from collections.abc import Sequence
from functools import partial
from typing import Any

from lingo_ds.commands.evaluate import evaluate_saved
from lingo_ds.commands.suite_plan import PlannedRuns
from lingo_ds.commands.suite_state import SuiteState
from lingo_ds.commands.train import train_steps
from lingo_ds.distributed.process_group import DistEnv
from lingo_ds.monitor.fleet_progress import FleetProgress
from lingo_ds.monitor.report import write_report
from lingo_ds.training.fleet import FleetRun, Queue, Steps
from lingo_ds.training.page.page import try_write_page
from lingo_ds.training.search import Job
from lingo_ds.training.shared_backbone import SharedBackbone
from lingo_ds.training.trainer import UNFINISHED
from lingo_ds.utils import logging as logs
from lingo_ds.utils.errors import Mistake, UserError
from lingo_ds.utils.safe_read import read_json

logger = logging.getLogger(__name__)


class SuiteQueue(Queue):
    """The runs of a suite, in the order in which its search wants them trained.

    Attributes:
        env: this process among those that train them.
        display: how far they are.
        interrupted: whether runs were stopped, after which none starts.
    """

    def __init__(
        self,
        state: SuiteState,
        planned: PlannedRuns,
        env: DistEnv,
        *,
        backbone: SharedBackbone,
        display: FleetProgress,
    ):
        """Takes what the suite has reached, and what is known of the runs that are left."""
        self._state, self._planned, self.env, self._backbone = state, planned, env, backbone
        self.display = display
        self._failed: list[tuple[int, Sequence[Mistake]]] = []
        self.interrupted = False
        self._running, self._key = 0, None

    def next(self) -> FleetRun | None:
        """The next run, unless it must wait until the backbone may be loaded in another form."""
        job = self._take()
        if job is None:
            return None
        self._key, self._running = self._backbone_of(job), self._running + 1
        how_far = "" if job.until == 1 else f", to {job.until:g} of its steps"
        logger.info("%s%s", self._state.number(job), how_far)
        name, folder = self._state.name(job), self._state.suite.members[job.member].config.run_dir
        return FleetRun(job, logs.Speaker(name, folder), self._steps(job, name))

    def _take(self) -> Job | None:
        """Starts the next job of the search."""
        job = next(iter(self._state.search.ready()), None)
        if job is None or self.interrupted or not self._fits(job):
            return None
        self._state.search.start(job)
        return job

    def _fits(self, job: Job) -> bool:
        """Whether the backbone is there in the form that a job needs, or may be loaded in it."""
        return not self._running or self._backbone_of(job) == self._key

    def _backbone_of(self, job: Job) -> Any:
        return self._planned.backbones[self._state.suite.members[job.member].title]

    def _steps(self, job: Job, name: str) -> Steps[dict[str, Any]]:
        member = self._state.suite.members[job.member]
        return train_steps(
            member.config,
            self.env,
            build=self._backbone.build,
            watch=partial(self.display.line, name),
            alone=self._planned.plan.fleet.runs == 1,
            until=job.until,
            tested=lambda: self._state.search.chosen().get(member.task) == member.label,
        )

    def finished(self, run: FleetRun, report: dict[str, Any]) -> None:
        """Takes a run's report; where it was interrupted, no other starts."""
        self._running -= 1
        job: Job = run.key
        if report["outcome"] == "interrupted":
            self._stopped(job)
            return
        metric = self._state.suite.members[job.member].config.metric
        dev = (report["metrics"]["dev"] or {}).get(metric)
        logger.info("%s: dev %s %s", report["outcome"], metric, "-" if dev is None else f"{dev:.4f}")
        over = report["outcome"] not in UNFINISHED
        self._end(job, math.nan if dev is None else dev, over=over)

    def failed(self, run: FleetRun, error: UserError) -> None:
        """Leaves a run that its own mistake has ended; the others go on."""
        self._running -= 1
        for mistake in error.mistakes:
            logger.error("%s", mistake)
        self._end(run.key, None, mistakes=error.mistakes)

    def _stopped(self, job: Job) -> None:
        """Takes in that a signal has stopped a job."""
        self.interrupted = True

    def _end(
        self, job: Job, score: float | None, *, over: bool = True, mistakes: Sequence[Mistake] = ()
    ) -> None:
        """Takes in that a job has ended, and keeps what follows; `over`: its run has, too."""
        self._note_end(job, score, over=over, mistakes=mistakes)
        if self.env.is_main:
            self._state.write()

    def _note_end(self, job: Job, score: float | None, *, over: bool, mistakes: Sequence[Mistake]) -> None:
        self._state.ended(job, score)
        if mistakes:
            self._failed.append((job.member, mistakes))
        if over:
            self.display.ended()

    def mistakes(self) -> list[Mistake]:
        """The mistakes that ended runs, each with its run; none of settings that were not chosen anyway."""
        chosen = self._state.search.chosen()
        failed = [(self._state.suite.members[k], mistakes) for k, mistakes in self._failed]
        return [
            mistake._replace(where=f"{mistake.where} ({member.title}, seed {member.seed})")
            for member, mistakes in failed
            for mistake in mistakes
            if chosen.get(member.task, member.label) == member.label
        ]

    def test_chosen(self) -> None:
        """Evaluates on test what was chosen after its training had ended."""
        for k in self._state.untested(self.env):
            if self._may_test(k):
                self._test(k)

    def _may_test(self, k: int) -> bool:
        """Whether this process has a part in the test of a run."""
        return True

    def _test(self, k: int) -> None:
        member = self._state.suite.members[k]
        logger.info("test of %s, seed %d", member.title, member.seed)
        test = evaluate_saved(member.config, self.env, build=self._backbone.build)
        if self.env.is_main:
            path = member.config.run_dir / "report.json"
            report = read_json(path)
            report["metrics"]["test"], report["metrics_by_output"]["test"] = test.metrics, test.by_output
            write_report(path, report | {"task": test.task.to_dict()})
            try_write_page(member.config.run_dir)
