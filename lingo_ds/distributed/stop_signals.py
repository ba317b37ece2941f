"""Turns Ctrl-C, SIGTERM and SIGUSR1 into a request to stop after the step."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager


class StopSignals:
    """Records a signal as `requested`; a second Ctrl-C interrupts at once.

    SLURM is asked to send SIGUSR1 before the time limit. A launcher forwards a SIGTERM that its whole process
    group has received already, so a second one is ignored.
    """

    HEARD = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)

    def __init__(self) -> None:
        self.requested = False

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Handles the signals while inside."""
        before = {number: signal.getsignal(number) for number in self.HEARD}

        def request(number: int, _frame: object) -> None:
            self.requested = True
            if number == signal.SIGINT:
                signal.signal(number, before[signal.SIGINT])

        for number in before:
            signal.signal(number, request)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
