"""What is shown of runs that advance together, where stderr is no terminal and where it is one."""

import io
import logging

import pytest
from rich.console import Console

from lingo_ds.monitor.fleet_progress import FleetProgress


def test_one_log_line_tells_of_all_runs(caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO, "lingo_ds")
    logging.getLogger("lingo_ds").propagate = True
    console = Console(file=io.StringIO())
    display = FleetProgress(5, done=1, enabled=True, console=console, log_seconds=0)
    with (
        display,
        display.line("first", 10, "step") as first,
        display.line("second", 20, "step", done=5) as two,
    ):
        first.update(1, "loss 0.5")
        two.update(6, "loss 0.4")
    display.ended()
    assert "1 of 5 runs done; first: step 1/10  loss 0.5" in caplog.messages[0]
    assert "first: step 1/10  loss 0.5" in caplog.messages[1]
    assert "second: step 6/20  loss 0.4" in caplog.messages[1]


def test_a_run_that_has_ended_is_shown_no_more(caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO, "lingo_ds")
    logging.getLogger("lingo_ds").propagate = True
    display = FleetProgress(2, done=0, enabled=True, console=Console(file=io.StringIO()), log_seconds=0)
    with display.line("first", 2, "step") as line:
        line.update(2)
    display.ended()
    with display.line("second", 2, "step") as line:
        line.update(1)
    assert caplog.messages[-1].startswith("1 of 2 runs done; second: step 1/2")


def test_other_processes_show_nothing(caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO, "lingo_ds")
    display = FleetProgress(2, done=0, enabled=False, console=Console(file=io.StringIO()), log_seconds=0)
    with display, display.line("first", 2, "step") as line:
        line.update(1)
    assert not caplog.messages
