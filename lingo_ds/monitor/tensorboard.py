"""Writes to TensorBoard and `metrics.jsonl`; a failure to write is one warning and never stops a run."""

import logging
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np

from lingo_ds.monitor.metrics_log import MetricsLog

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

logger = logging.getLogger(__name__)

_QUEUE = 1000
"""Events that may wait for a slow file system before a call blocks."""


class Tracker:
    """Writes scalars, pictures, histograms and text under a folder, for TensorBoard; scalars also as lines.

    A tracker without a writer does nothing. Processes other than the first hold such a one
    (`Tracker.null()`), and a tracker whose folder cannot be written becomes one after a warning.
    """

    def __init__(self, folder: Path | None, *, purge_from: int | None = None, lines: Path | None = None):
        """Opens an event file in `folder`.

        Args:
            folder: folder of the event file, made if absent; None records nothing.
            purge_from: first step that a resumed run records again; what this folder holds from that step
                on is hidden, and what `lines` holds is removed.
            lines: the file for the scalars as JSON lines, see `MetricsLog`; None: there is none.
        """
        self._folder = folder
        self._lines_path = lines
        self._open(purge_from)

    def _open(self, purge_from: int | None) -> None:
        self._writer: SummaryWriter | None = None
        self._lines: MetricsLog | None = None
        if self._folder is not None:
            from torch.utils import tensorboard  # takes a second to import

            try:
                self._writer = tensorboard.SummaryWriter(
                    self._folder, max_queue=_QUEUE, flush_secs=30, purge_step=purge_from
                )
                _silence_writer_thread()
            except Exception as error:
                self._give_up(error)
        if self._lines_path is not None:
            try:
                self._lines = MetricsLog(self._lines_path, first_step=purge_from or 0)
            except OSError as error:
                self._give_up_lines(error)

    @classmethod
    def null(cls) -> Self:
        """The tracker of a process that records nothing."""
        return cls(None)

    def rewind(self, step: int) -> None:
        """Records anew from `step` on: what event files hold from there is hidden, lines are removed."""
        self.close()
        self._open(step)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Records numbers under full tags such as `train/loss`."""
        for tag, value in values.items():
            self._write(lambda writer, tag=tag, value=value: writer.add_scalar(tag, value, step))
        self._write_lines(lambda lines: lines.write(step, values))

    def image(self, step: int, tag: str, array: np.ndarray) -> None:
        """Records a picture, (height, width, 3) uint8."""
        self._write(lambda writer: writer.add_image(tag, array, step, dataformats="HWC"))

    def histogram(self, step: int, tag: str, array: np.ndarray) -> None:
        """Records the distribution of the finite numbers in an array of any shape."""
        values = np.asarray(array, dtype=np.float64).ravel()
        finite = values[np.isfinite(values)]
        if finite.size:
            self._write(lambda writer: writer.add_histogram(tag, finite, step))

    def text(self, step: int, tag: str, text: str) -> None:
        """Records a text, which TensorBoard shows as Markdown."""
        self._write(lambda writer: writer.add_text(tag, text, step))

    def close(self) -> None:
        """Waits until everything is written; later calls do nothing."""
        self._write(lambda writer: writer.close())
        self._writer = None
        self._write_lines(lambda lines: lines.close())
        self._lines = None

    def _write(self, write: Callable) -> None:
        if self._writer is None or self._folder is None:
            return
        try:
            # The writer's own thread would find the folder missing first, and print a stray traceback.
            if not self._folder.is_dir():
                raise FileNotFoundError(f"{self._folder} is gone")
            write(self._writer)
        except Exception as error:  # whatever it is, a curve is not worth a training run
            self._give_up(error)

    def _write_lines(self, write: Callable[[MetricsLog], None]) -> None:
        if self._lines is None:
            return
        try:
            write(self._lines)
        except OSError as error:
            self._give_up_lines(error)

    def _give_up_lines(self, error: OSError) -> None:
        self._lines = None
        logger.warning("metrics.jsonl: cannot be written (%s): nothing more is recorded there", error)

    def _give_up(self, error: Exception) -> None:
        self._writer = None
        logger.warning(
            "TensorBoard: cannot write to %s (%s: %s): nothing more is recorded there, training goes on",
            self._folder,
            type(error).__name__,
            error,
        )


def _silence_writer_thread() -> None:
    """Replaces `threading.excepthook` for the whole process: TensorBoard's thread prints no traceback.

    The thread keeps its error for the next call, which reports it.
    """
    if not isinstance(threading.excepthook, _QuietWriterThread):
        threading.excepthook = _QuietWriterThread(threading.excepthook)


class _QuietWriterThread:
    """An excepthook that leaves out TensorBoard's threads."""

    def __init__(self, before: Callable[[threading.ExceptHookArgs], object]):
        self._before = before

    def __call__(self, args: threading.ExceptHookArgs) -> None:
        if not type(args.thread).__module__.startswith("tensorboard."):
            self._before(args)
