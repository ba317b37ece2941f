"""Who logs what: global rank 0 to the terminal and train.log, other processes only errors.

Import this module `as logs`: the standard library's `logging` keeps its name.
"""

import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.logging import RichHandler

from lingo_ds.utils.errors import printable
from lingo_ds.utils.files import make_folder

console = Console(stderr=True, width=None if sys.stderr.isatty() else 160)
"""The log and the progress bar, on stderr."""

results = Console(width=None if sys.stdout.isatty() else 160)
"""Results that were asked for, on stdout."""


class Speaker(NamedTuple):
    """Of several runs in one process the one that does something now: its name and its folder."""

    name: str
    folder: Path


_speaker: Speaker | None = None


@contextmanager
def speaking(speaker: Speaker | None) -> Iterator[None]:
    """Puts a run's name before its lines on the terminal, and writes them to its own file alone."""
    global _speaker
    before, _speaker = _speaker, speaker
    try:
        yield
    finally:
        _speaker = before


class _Printable(logging.Formatter):
    """Escapes control characters except line ends, so that no name from a file controls the terminal."""

    def format(self, record: logging.LogRecord) -> str:
        return "\n".join(printable(line) for line in super().format(record).split("\n"))


class _Named(logging.Filter):
    """Puts the name of the run that speaks before a message."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.speaker = f"{_speaker.name}: " if _speaker else ""
        return True


class _Own(logging.Filter):
    """Lets through what one run says, and what none of them says."""

    def __init__(self, folder: Path):
        super().__init__()
        self._folder = folder

    def filter(self, record: logging.LogRecord) -> bool:
        return _speaker is None or _speaker.folder == self._folder


def set_up(*, rank: int, is_main: bool) -> None:
    """Sends this package's log to stderr and lowers that of libraries; `rank` is the global rank."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    package = logging.getLogger("lingo_ds")
    package.setLevel(logging.INFO if is_main else logging.ERROR)
    package.propagate = False
    message = "%(speaker)s%(message)s" if is_main else f"[process {rank}] %(speaker)s%(message)s"
    handler: logging.Handler
    if sys.stderr.isatty():
        handler = RichHandler(console=console, show_path=False, log_time_format="%H:%M:%S", markup=False)
        handler.setFormatter(_Printable(message))
    else:  # a file or a pipe, where nobody wants lines folded
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(_Printable(f"%(asctime)s %(levelname)-8s {message}", "%H:%M:%S"))
    handler.addFilter(_Named())
    package.handlers = [handler]
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed|transformers")


@contextmanager
def written_to(folder: Path, *, is_main: bool) -> Iterator[None]:
    """Logs to `train.log` in the run's folder while inside, on global rank 0.

    Raises:
        UserError: where the folder cannot be made.
    """
    if not is_main:
        yield
        return
    make_folder(folder, setting="output_dir")
    package = logging.getLogger("lingo_ds")
    handler = logging.FileHandler(folder / "train.log")
    handler.setFormatter(_Printable("%(asctime)s %(levelname)s %(message)s"))
    handler.addFilter(_Own(folder))
    package.addHandler(handler)
    try:
        yield
    finally:
        package.removeHandler(handler)
        handler.close()


def quieten_libraries() -> None:
    """Turns off the progress bars and the advice of transformers."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
