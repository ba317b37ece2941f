"""Ctrl-C, SIGTERM and SIGUSR1 as a request to stop after the step."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager


class StopSignals:
    """Turns Ctrl-C, SIGTERM or SIGUSR1 into a request to end after the step; a second Ctrl-C acts at once.

    SIGUSR1 is what SLURM is asked to send before the time is up. A launcher passes on a SIGTERM that its
    process group got as well, so a second one means nothing.
    """

    HEARD = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)

    def __init__(self) -> None:
        self.requested = False

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Listens while inside."""
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
