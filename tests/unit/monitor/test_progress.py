"""The progress bar on a terminal, and its log lines elsewhere."""

import contextlib
import io
import logging
import os
import pty
from types import SimpleNamespace

import pytest
from rich.console import Console

from lingo_ds.monitor import progress as progress_module
from lingo_ds.monitor.progress import ProgressBar, SlowWork

pytestmark = pytest.mark.filterwarnings("error")


@pytest.fixture
def clock(monkeypatch):
    """The progress bar's clock, moved by hand."""
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(progress_module, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


@pytest.fixture
def no_terminal() -> Console:
    return Console(file=io.StringIO())


def messages(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records]


def test_log_lines_where_there_is_no_terminal(caplog, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")  # as in CI
    caplog.set_level(logging.INFO)
    stream = io.StringIO()
    with ProgressBar(100, "step", enabled=True, log_seconds=3600, console=Console(file=stream)) as bar:
        for step in range(1, 101):
            bar.update(step, f"loss {1 / step:.4f}")
    assert stream.getvalue() == ""
    first, last = messages(caplog)
    assert first.startswith("step 1/100  loss 1.0000  0:00:00 passed, ")
    assert last == "step 100/100  loss 0.0100  0:00:00 passed, 0:00:00 left"


def test_log_lines_come_every_ten_seconds(caplog, clock, no_terminal):
    caplog.set_level(logging.INFO)
    with ProgressBar(1000, "step", enabled=True, console=no_terminal) as bar:
        for step in range(1, 31):
            clock.now += 2
            bar.update(step)
    steps = [message.split()[1] for message in messages(caplog)]
    assert steps == ["1/1000", "6/1000", "11/1000", "16/1000", "21/1000", "26/1000"]


def test_time_left_of_a_resumed_run_uses_its_own_steps(caplog, clock, no_terminal):
    caplog.set_level(logging.INFO)
    with ProgressBar(1000, "step", enabled=True, done=900, console=no_terminal) as bar:
        clock.now += 100
        bar.update(910)
    assert messages(caplog) == ["step 910/1000  0:01:40 passed, 0:15:00 left"]  # 90 steps of 10 s


def test_without_a_total_the_rate_is_shown_and_the_share_tells_the_time_left(caplog, clock, no_terminal):
    """Of a file of 4,000 sequences 1,000 were done before; this process does 1,000 more in 50 s."""
    caplog.set_level(logging.INFO)
    with ProgressBar(None, "sequences", enabled=True, done=1000, console=no_terminal) as bar:
        clock.now += 50
        bar.update(2000, fraction=0.5)
        clock.now += 100
        bar.update(4000, fraction=1.0)
    assert messages(caplog) == [
        "2,000 sequences  20 sequences/s  0:00:50 passed, 0:01:40 left",
        "4,000 sequences  20 sequences/s  0:02:30 passed, 0:00:00 left",
    ]


def test_a_bar_on_a_terminal_and_no_lines(caplog):
    caplog.set_level(logging.INFO)
    reader, writer = pty.openpty()
    with os.fdopen(writer, "w") as terminal:
        console = Console(file=terminal, width=160, force_terminal=True, _environ={"TERM": "xterm"})
        with ProgressBar(10, "step", enabled=True, console=console) as bar:
            for step in range(1, 11):
                bar.update(step, "loss 0.5000")
    shown = b""
    with contextlib.suppress(OSError):  # how a terminal whose other end is closed says that this was all
        while part := os.read(reader, 4096):
            shown += part
    os.close(reader)
    for words in ("step 10/10", "loss 0.5000", "left"):
        assert words in shown.decode()
    assert not caplog.records


def test_other_processes_show_nothing(caplog):
    caplog.set_level(logging.INFO)
    stream = io.StringIO()
    with ProgressBar(2, "step", enabled=False, console=Console(file=stream)) as bar:
        bar.update(2)
    assert stream.getvalue() == ""
    assert not caplog.records


def test_slow_work_shows_rate_and_time_left_and_what_it_took(caplog, clock):
    """613 sequences of a slow model, 100 in 40 s; two processes count in steps that pass the end."""
    caplog.set_level(logging.INFO)
    with SlowWork("dev", 613, "sequences", enabled=True) as work:
        for done in (100, 200, 614):
            clock.now += 40
            work.update(done)
    assert messages(caplog) == [
        "dev  100/613 sequences  2.5/s  0:00:40 passed, 0:03:25 left",
        "dev  200/613 sequences  2.5/s  0:01:20 passed, 0:02:45 left",
        "dev  613 sequences, 5.1/s, in 0:02:00",
    ]


def test_quick_work_and_other_processes_log_nothing(caplog, clock):
    caplog.set_level(logging.INFO)
    for enabled, seconds in ((True, 4), (False, 400)):
        with SlowWork("dev", 100, "sequences", enabled=enabled) as work:
            for done in (50, 100):
                clock.now += seconds
                work.update(done)
    assert messages(caplog) == []
