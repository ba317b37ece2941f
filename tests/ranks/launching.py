"""Commands as a user types them, in a session of their own, watched to the last process they start."""

import contextlib
import io
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import psutil

from lingo_ds.commands.cli import main
from lingo_ds.distributed.process_group import free_port
from tests.first_rows import first_rows

CHECKOUT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
RECIPE = CHECKOUT / "recipes" / "gue_prom_core_tata.yaml"
MARK = "LINGO_DS_TEST_LAUNCH"
ROWS = {"train": 200, "dev": 60, "test": 60}
STEPS = ["train.max_steps=6", "train.eval_steps=6"]
"""Settings of the runs that are compared with `deepspeed_run`; the recipe itself asks for shards."""


class Ended(NamedTuple):
    """A command that has ended: exit status, output, seconds waited for, processes left behind."""

    status: int
    output: str
    seconds: float
    orphans: list[psutil.Process]


class FinishedRun(NamedTuple):
    """A training command that has ended, and the folder of its run."""

    ended: Ended
    folder: Path


class Job:
    """A running command, in a session and process group of its own as in a terminal."""

    def __init__(self, command: list[str], folder: Path, env: dict[str, str]):
        self.mark, self.log = uuid.uuid4().hex, folder / f"output-{uuid.uuid4().hex}.txt"
        env = {
            **os.environ,
            MARK: self.mark,
            "PATH": os.pathsep.join([str(BIN), os.environ.get("PATH", os.defpath)]),
            "PYTHONPATH": str(CHECKOUT),
            "DS_ACCELERATOR": "cpu",
            "OMP_NUM_THREADS": "1",
            **env,
        }
        with self.log.open("wb") as output:
            self.process = subprocess.Popen(
                command,
                cwd=folder,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def own_processes(self) -> list[psutil.Process]:
        """Every process that the command started, directly or not, known by a mark in the environment."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get(MARK) == self.mark and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def wait(self, seconds: float) -> Ended:
        """Waits until the command and all its processes have ended, at most so long."""
        start = time.monotonic()
        self.process.wait(seconds)
        left = self.own_processes()
        while left and time.monotonic() < start + seconds:
            time.sleep(0.2)
            left = self.own_processes()
        return Ended(self.process.returncode, self.output, time.monotonic() - start, left)

    def end(self) -> None:
        for process in self.own_processes():
            with contextlib.suppress(psutil.Error):
                process.kill()
        self.process.wait()


@contextlib.contextmanager
def starting() -> Iterator[Callable[..., Job]]:
    """Starts commands; kills what is left of them at the end."""
    jobs = []

    def job(command: list[str], folder: Path, **env: str) -> Job:
        jobs.append(Job(command, folder, env))
        return jobs[-1]

    try:
        yield job
    finally:
        for one in jobs:
            one.end()


def run_command(words: list[str]) -> tuple[int, str]:
    """Exit status and stderr of `lingo-ds WORDS`, run in this process; for a rank of `run_ranks`."""
    shown = io.StringIO()
    with contextlib.redirect_stderr(shown):
        status = main(words)
    return status, shown.getvalue()


def launch(start: Callable[..., Job], folder: Path, overrides: list[str]) -> Job:
    """Starts `deepspeed launchers/train.py` on two processes."""
    launcher = [str(BIN / "deepspeed"), "--num_accelerators", "2", "--master_port", str(free_port())]
    script = [str(CHECKOUT / "launchers" / "train.py"), "--config", str(RECIPE)]
    return start([*launcher, *script, *overrides], folder)


def small_run(shared: Path, folder: Path) -> list[str]:
    """Overrides for the shipped recipe: the first rows of its data, all that it writes below `folder`."""
    data = first_rows(shared / "data" / "gue" / "prom_core_tata", folder / "data", ROWS)
    return [
        f"backbone.path={shared / 'backbones' / 'stories260k'}",
        f"data.path={data}",
        f"data.cache_dir={folder / 'cache'}",
        f"output_dir={folder / 'run'}",
        "rank_sampling.interval=2",
    ]
