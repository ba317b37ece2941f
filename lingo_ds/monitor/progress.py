"""How far a verb has come, for a person: a bar on a terminal, a log line now and then elsewhere."""

import logging
import time
from typing import Protocol, Self

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

logger = logging.getLogger(__name__)


class Progress(Protocol):
    """What shows how far a run is."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *exception: object) -> None: ...

    def update(self, done: int, details: str = "", /) -> None:
        """Shows the present state: finished units, and text after them."""


class ProgressBar:
    """Shows work done, time passed and time left. Use it as a context manager.

    Where stderr is no terminal, lines are logged instead: at the first and the last update, and every
    `log_seconds` between them.
    """

    def __init__(
        self,
        total: int | None,
        unit: str,
        *,
        enabled: bool,
        done: int = 0,
        log_seconds: float = 10.0,
        console: Console | None = None,
    ):
        """Prepares the bar.

        Args:
            total: units of the whole work, shown as `step 3/100`. None where nobody has counted them:
                `3 sequences` and their rate are shown, and each update tells the share that is done.
            unit: the name of what is counted; a singular where `total` is known, else a plural.
            enabled: False (processes other than the first) shows nothing.
            done: units that an earlier process did, for work that is resumed.
            log_seconds: least time between two log lines.
            console: where the bar is drawn; None: stderr. A log handler that shares it does not overwrite
                the bar.
        """
        self._total, self._unit, self._done_before = total, unit, done
        self._enabled, self._log_seconds = enabled, log_seconds
        self._began = time.monotonic()
        self._logged: float | None = None
        self._bar: Bars | None = None
        console = console or Console(stderr=True)
        # isatty as well: FORCE_COLOR, which CI systems set, makes rich take a log file for a terminal.
        if enabled and console.is_interactive and console.file.isatty():
            columns = (BarColumn(bar_width=24), TextColumn("{task.description}"), TimeElapsedColumn())
            self._bar = Bars(*columns, TextColumn("{task.fields[left]} left"), console=console)
            self._task = self._bar.add_task(self._count(done), total=1.0, left="-")

    def __enter__(self) -> Self:
        self._began = time.monotonic()
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self, done: int, details: str = "", *, fraction: float | None = None) -> None:
        """Shows the present state.

        Args:
            done: finished units, those of an earlier process included.
            details: text after the count, e.g. the loss.
            fraction: share of the work that they are, 0 to 1; needed where the total is not known.
        """
        if not self._enabled:
            return
        if fraction is None:
            assert self._total is not None, "without a total, fraction is needed"
            fraction = done / self._total
        now = time.monotonic()
        passed = now - self._began
        left, state = self._left(done, fraction, passed), "  ".join(self._words(done, details, passed))
        if self._bar is not None:
            self._bar.update(self._task, completed=fraction, description=state, left=left)
        elif self._logged is None or fraction >= 1 or now - self._logged >= self._log_seconds:
            self._logged = now
            logger.info("%s  %s passed, %s left", state, clock(passed), left)

    def _words(self, done: int, details: str, passed: float) -> list[str]:
        words = [self._count(done)]
        if self._total is None:
            rate = (done - self._done_before) / max(passed, 1e-9)
            words.append(f"{rate:,.0f} {self._unit}/s")
        return [*words, details] if details else words

    def _count(self, done: int) -> str:
        return f"{done:,} {self._unit}" if self._total is None else f"{self._unit} {done}/{self._total}"

    def _left(self, done: int, fraction: float, passed: float) -> str:
        """Time left at this process's own pace; what was done before a resume took none of its time."""
        here = fraction * (1 - self._done_before / max(done, 1))
        return clock(passed / here * (1 - fraction)) if here > 0 else "-"


class SlowWork:
    """Logs how far work has come that may take long, now and then: what is done soon logs nothing.

    Use it as a context manager. It draws no bar, so that it may run below a `ProgressBar`.
    """

    def __init__(self, what: str, total: int, unit: str, *, enabled: bool, log_seconds: float = 10.0):
        """Prepares the log lines.

        Args:
            what: what is done, the first word of each line.
            total: units of the whole work.
            unit: the name of what is counted, a plural.
            enabled: False (processes other than the first) logs nothing.
            log_seconds: least time before the first line, and between two.
        """
        self._what, self._total, self._unit = what, total, unit
        self._enabled, self._log_seconds = enabled, log_seconds
        self._began = self._logged = time.monotonic()

    def __enter__(self) -> Self:
        self._began = self._logged = time.monotonic()
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        passed = time.monotonic() - self._began
        if self._enabled and kind is None and passed >= self._log_seconds:
            rate = self._total / passed
            logger.info("%s  %s %s, %.1f/s, in %s", self._what, self._total, self._unit, rate, clock(passed))

    def update(self, done: int) -> None:
        """Takes how many units are done; of all of them the line at the end tells."""
        now = time.monotonic()
        if not self._enabled or not 0 < done < self._total or now - self._logged < self._log_seconds:
            return
        self._logged, passed = now, now - self._began
        logger.info(
            "%s  %s/%s %s  %.1f/s  %s passed, %s left",
            *(self._what, done, self._total, self._unit, done / passed),
            *(clock(passed), clock(passed / done * (self._total - done))),
        )


def clock(seconds: float) -> str:
    """Seconds as hours, minutes and seconds, `0:01:05`."""
    minutes, second = divmod(round(seconds), 60)
    hour, minute = divmod(minutes, 60)
    return f"{hour}:{minute:02}:{second:02}"
