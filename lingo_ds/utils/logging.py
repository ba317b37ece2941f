"""Who logs what: global rank 0 to the terminal and train.log, other processes only errors.

Import this module `as logs`: the standard library's `logging` keeps its name.
"""

import logging
import os
import sys
import warnings
from pathlib import Path

from rich.console import Console
from rich.logging import RichHandler

from lingo_ds.utils.errors import printable
from lingo_ds.utils.files import make_folder

console = Console(stderr=True, width=None if sys.stderr.isatty() else 160)
"""The log and the progress bar, on stderr."""

results = Console(width=None if sys.stdout.isatty() else 160)
"""Results that were asked for, on stdout."""


class _Printable(logging.Formatter):
    """Escapes control characters except line ends, so that no name from a file controls the terminal."""

    def format(self, record: logging.LogRecord) -> str:
        return "\n".join(printable(line) for line in super().format(record).split("\n"))


def set_up(*, rank: int, is_main: bool) -> None:
    """Sends this package's log to stderr and lowers that of libraries; `rank` is the global rank."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    package = logging.getLogger("lingo_ds")
    package.setLevel(logging.INFO if is_main else logging.ERROR)
    package.propagate = False
    message = "%(message)s" if is_main else f"[process {rank}] %(message)s"
    handler: logging.Handler
    if sys.stderr.isatty():
        handler = RichHandler(console=console, show_path=False, log_time_format="%H:%M:%S", markup=False)
        handler.setFormatter(_Printable(message))
    else:  # a file or a pipe, where nobody wants lines folded
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(_Printable(f"%(asctime)s %(levelname)-8s {message}", "%H:%M:%S"))
    package.handlers = [handler]
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed|transformers")


def write_to(folder: Path, *, is_main: bool) -> None:
    """Logs to `train.log` in the run's folder from now on, on global rank 0, and to no earlier run's.

    Raises:
        UserError: where the folder cannot be made.
    """
    if is_main:
        make_folder(folder, setting="output_dir")
        package = logging.getLogger("lingo_ds")
        for earlier in [one for one in package.handlers if isinstance(one, logging.FileHandler)]:
            package.removeHandler(earlier)
            earlier.close()
        handler = logging.FileHandler(folder / "train.log")
        handler.setFormatter(_Printable("%(asctime)s %(levelname)s %(message)s"))
        package.addHandler(handler)


def quieten_libraries() -> None:
    """Turns off the progress bars and the advice of transformers."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
