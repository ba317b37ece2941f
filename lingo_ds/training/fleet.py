"""Runs that advance together: one pass through the frozen backbone for a step of each (docs/fleet.md).

A run is a generator that yields what its next step needs, so that whoever holds several of them may compute
these together. Each keeps its bank, masks, schedule, optimizer, evaluations, checkpoints and folder. One that
ends gives its place to the next of the queue.
"""

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, TypeVar

from lingo_ds.distributed import watchdog
from lingo_ds.distributed.stop_signals import StopSignals
from lingo_ds.training.joint_pass import Work, compute_step
from lingo_ds.utils import logging as logs
from lingo_ds.utils.errors import LoneError, UserError
from lingo_ds.utils.out_of_memory import Remedy, report_out_of_memory

logger = logging.getLogger(__name__)

Result = TypeVar("Result")
Steps = Generator[Work, Sequence[float], Result]
"""A run: it yields what its next step needs and takes back what `OptimizerStep.measure` gave of it."""


class FleetRun(NamedTuple):
    """One run of a fleet.

    Attributes:
        key: what its queue knows it by.
        speaker: its name and folder; None: it is alone.
        steps: the run itself, from its data to its report.
    """

    key: Any
    speaker: logs.Speaker | None
    steps: Steps[Any]


class Queue(ABC):
    """Which runs there are; the same answers on every process, unless it is said otherwise."""

    @abstractmethod
    def next(self) -> FleetRun | None:
        """The next run that may start; None: none may now."""

    @abstractmethod
    def finished(self, run: FleetRun, report: Any) -> None:
        """Takes the report of a run that has ended; once one was interrupted, no other may start."""

    @abstractmethod
    def failed(self, run: FleetRun, error: UserError) -> None:
        """Takes the mistake that has ended a run; raised again, it ends all others, too."""

    def stopping(self) -> bool:
        """Whether all runs are to stop after this step; it is enough that one process says so."""
        return False

    def wait(self, stop: bool) -> bool:
        """Waits a moment for what lets a run start that may not now, where none advances.

        Args:
            stop: whether this process was asked to stop.

        Returns:
            Whether one may start yet; False: all is done.
        """
        return False


@dataclass
class _Seat:
    """A run that advances, and what its next step needs."""

    run: FleetRun
    work: Work


class Fleet:
    """Advances runs together, a step of each at a time."""

    def __init__(self, queue: Queue, *, size: int, tokens: int | None, timeout: float):
        """Takes the runs.

        Args:
            queue: which runs there are.
            size: runs that advance together at most.
            tokens: most tokens of a pass of several runs; None: any number.
            timeout: seconds without progress that count as hanging.
        """
        self._queue, self._size, self._tokens, self._timeout = queue, size, tokens, timeout
        self._seats: list[_Seat] = []
        self._stop = StopSignals()

    def run(self) -> None:
        """Runs the queue to its end, or until a signal interrupts all runs.

        Raises:
            UserError: where one process alone fails, or the queue raises the mistake of a run.
        """
        self._fill()
        try:
            with self._stop.installed():
                while self._seats or self._queue.wait(self._stop.requested):
                    if self._seats:
                        self._advance_all()
                    self._fill()
        finally:
            for seat in self._seats:
                seat.run.steps.close()

    def _fill(self) -> None:
        """Starts runs until all places are taken."""
        while len(self._seats) < self._size and (run := self._queue.next()):
            self._advance(run, partial(next, run.steps))

    def _advance_all(self) -> None:
        """One step of every run."""
        seats, self._seats = self._seats, []
        with watchdog.judging(self._timeout):
            try:
                measured = self._compute([seat.work for seat in seats])
            except (RuntimeError, MemoryError) as error:  # the run's own, which tells what to do about it
                if len(seats) > 1:
                    raise
                self._advance(seats[0].run, partial(seats[0].run.steps.throw, error))
                return
            for seat, own in zip(seats, measured, strict=True):
                self._advance(seat.run, partial(seat.run.steps.send, own))

    def _compute(self, works: Sequence[Work]) -> list[list[float]]:
        """The gradients of one step of every run, reduced and measured."""
        remedy = partial(Remedy, "concurrent", len(works), f"set {max(len(works) // 2, 1)}")
        in_words = report_out_of_memory("training", remedy) if len(works) > 1 else nullcontext()
        with in_words:
            stop = self._stop.requested or self._queue.stopping()
            return compute_step(works, budget=self._tokens, stop=stop)

    def _advance(self, run: FleetRun, go_on: Callable[[], Work]) -> None:
        """Lets a run go on until it needs its next step, or ends."""
        with logs.speaking(run.speaker):
            try:
                self._seats.append(_Seat(run, go_on()))
            except StopIteration as end:
                self._queue.finished(run, end.value)
            except UserError as error:
                if isinstance(error, LoneError):
                    raise
                self._queue.failed(run, error)


class _Alone(Queue):
    """The queue of one run, whose mistake is the caller's."""

    def __init__(self, steps: Steps[Any]):
        self._left = [FleetRun(0, None, steps)]
        self.result: Any = None

    def next(self) -> FleetRun | None:
        return self._left.pop() if self._left else None

    def finished(self, run: FleetRun, report: Any) -> None:
        self.result = report

    def failed(self, run: FleetRun, error: UserError) -> None:
        raise error


def run_alone(steps: Steps[Result], *, timeout: float) -> Result:
    """Runs one run to its end; `timeout` is as for `Fleet`."""
    queue = _Alone(steps)
    Fleet(queue, size=1, tokens=None, timeout=timeout).run()
    result: Result = queue.result
    return result
