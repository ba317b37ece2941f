"""The runs of a suite as a fleet takes them: which may start, and what follows from one that has ended."""

import json
import logging
import math
from collections import deque
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from lingo_ds.commands.evaluate import evaluate_saved
from lingo_ds.commands.suite_results import all_reports, metric_of, write_table
from lingo_ds.commands.train import train_steps
from lingo_ds.config.suite_config import Member, Suite
from lingo_ds.distributed import agreement
from lingo_ds.distributed.process_group import DistEnv
from lingo_ds.monitor.fleet_progress import FleetProgress
from lingo_ds.monitor.report import write_report
from lingo_ds.planning.plan import RunPlan
from lingo_ds.training.fleet import FleetRun, Steps
from lingo_ds.training.search import Job, Search
from lingo_ds.training.shared_backbone import SharedBackbone
from lingo_ds.training.trainer import UNFINISHED
from lingo_ds.utils import logging as logs
from lingo_ds.utils.errors import Mistake, UserError
from lingo_ds.utils.files import atomic_write
from lingo_ds.utils.safe_read import read_json

logger = logging.getLogger(__name__)


class Planned(NamedTuple):
    """What is known of a run before it starts: its plan, and which loaded backbone it needs."""

    plan: RunPlan
    backbone: Any


class SuiteQueue:
    """The runs of a suite, in the order in which its search wants them trained.

    Attributes:
        search: which settings go on.
        planned: by title, what is known of the runs that may start.
        together: how many of them advance at a time.
        display: how far they are.
    """

    def __init__(self, suite: Suite, env: DistEnv, backbone: SharedBackbone):
        self._suite, self._env, self._backbone = suite, env, backbone
        self._scores = _scores(suite, env)
        self.search = Search(suite.members, suite.config.search)
        self._restore_search()
        self.planned: dict[str, Planned] = {}
        self.together = 1
        self.display = FleetProgress(
            len(suite.members), done=len(self._scores), enabled=env.is_main, console=logs.console
        )
        self._failed: list[tuple[Member, list[Mistake]]] = []
        self._running, self._key = 0, None
        self._due: deque[Job] = deque()
        self._interrupted = False
        self._take_jobs()

    def unfinished(self) -> list[Member]:
        """The runs that have not ended, and may start."""
        dropped = {
            (task, one.setting)
            for task, tried in self.search.history().items()
            for one in tried
            if one.dropped
        }
        return [
            member
            for k, member in enumerate(self._suite.members)
            if k not in self._scores and (member.task, member.label) not in dropped
        ]

    def _take_jobs(self) -> None:
        """Takes what the search wants trained; a run that had ended before is answered at once."""
        while job := self.search.next():
            if job.member not in self._scores:
                self._due.append(job)
                continue
            logger.info("%s: already finished", self._number(job))
            self.search.finished(job, self._scores[job.member])

    def _name(self, job: Job) -> str:
        member = self._suite.members[job.member]
        return f"{member.title}, seed {member.seed}"

    def _number(self, job: Job) -> str:
        return f"run {job.member + 1} of {len(self._suite.members)}: {self._name(job)}"

    def next(self) -> FleetRun | None:
        """The next run, unless it must wait until the backbone may be loaded in another form."""
        if self._interrupted or not self._due:
            return None
        member = self._suite.members[self._due[0].member]
        key = self.planned[member.title].backbone
        if self._running and key != self._key:
            return None
        job = self._due.popleft()
        name = self._name(job)
        self._key, self._running = key, self._running + 1
        how_far = "" if job.until == 1 else f", to {job.until:g} of its steps"
        logger.info("%s%s", self._number(job), how_far)
        return FleetRun(job, logs.Speaker(name, member.config.run_dir), self._steps(job, member, name))

    def _steps(self, job: Job, member: Member, name: str) -> Steps[dict[str, Any]]:
        return train_steps(
            member.config,
            self._env,
            build=self._backbone.build,
            watch=partial(self.display.line, name),
            alone=self.together == 1,
            until=job.until,
            tested=lambda: self.search.chosen().get(member.task) == member.label,
        )

    def finished(self, run: FleetRun, report: dict[str, Any]) -> None:
        """Takes a run's report; where it was interrupted, no other starts."""
        self._running -= 1
        if report["outcome"] == "interrupted":
            if not self._interrupted:
                logger.info("interrupted; run the same command again to resume the suite")
            self._interrupted = True
            return
        job: Job = run.key
        metric = self._suite.members[job.member].config.metric
        dev = (report["metrics"]["dev"] or {}).get(metric)
        logger.info("%s: dev %s %s", report["outcome"], metric, "-" if dev is None else f"{dev:.4f}")
        if report["outcome"] not in UNFINISHED:
            self.display.ended()
        self._decide(job, math.nan if dev is None else dev)

    def failed(self, run: FleetRun, error: UserError) -> None:
        """Leaves a run that its own mistake has ended; the others go on."""
        self._running -= 1
        job: Job = run.key
        member = self._suite.members[job.member]
        for mistake in error.mistakes:
            logger.error("%s", mistake)
        self._failed.append((member, error.mistakes))
        self.display.ended()
        self._decide(job, None)

    def _decide(self, job: Job, score: float | None) -> None:
        """Tells the search how a job has ended, and keeps that."""
        self.search.finished(job, score)
        self._take_jobs()
        if not self._env.is_main:
            return
        write_table(self._suite, self.search)
        if self._suite.config.grid:
            kept = {"suite": _fingerprint(self._suite), "state": self.search.state_dict()}
            text = json.dumps(kept, indent=1)
            atomic_write(self._search_file, lambda aside: aside.write_text(text))

    @property
    def _search_file(self) -> Path:
        return self._suite.config.folder / "search.json"

    def _restore_search(self) -> None:
        """Goes on with the search of the same suite that a process before this one left."""
        state = None
        with agreement.errors_raised_on_all(self._env):
            if self._env.is_main and self._suite.config.grid and self._search_file.exists():
                kept = read_json(self._search_file)
                if kept.get("suite") == _fingerprint(self._suite):
                    state = kept["state"]
        state = agreement.broadcast_json(state, self._env)
        if state is not None:
            self.search.load_state_dict(state)

    def require_chosen(self) -> None:
        """Tells the mistakes that ended runs; not those of settings that were not chosen anyway.

        Raises:
            UserError: on every process, with the run after each setting.
        """
        chosen = self.search.chosen()
        mistakes = [
            mistake._replace(where=f"{mistake.where} ({member.title}, seed {member.seed})")
            for member, found in self._failed
            for mistake in found
            if chosen.get(member.task, member.label) == member.label
        ]
        if mistakes:
            raise UserError(mistakes, on_all=True)

    def test_chosen(self) -> None:
        """Evaluates on test what was chosen after its training had ended."""
        chosen = self.search.chosen()
        untested = None
        if self._env.is_main:
            reports = enumerate(zip(self._suite.members, all_reports(self._suite), strict=True))
            untested = [
                k
                for k, (member, report) in reports
                if report and chosen.get(member.task) == member.label and not report.metrics.get("test")
            ]
        for k in agreement.broadcast_json(untested, self._env):
            member = self._suite.members[k]
            logger.info("test of %s, seed %d", member.title, member.seed)
            test = evaluate_saved(member.config, self._env, build=self._backbone.build)
            if self._env.is_main:
                path = member.config.run_dir / "report.json"
                report = read_json(path)
                report["metrics"]["test"], report["metrics_by_output"]["test"] = test.metrics, test.by_output
                write_report(path, report | {"task": test.task.to_dict()})


def _fingerprint(suite: Suite) -> int:
    return agreement.text_fingerprint(suite.to_yaml())


def _scores(suite: Suite, env: DistEnv) -> dict[int, float]:
    """The dev metric of every finished run, by its place, as global rank 0 sees the folders.

    It is the same on every process; nan where it is not defined.
    """
    found = None
    with agreement.errors_raised_on_all(env):
        if env.is_main:
            each = enumerate(zip(suite.members, all_reports(suite), strict=True))
            found = [[k, metric_of(report, "dev", member.config)] for k, (member, report) in each if report]
    return {k: math.nan if score is None else score for k, score in agreement.broadcast_json(found, env)}
