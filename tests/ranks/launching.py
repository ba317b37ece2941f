"""Commands as a user types them, in a session of their own, watched to the last process they start."""

import contextlib
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import psutil

from lingo_ds.distributed.process_group import free_port
from tests.first_rows import first_rows

CHECKOUT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
RECIPE = CHECKOUT / "recipes" / "gue_prom_core_tata.yaml"
MARK = "LINGO_DS_TEST_LAUNCH"
ROWS = {"train": 200, "dev": 60, "test": 60}


class Ended(NamedTuple):
    """A launch that is over: exit status, all it said, seconds since the signal, processes that it left."""

    status: int
    output: str
    seconds: float
    orphans: list[psutil.Process]


class Scenario:
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
                command, cwd=folder, env=env, stdin=subprocess.DEVNULL, stdout=output,
                stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip

    @property
    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def own_processes(self) -> list[psutil.Process]:
        """Every process that this launch started, however deep, by a mark in the environment."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get(MARK) == self.mark and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def wait(self, seconds: float) -> Ended:
        """Waits until the launch and all its processes have ended, at most so long."""
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
def starting() -> Iterator[Callable[..., Scenario]]:
    """Starts commands and leaves none behind."""
    jobs = []

    def job(command: list[str], folder: Path, **env: str) -> Scenario:
        jobs.append(Scenario(command, folder, env))
        return jobs[-1]

    try:
        yield job
    finally:
        for one in jobs:
            one.end()


def launch(start: Callable[..., Scenario], folder: Path, overrides: list[str]) -> Scenario:
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
