"""Compiles the pretend card and calls functions in processes that have it.

The device must be there before torch is imported, so that no such test runs in pytest's own process.
"""

import hashlib
import os
import pickle
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from lingo_ds.distributed.process_group import free_port

HERE = Path(__file__).resolve().parent
CHECKOUT = HERE.parents[1]
SOURCE = HERE / "device.cpp"
OUTPUT = 6000
"""Characters of a failed process's output that are shown."""


class CannotBuild(Exception):
    """There is no compiler here, or it does not take torch's headers."""


def build(folder: Path) -> Path:
    """The compiled device; one that is in `folder` for this source and this torch is used again.

    Raises:
        CannotBuild: with the reason.
    """
    if shutil.which("g++") is None:
        raise CannotBuild("the pretend card needs g++")
    if torch.backends.cuda.is_built():
        raise CannotBuild(
            f"torch {torch.__version__} is built for CUDA, whose place the pretend card would take"
        )
    home = Path(torch.__file__).parent
    key = hashlib.sha256(SOURCE.read_bytes() + (home / "version.py").read_bytes() + str(home).encode())
    library = folder / f"device-{key.hexdigest()[:16]}.so"
    if library.exists():
        return library
    aside = library.with_suffix(f".{os.getpid()}")
    headers = [f"-I{home / 'include'}", f"-I{home / 'include' / 'torch' / 'csrc' / 'api' / 'include'}"]
    libraries = [f"-L{home / 'lib'}", "-lc10", "-ltorch_cpu", "-ltorch", f"-Wl,-rpath,{home / 'lib'}"]
    command = ["g++", "-std=c++20", "-O1", "-fPIC", "-shared", str(SOURCE), "-o", str(aside)]
    done = subprocess.run([*command, *headers, *libraries], capture_output=True, text=True)
    if done.returncode:
        raise CannotBuild(f"g++ does not compile the pretend card: {done.stderr[:600]}")
    aside.rename(library)
    return library


class Cards:
    """Processes with pretend cards."""

    def __init__(self, library: Path):
        self._library = library

    def call(
        self,
        function: Callable[..., Any],
        *args: Any,
        processes: int = 1,
        timeout: float = 240,
        env: Callable[[int], dict[str, str]] = lambda rank: {},
    ) -> list[Any]:
        """Calls `function(*args)` in `processes` processes of one job; returns their values by rank.

        Args:
            function: a test module's top-level function; it, `args` and its value go through pickle.
            *args: its arguments, the same for all.
            processes: number of processes.
            timeout: seconds after which all of them are killed.
            env: a rank's environment variables beside the launcher's own.

        Raises:
            AssertionError: where one failed or did not end in time, with the end of its output.
        """
        with tempfile.TemporaryDirectory(prefix="pretend-") as name:
            folder = Path(name)
            # The path goes first and by itself: without it the function's module may not be found.
            path = [str(CHECKOUT), *sys.path]
            (folder / "call").write_bytes(pickle.dumps(path) + pickle.dumps((function, args)))
            started = []
            try:
                for rank in range(processes):
                    started.append(self._start(folder, rank, processes, env(rank)))
                statuses = _wait(started, timeout)
            finally:
                for process in started:
                    process.kill()
                    process.wait()
            failed = [rank for rank, status in enumerate(statuses) if status != 0]
            shown = [(folder / f"output-{rank}").read_text(errors="replace")[-OUTPUT:] for rank in failed]
            assert not failed, "\n\n".join(
                f"process {rank}: status {statuses[rank]}\n{text}"
                for rank, text in zip(failed, shown, strict=True)
            )
            return [pickle.loads((folder / f"value-{rank}").read_bytes()) for rank in range(processes)]

    def _start(
        self, folder: Path, rank: int, processes: int, env: dict[str, str]
    ) -> "subprocess.Popen[bytes]":
        job = {"PYTHONPATH": str(CHECKOUT), "DS_ACCELERATOR": "cuda", "PRETEND_LIBRARY": str(self._library)}
        if processes > 1:
            job |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)}
            job |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": self._port(rank)}
        with (folder / f"output-{rank}").open("wb") as output:
            return subprocess.Popen(
                [sys.executable, "-m", "tests.pretend.process", str(folder)],
                cwd=CHECKOUT,
                env={**os.environ, **job, **env},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def _port(self, rank: int) -> str:
        """A free port, chosen for rank 0 and told to the others."""
        if rank == 0:
            self._chosen = str(free_port())
        return self._chosen


def _wait(started: "list[subprocess.Popen[bytes]]", timeout: float) -> list[int | None]:
    """Statuses once all have ended, one has failed, or the time is over; None: still running."""
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        statuses = [process.poll() for process in started]
        if None not in statuses or any(statuses):
            return statuses
        time.sleep(0.1)
    return [process.poll() for process in started]
