"""Where a run stands, for a person: a bar on a terminal, a line now and then in a log file."""

import logging
import time
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

logger = logging.getLogger(__name__)


class Display:
    """A bar on a terminal; where stderr is none, log lines. Use it as a context manager.

    Lines are logged at the first and the last state, and every `log_seconds` between them.
    """

    def __init__(
        self,
        total: float,
        begin: str,
        *,
        enabled: bool,
        done: float = 0,
        log_seconds: float = 10.0,
        console: Console | None = None,
    ):
        """Prepares the display.

        Args:
            total: amount of work.
            begin: what a bar says before the first state.
            enabled: False (processes other than the first) shows nothing.
            done: what was already done when this process began, for work that is resumed.
            log_seconds: least time between two log lines.
            console: where a bar goes; None is stderr. A log handler that shares it keeps off the bar.
        """
        self._total, self._first = total, done
        self._enabled, self._log_seconds = enabled, log_seconds
        self._began = time.monotonic()
        self._logged: float | None = None
        self._bar: Bar | None = None
        console = console or Console(stderr=True)
        # isatty as well: FORCE_COLOR, which CI systems set, makes rich take a log file for a terminal.
        if enabled and console.is_interactive and console.file.isatty():
            columns = (BarColumn(bar_width=24), TextColumn("{task.description}"), TimeElapsedColumn())
            self._bar = Bar(*columns, TextColumn("{task.fields[left]} left"), console=console)
            self._task = self._bar.add_task(begin, total=total, left="-")

    def __enter__(self) -> Self:
        self._began = time.monotonic()
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def show(self, done: float, state: str) -> None:
        """Shows a state in words; `done` counts what an earlier process did, too."""
        if not self._enabled:
            return
        now = time.monotonic()
        passed, left = _clock(now - self._began), self._left(done, now - self._began)
        if self._bar is not None:
            self._bar.update(self._task, completed=done, description=state, left=left)
        elif self._logged is None or done >= self._total or now - self._logged >= self._log_seconds:
            self._logged = now
            logger.info("%s  %s passed, %s left", state, passed, left)

    def _left(self, done: float, passed: float) -> str:
        """Time left at this process's own pace; what was done before a resume took none of its time."""
        here = done - self._first
        return _clock(passed / here * (self._total - done)) if here > 0 else "-"


class Progress(Display):
    """Shows step, loss, dev MCC, tokens per second, time passed and time left of a run."""

    def __init__(
        self,
        total_steps: int,
        *,
        enabled: bool,
        metric: str = "mcc",
        done: int = 0,
        log_seconds: float = 10.0,
        console: Console | None = None,
    ):
        """Takes the steps of the whole run and the name of the dev metric; the rest is `Display`'s."""
        super().__init__(
            total_steps, f"step {done}/{total_steps}",
            enabled=enabled, done=done, log_seconds=log_seconds, console=console,
        )  # fmt: skip
        self._metric, self._dev_metric = metric, None

    def update(
        self, step: int, *, loss: float, tokens_per_second: float, dev_metric: float | None = None
    ) -> None:
        """Shows the state after a step.

        Args:
            step: finished steps, the earlier ones of a resumed run included.
            loss: mean training loss of the step.
            tokens_per_second: real tokens per second, lately.
            dev_metric: dev MCC if it was just measured; None goes on showing the last one.
        """
        if dev_metric is not None:
            self._dev_metric = dev_metric
        dev = "-" if self._dev_metric is None else f"{self._dev_metric:.3f}"
        speed = f"{tokens_per_second:,.0f} tokens/s"
        self.show(step, f"step {step}/{self._total}  loss {loss:.4f}  dev {self._metric} {dev}  {speed}")


class SequenceProgress(Display):
    """Shows how many sequences of a file were predicted, how fast, time passed and time left."""

    def __init__(
        self, *, enabled: bool, done: int = 0, unit: str = "sequences", console: Console | None = None
    ):
        """Takes the sequences that an earlier process did, and what they are called."""
        super().__init__(1.0, f"{done:,} {unit}", enabled=enabled, console=console)
        self._begin, self._unit = done, unit

    def update(self, done: int, *, read: float) -> None:
        """Shows the state after a chunk: sequences done, and the share of the file that they are, 0 to 1."""
        self._first = read * self._begin / done  # the share that the earlier process did, about
        rate = (done - self._begin) / max(time.monotonic() - self._began, 1e-9)
        self.show(read, f"{done:,} {self._unit}  {rate:,.0f} {self._unit}/s")


def _clock(seconds: float) -> str:
    minutes, second = divmod(round(seconds), 60)
    hour, minute = divmod(minutes, 60)
    return f"{hour}:{minute:02}:{second:02}"
