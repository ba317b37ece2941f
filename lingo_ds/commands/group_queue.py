"""The runs of a suite as one of several groups takes them (`placement: groups`), dealt out by a job's log.

Every group tells in the log what it starts and how that ends, and replays what all have told, in the order
of the log: of two groups that start the same run, the first one has it. So all come to the same decisions
without a collective between them.
"""

import math
import time
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from lingo_ds.commands.suite_plan import PlannedRuns
from lingo_ds.commands.suite_queue import SuiteQueue
from lingo_ds.commands.suite_state import SuiteState
from lingo_ds.distributed import agreement
from lingo_ds.distributed.job_log import JobLog
from lingo_ds.distributed.process_group import DistEnv
from lingo_ds.monitor.fleet_progress import FleetProgress
from lingo_ds.training.search import Job
from lingo_ds.training.shared_backbone import SharedBackbone
from lingo_ds.utils.errors import Mistake

POLL = 0.5
"""Seconds between two looks at the log."""


What = Literal["starts", "ended", "interrupted", "tests", "stop", "tested"]


class Entry(NamedTuple):
    """What a group tells the others.

    Attributes:
        group: its number.
        what: that it starts a job, or that its job has ended or was interrupted; that it tests a run; that
            all runs are to stop; that there is nothing left that it tests.
        job: member and `until` of the job, or the run's member alone.
        score: of a job that has ended, as for `Search.finished`.
        over: whether the job's run has ended, too.
        mistakes: those that ended it.
    """

    group: int
    what: What
    job: Sequence[Any] = ()
    score: float | None = None
    over: bool = False
    mistakes: Sequence[Sequence[str]] = ()


class GroupQueue(SuiteQueue):
    """What one group trains of a suite; its processes call each method but `stopping` together."""

    def __init__(
        self,
        log: JobLog,
        state: SuiteState,
        planned: PlannedRuns,
        env: DistEnv,
        *,
        backbone: SharedBackbone,
        display: FleetProgress,
    ):
        """Takes a queue's parts, see `SuiteQueue`, with `env` as this process in its group.

        Args:
            log: what the groups tell each other; the first process of each writes and reads it.
            state: as all groups have it now.
            planned: what is known of the runs that are left.
            env: this process in its group.
            backbone: the group's.
            display: how far the group's runs are.
        """
        super().__init__(state, planned, env, backbone=backbone, display=display)
        self._log, self._groups = log, planned.plan.groups.groups
        self._owners: dict[Job, int] = {}
        self._testers: dict[int, int] = {}
        self._groups_done = 0
        self._unread: list[Any] = []
        self._looked = time.monotonic()

    # -- the log

    def _tell(self, what: What, *job: Any, **ended: Any) -> None:
        """Tells all groups, and takes in what they have told."""
        if self.env.is_main:
            self._log.append(Entry(self.env.group, what, job, **ended))
        self._take_in()

    def _take_in(self) -> None:
        """Replays what is new in the log."""
        news = None
        if self.env.is_main:
            news, self._unread = self._unread + self._log.read(), []
        for fields in agreement.broadcast_json(news, self.env):
            self._replay(Entry(*fields))

    def _replay(self, entry: Entry) -> None:
        match entry.what:
            case "starts":
                self._replay_start(Job(*entry.job), entry.group)
            case "ended":
                job = Job(*entry.job)
                del self._owners[job]
                mistakes = [Mistake(*words) for words in entry.mistakes]
                super()._note_end(job, entry.score, over=entry.over, mistakes=mistakes)
            case "interrupted":
                del self._owners[Job(*entry.job)]
                self.interrupted = True
            case "stop":
                self.interrupted = True
            case "tests":
                self._testers.setdefault(entry.job[0], entry.group)
            case "tested":
                self._groups_done += 1

    def _replay_start(self, job: Job, group: int) -> None:
        """The first group that starts a job has it."""
        if not self.interrupted and job in self._state.search.ready():
            self._state.search.start(job)
            self._owners[job] = group

    # -- the runs

    def _take(self) -> Job | None:
        """Starts the next job that no other group has started."""
        self._take_in()
        while job := self._wanted():
            self._tell("starts", *job)
            if self._owners.get(job) == self.env.group:
                return job
        return None

    def _wanted(self) -> Job | None:
        """The next job that this group may start, while it has less than its share of those that are left."""
        ready, owners = self._state.search.ready(), list(self._owners.values())
        share = math.ceil((len(ready) + len(owners)) / self._groups)
        if self.interrupted or owners.count(self.env.group) >= share:
            return None
        return next(filter(self._fits, ready), None)

    def _note_end(self, job: Job, score: float | None, *, over: bool, mistakes: Sequence[Mistake]) -> None:
        words = [[str(word) for word in mistake] for mistake in mistakes]
        self._tell("ended", *job, score=score, over=over, mistakes=words)

    def _stopped(self, job: Job) -> None:
        self._tell("interrupted", *job)

    def stopping(self) -> bool:
        """Whether runs of another group were stopped, as the group's first process sees now and then."""
        now = time.monotonic()
        if self.env.is_main and now > self._looked + POLL:
            self._looked = now
            self._unread += self._log.read()
        return self.interrupted or any(
            Entry(*fields).what in ("interrupted", "stop") for fields in self._unread
        )

    def wait(self, stop: bool) -> bool:
        """Waits for what the runs of other groups decide, until none is left or all were stopped."""
        if any(agreement.all_gather_json(stop, self.env)) and not self.interrupted:
            self._tell("stop")
        else:
            self._take_in()
        if self._state.search.done or (self.interrupted and not self._owners):
            return False
        if self._wanted() is None:
            time.sleep(POLL)
        return True

    # -- their tests

    def test_chosen(self) -> None:
        """Shares out the tests that are left; returns once all groups have done theirs."""
        super().test_chosen()
        self._tell("tested")
        while self._groups_done < self._groups:
            time.sleep(POLL)
            self._take_in()

    def _may_test(self, k: int) -> bool:
        self._tell("tests", k)
        return self._testers[k] == self.env.group
