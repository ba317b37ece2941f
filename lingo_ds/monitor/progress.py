"""Where a run stands, for a person: a bar on a terminal, a line now and then in a log file."""

import logging
import time
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

logger = logging.getLogger(__name__)


class Progress:
    """Shows step, loss, dev MCC, tokens per second, time passed and time left, on stderr.

    Use it as a context manager. Where stderr is no terminal it logs a line at the first and the last step and
    every `log_seconds` between them.
    """

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
        """Prepares the display.

        Args:
            total_steps: steps of the whole run.
            enabled: False (processes other than the first) shows nothing.
            metric: name of the dev metric that is shown.
            done: steps that were already done when this process began, for a resumed run.
            log_seconds: least time between two log lines.
            console: where a bar goes; None is stderr. A log handler that shares it keeps off the bar.
        """
        self._total, self._first, self._metric = total_steps, done, metric
        self._enabled, self._log_seconds = enabled, log_seconds
        self._began = time.monotonic()
        self._logged: float | None = None
        self._dev_metric: float | None = None
        self._bar: Bar | None = None
        console = console or Console(stderr=True)
        # isatty as well: FORCE_COLOR, which CI systems set, makes rich take a log file for a terminal.
        if enabled and console.is_interactive and console.file.isatty():
            columns = (BarColumn(bar_width=24), TextColumn("{task.description}"), TimeElapsedColumn())
            self._bar = Bar(*columns, TextColumn("{task.fields[left]} left"), console=console)
            self._task = self._bar.add_task(f"step {done}/{total_steps}", total=total_steps, left="-")

    def __enter__(self) -> Self:
        self._began = time.monotonic()
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar is not None:
            self._bar.stop()

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
        if not self._enabled:
            return
        if dev_metric is not None:
            self._dev_metric = dev_metric
        dev = "-" if self._dev_metric is None else f"{self._dev_metric:.3f}"
        speed = f"{tokens_per_second:,.0f} tokens/s"
        state = f"step {step}/{self._total}  loss {loss:.4f}  dev {self._metric} {dev}  {speed}"
        now = time.monotonic()
        passed, left = _clock(now - self._began), self._left(step, now - self._began)
        if self._bar is not None:
            self._bar.update(self._task, completed=step, description=state, left=left)
        elif self._logged is None or step >= self._total or now - self._logged >= self._log_seconds:
            self._logged = now
            logger.info("%s  %s passed, %s left", state, passed, left)

    def _left(self, step: int, passed: float) -> str:
        """Time left at this process's own pace; steps before a resume took none of its time."""
        done = step - self._first
        return _clock(passed / done * (self._total - step)) if done > 0 else "-"


def _clock(seconds: float) -> str:
    minutes, second = divmod(round(seconds), 60)
    hour, minute = divmod(minutes, 60)
    return f"{hour}:{minute:02}:{second:02}"
