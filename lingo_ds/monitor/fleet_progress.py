"""How far runs are that advance together: a line each on a terminal, a log line now and then elsewhere."""

import logging
import time
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from lingo_ds.monitor.progress import clock
from lingo_ds.utils import logging as logs

logger = logging.getLogger(__name__)


class FleetProgress:
    """Shows every run that advances: its step, loss, metric on dev, kept triplets, and the time left.

    Use it as a context manager. Where stderr is no terminal, one log line tells of all of them every
    `log_seconds`.
    """

    def __init__(
        self, runs: int, *, done: int, enabled: bool, console: Console | None, log_seconds: float = 60.0
    ):
        """Prepares the display.

        Args:
            runs: how many runs there are.
            done: how many of them ended before.
            enabled: False (processes other than the first) shows nothing.
            console: where it is drawn; a log handler that shares it does not overwrite it. None: there are
                log lines alone.
            log_seconds: least time between two log lines.
        """
        self._runs, self._done, self._enabled = runs, done, enabled
        self._log_seconds, self._logged = log_seconds, time.monotonic()
        self._lines: list[RunLine] = []
        self._bars: Progress | None = None
        if enabled and console is not None and console.is_interactive and console.file.isatty():
            words, left = TextColumn("{task.description}"), TextColumn("{task.fields[left]} left")
            self._bars = Progress(BarColumn(bar_width=16), words, left, console=console)

    def __enter__(self) -> Self:
        if self._bars is not None:
            self._bars.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bars is not None:
            self._bars.stop()

    def ended(self) -> None:
        """Counts a run that is done."""
        self._done += 1

    def line(self, run: str, total: int, unit: str, *, done: int = 0, **_of_a_bar: object) -> "RunLine":
        """One run's line, in place of a `ProgressBar` with these arguments."""
        return RunLine(self, f"{run}: {unit}", total, done)

    def open(self, line: "RunLine") -> None:
        """Shows a line from now on."""
        self._lines.append(line)
        if self._bars is not None:
            line.bar = self._bars.add_task(line.words, total=1.0, left="-")

    def close(self, line: "RunLine") -> None:
        """Takes a line away."""
        self._lines.remove(line)
        if self._bars is not None and line.bar is not None:
            self._bars.remove_task(line.bar)

    def changed(self, line: "RunLine") -> None:
        """Shows the present state of a line."""
        now = time.monotonic()
        if self._bars is not None and line.bar is not None:
            self._bars.update(line.bar, completed=line.fraction, description=line.words, left=line.left)
        elif self._enabled and now - self._logged >= self._log_seconds:
            self._logged = now
            each = "; ".join(f"{one.words}  {one.left} left" for one in self._lines)
            with logs.speaking(None):
                logger.info("%d of %d runs done; %s", self._done, self._runs, each)


class RunLine:
    """One run's line, as a context manager.

    Attributes:
        bar: what rich knows it by; None where it draws no bars.
        fraction: share of the run that is done, 0 to 1.
        words: what it says.
        left: the time that is left at the run's own pace.
    """

    def __init__(self, display: FleetProgress, counted: str, total: int, done: int):
        self._display, self._counted, self._total, self._before = display, counted, total, done
        self.bar: TaskID | None = None
        self.fraction, self.words, self.left = done / total, f"{counted} {done}/{total}", "-"

    def __enter__(self) -> Self:
        self._began = time.monotonic()
        self._display.open(self)
        return self

    def __exit__(self, *exception: object) -> None:
        self._display.close(self)

    def update(self, done: int, details: str = "") -> None:
        """Shows the present state: finished units, and text after them."""
        self.fraction, self.words = done / self._total, f"{self._counted} {done}/{self._total}  {details}"
        here = done - self._before
        if here:
            self.left = clock((time.monotonic() - self._began) / here * (self._total - done))
        self._display.changed(self)
