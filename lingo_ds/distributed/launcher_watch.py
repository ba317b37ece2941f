"""Ends this process once its launcher is gone: nobody else would, and it would train on for nobody.

Kept on purpose instead of `prctl(PR_SET_PDEATHSIG)`, whose signal comes only when the direct parent ends.
Under `deepspeed` that is `deepspeed.launcher.launch`, which outlives the runner above it where the runner is
killed; so the whole chain of launchers is looked at.
"""

import logging
import os
import signal
import time

import psutil

logger = logging.getLogger(__name__)

GRACE = 40.0
"""Seconds that a process has to end by itself once its launcher is gone."""

LAUNCHERS = (
    "deepspeed",
    "torchrun",
    "torch.distributed",
    "mpirun",
    "mpiexec",
    "orted",
    "prted",
    "srun",
    "slurmstepd",
)
"""Beginnings of the words by which a launcher's command line is recognised."""


class LauncherWatch:
    """The launcher's processes right above this one, which must all be there."""

    def __init__(self) -> None:
        self._launchers = _launchers()
        self._gone_since: float | None = None

    def check(self) -> None:
        """Once the launcher is gone, asks this process to end by SIGTERM; ends it `GRACE` seconds later."""
        if self._gone_since is None:
            if all(is_running(process.pid) and process.is_running() for process in self._launchers):
                return
            self._gone_since = time.monotonic()
            logger.error("the launcher is gone: this process ends after the step")
            os.kill(os.getpid(), signal.SIGTERM)
        elif time.monotonic() > self._gone_since + GRACE:
            os._exit(1)


def is_running(pid: int) -> bool:
    """Whether there is a process of this id that has not ended yet."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _launchers() -> list[psutil.Process]:
    """The unbroken chain of launcher processes that begins with this process's parent."""
    found = []
    for process in psutil.Process().parents():
        try:
            words = [os.path.basename(word) for word in process.cmdline()]
        except psutil.Error:
            break
        if not any(word.startswith(LAUNCHERS) for word in words[:4]):
            break
        found.append(process)
    return found
