"""What a suite has reached, as its folder tells: which runs have ended, and which settings go on."""

import json
import logging
import math
from pathlib import Path
from typing import Any

from lingo_ds.commands.suite_results import all_reports, metric_of, write_table
from lingo_ds.config.suite_config import Member, Suite
from lingo_ds.distributed import agreement
from lingo_ds.distributed.process_group import DistEnv
from lingo_ds.monitor.suite_table import TaskResult
from lingo_ds.training.search import Job, Search
from lingo_ds.utils.files import atomic_write
from lingo_ds.utils.safe_read import read_json

logger = logging.getLogger(__name__)


class SuiteState:
    """The runs of a suite that have ended, and its search, which takes those that ended before as they are.

    Attributes:
        suite: the suite.
        search: which settings go on.
    """

    def __init__(self, suite: Suite, env: DistEnv):
        """Reads the suite's folder as global rank 0 sees it; call on all processes.

        It goes on with the search that a process before this one left of the same suite.
        """
        found = None
        with agreement.errors_raised_on_all(env):
            if env.is_main:
                found = _scores(suite), _kept_search(suite)
        scores, kept = agreement.broadcast_json(found, env)
        self.suite = suite
        self._scores = {k: math.nan if score is None else score for k, score in scores}
        self.search = Search(suite.members, suite.config.search)
        if kept is not None:
            self.search.load_state_dict(kept)
        self._answer_ended()

    @property
    def ended_before(self) -> int:
        """Number of runs that had ended before this process began."""
        return len(self._scores)

    def unfinished(self) -> list[Member]:
        """The runs that had not ended, and may start."""
        tried = self.search.history().items()
        dropped = {(task, one.setting) for task, settings in tried for one in settings if one.dropped}
        return [
            member
            for k, member in enumerate(self.suite.members)
            if k not in self._scores and (member.task, member.label) not in dropped
        ]

    def untested(self, env: DistEnv) -> list[int]:
        """The places of finished runs of a chosen setting that were not evaluated on test.

        It is the same on every process of `env`, which call it together.
        """
        found = None
        if env.is_main:
            chosen = self.search.chosen()
            reports = enumerate(zip(self.suite.members, all_reports(self.suite), strict=True))
            found = [
                k
                for k, (member, report) in reports
                if report and chosen.get(member.task) == member.label and not report.metrics.get("test")
            ]
        places: list[int] = agreement.broadcast_json(found, env)
        return places

    def name(self, job: Job) -> str:
        """What a job's run is called."""
        member = self.suite.members[job.member]
        return f"{member.title}, seed {member.seed}"

    def number(self, job: Job) -> str:
        """Which of all runs a job is of."""
        return f"run {job.member + 1} of {len(self.suite.members)}: {self.name(job)}"

    def ended(self, job: Job, score: float | None) -> None:
        """Takes in that a job has ended, as `Search.finished` does."""
        self.search.finished(job, score)
        self._answer_ended()

    def _answer_ended(self) -> None:
        """Tells the search of jobs whose runs had ended before."""
        while job := next((job for job in self.search.ready() if job.member in self._scores), None):
            logger.info("%s: already finished", self.number(job))
            self.search.start(job)
            self.search.finished(job, self._scores[job.member])

    def write(self) -> list[TaskResult]:
        """Writes the table of what is finished, and of a grid what the search has decided."""
        if self.suite.config.grid:
            kept = {"suite": _fingerprint(self.suite), "state": self.search.state_dict()}
            text = json.dumps(kept, indent=1)
            atomic_write(_search_file(self.suite), lambda aside: aside.write_text(text))
        return write_table(self.suite, self.search)


def _scores(suite: Suite) -> list[tuple[int, float | None]]:
    """The dev metric of every finished run, by its place; None where it is not defined."""
    reports = enumerate(zip(suite.members, all_reports(suite), strict=True))
    return [(k, metric_of(report, "dev", member.config)) for k, (member, report) in reports if report]


def _kept_search(suite: Suite) -> dict[str, Any] | None:
    """The state of this very suite's search; None where there is none."""
    if not suite.config.grid or not _search_file(suite).exists():
        return None
    kept = read_json(_search_file(suite))
    return kept["state"] if kept.get("suite") == _fingerprint(suite) else None


def _search_file(suite: Suite) -> Path:
    return suite.config.folder / "search.json"


def _fingerprint(suite: Suite) -> int:
    return agreement.text_fingerprint(suite.to_yaml())
