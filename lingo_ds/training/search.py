"""Which runs of a suite are trained, and how far: every setting to its end, or successive halving.

Successive halving (arXiv 1502.07943) trains all settings of a task for a part of their steps, keeps those
that are best on dev, and goes on with these alone. Of 9 settings with keep 0.33 at 0.2 and 0.5 of the steps,
9 are trained to 0.2, 3 to 0.5 and 1 to its end: 9 * 0.2 + 3 * 0.3 + 1 * 0.5 = 3.2 trainings in place of 9.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

from lingo_ds.config.suite_config import Member, SearchConfig
from lingo_ds.monitor.suite_table import SettingResult
from lingo_ds.utils.state import Count, State


class Job(NamedTuple):
    """A stretch of one run's training.

    Attributes:
        member: index of the run among the suite's members.
        until: fraction of its steps after which it pauses; 1.0: it is trained to its end.
    """

    member: int
    until: float


class Search:
    """Chooses one setting for each task of a suite, on dev alone.

    Tasks do not depend on each other. The settings of one task are compared once all their runs have reached
    the same fraction of their steps, so the choice does not depend on which run is there first. The score of
    a setting is the mean over its seeds; a run without one counts as worse than any other, and of equal
    settings the first of the grid is better.
    """

    def __init__(self, members: Sequence[Member], config: SearchConfig):
        self._config = config
        self._runs = [(member.task, member.label, member.seed) for member in members]
        self._begin()

    def _begin(self) -> None:
        by_task: dict[str, dict[str, list[int]]] = {}
        for member, (task, label, _) in enumerate(self._runs):
            by_task.setdefault(task, {}).setdefault(label, []).append(member)
        self._tasks = {task: _TaskSearch(runs, self._config) for task, runs in by_task.items()}
        self._finished: list[_FinishedJob] = []

    def ready(self) -> list[Job]:
        """The jobs that may start now, the next first; none: they wait for running ones, or all is done.

        A run whose setting goes on comes again with a larger `until`.
        """
        return [job for task in self._tasks.values() for job in task.waiting]

    def start(self, job: Job) -> None:
        """Takes a job out of those that may start."""
        task, _, _ = self._runs[job.member]
        self._tasks[task].waiting.remove(job)

    def finished(self, job: Job, score: float | None) -> None:
        """Takes in that a job has ended.

        Args:
            job: one that was started.
            score: the run's best dev metric so far, higher is better; nan: it is not defined, and the run may
                go on; None: the run failed, and gets no more jobs.
        """
        task, _, _ = self._runs[job.member]
        self._tasks[task].finished(job, score)
        known = score if score is not None and math.isfinite(score) else None
        failed = score is None
        self._finished.append(_FinishedJob(member=job.member, until=job.until, score=known, failed=failed))

    @property
    def done(self) -> bool:
        """Whether the setting of each task is chosen, and its runs have ended."""
        return all(task.done for task in self._tasks.values())

    def chosen(self) -> dict[str, str]:
        """The label of each task's chosen setting, as soon as it alone is left; it may be in training yet."""
        return {name: task.survivors[0] for name, task in self._tasks.items() if len(task.survivors) == 1}

    def history(self) -> dict[str, list[SettingResult]]:
        """What was tried for each task, in the order of the grid."""
        return {name: task.history() for name, task in self._tasks.items()}

    def work(self) -> float:
        """How much is trained until all is done, in whole trainings of one run; failed runs count in full."""
        return sum(task.work() for task in self._tasks.values())

    def state_dict(self) -> dict[str, Any]:
        """The jobs that have ended; all decisions follow from them."""
        state = _SearchState(
            search=self._config.model_dump(mode="json"), runs=self._runs, finished=self._finished
        )
        return state.model_dump(mode="json")

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` gave; jobs that had been running then are given out again.

        Raises:
            ValueError: for anything else, and for the state of a search over other runs.
        """
        saved = _SearchState.checked(state)
        if (saved.search, saved.runs) != (self._config.model_dump(mode="json"), self._runs):
            raise ValueError("search, runs: they belong to another search")
        self._begin()
        for one in saved.finished:
            job = Job(one.member, one.until)
            if job not in self.ready():
                raise ValueError(f"finished: {job} is not due")
            self.start(job)
            score = math.nan if one.score is None else one.score
            self.finished(job, None if one.failed else score)


class _FinishedJob(State):
    member: Count
    until: float
    score: float | None
    failed: bool


class _SearchState(State):
    search: dict[str, Any]
    runs: list[tuple[str, str, int]]
    finished: list[_FinishedJob]


class _Rung(NamedTuple):
    """A comparison of settings: when it takes place, and how many of them go on."""

    until: float
    keep: int


def _rungs(settings: int, config: SearchConfig) -> list[_Rung]:
    """The comparisons of one task at which settings are dropped; the last one, at 1.0, chooses."""
    rungs = []
    for at in config.at if config.method == "halving" else ():
        keep = math.ceil(Fraction(str(config.keep)) * settings)  # of 0.28 * 25, 7 and not 8
        if keep < settings:
            rungs.append(_Rung(at, keep))
            settings = keep
    return [*rungs, _Rung(1.0, 1)]


class _TaskSearch:
    """The search for one task.

    Attributes:
        survivors: labels of the settings that are not dropped, in the order of the grid.
        waiting: jobs of the present rung that may start.
        open: jobs of the present rung that have not ended, running ones included.
    """

    def __init__(self, runs: Mapping[str, Sequence[int]], config: SearchConfig):
        """Takes the members of each setting by its label."""
        self._runs = runs
        self._rungs = _rungs(len(runs), config)
        self._decided: list[tuple[_Rung, dict[str, float | None]]] = []
        self._failed: set[int] = set()
        self.survivors = list(runs)
        self._begin_rung()

    @property
    def done(self) -> bool:
        return len(self._decided) == len(self._rungs)

    def _begin_rung(self) -> None:
        self._scores: dict[int, float] = {}
        self.waiting: list[Job] = []
        if not self.done:
            until = self._rungs[len(self._decided)].until
            members = [member for label in self.survivors for member in self._runs[label]]
            self.waiting = [Job(member, until) for member in members if member not in self._failed]
        self.open = dict.fromkeys(self.waiting)

    def finished(self, job: Job, score: float | None) -> None:
        del self.open[job]
        if score is None:
            self._failed.add(job.member)
        elif math.isfinite(score):
            self._scores[job.member] = score
        while not self.open and not self.done:  # a rung of failed runs alone has no jobs
            self._decide()

    def _decide(self) -> None:
        rung = self._rungs[len(self._decided)]
        self._decided.append((rung, {label: self._mean(label) for label in self.survivors}))
        best = sorted(self.survivors, key=self._order, reverse=True)[: rung.keep]
        self.survivors = [label for label in self.survivors if label in best]
        self._begin_rung()

    def _known(self, label: str) -> list[float]:
        return [self._scores[member] for member in self._runs[label] if member in self._scores]

    def _mean(self, label: str) -> float | None:
        """A setting's score, where all its runs have one."""
        known = self._known(label)
        return statistics.fmean(known) if len(known) == len(self._runs[label]) else None

    def _order(self, label: str) -> tuple[int, float]:
        """Orders settings from the worst on: fewer runs with a score, then a lower mean of them."""
        known = self._known(label)
        return len(known), statistics.fmean(known or [0.0])

    def history(self) -> list[SettingResult]:
        return [self._result(label) for label in self._runs]

    def _result(self, label: str) -> SettingResult:
        reached = [(rung.until, scores[label]) for rung, scores in self._decided if label in scores]
        return SettingResult(
            setting=label,
            scores=reached,
            dropped=reached[-1][0] if label not in self.survivors else None,
            chosen=self.survivors == [label],
            failed=len(self._failed.intersection(self._runs[label])),
        )

    def work(self) -> float:
        work, settings, before = 0.0, len(self._runs), 0.0
        for rung in self._rungs:
            work += settings * (rung.until - before)
            settings, before = rung.keep, rung.until
        return work * len(next(iter(self._runs.values())))
