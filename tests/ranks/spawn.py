"""Runs a test's function in several real processes that form a gloo process group.

The processes are started from this file (`python spawn.py FOLDER RANK PARENT`), not forked, so each imports
torch afresh as under a launcher. They meet in a file store, leave their outcome in a file and end with their
parent.
"""

import contextlib
import ctypes
import os
import pickle
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

GRACE = 5.0  # seconds in which the other ranks may fail too and be heard, once one has
OUTPUT = 4000  # characters of a failed rank's output that are shown


class Outcome(NamedTuple):
    """How a rank ended: with a value, or with a traceback, at a time (seconds since the epoch)."""

    value: Any
    failure: str | None
    time: float


def run_ranks(
    function: Callable[..., Any],
    world_size: int,
    *args: Any,
    timeout: float = 180,
    env: dict[str, str] | None = None,
) -> list[Any]:
    """Calls `function(rank, world_size, *args)` in `world_size` processes and returns their values by rank.

    Args:
        function: a test module's top-level function; it, `args` and its value go through pickle.
            torch.distributed is initialised when it is called.
        world_size: number of processes.
        *args: further arguments, the same for all ranks.
        timeout: seconds after which all processes are killed.
        env: environment variables beside the launcher's own.

    Raises:
        AssertionError: a rank failed, ended without a value or did not end in time. The message has each such
            rank, the first to fail first, with its traceback and the end of its output.
    """
    with tempfile.TemporaryDirectory(prefix="ranks-") as name:
        folder = Path(name)
        # The path goes first and by itself: without it the function's module may not be found.
        (folder / "call").write_bytes(pickle.dumps(sys.path) + pickle.dumps((function, world_size, args)))
        processes = []
        try:
            port = _free_port()
            for rank in range(world_size):
                processes.append(_start(folder, rank, world_size, port, env or {}))
            in_time = _wait(processes, timeout)
        finally:
            for process in processes:
                _kill(process)
        outcomes = [_outcome(folder, rank) for rank in range(world_size)]
        failures = _failures(folder, processes, outcomes, in_time, timeout)
        assert not failures, "\n\n".join(failures)
        return [outcome.value for outcome in outcomes]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _start(folder: Path, rank: int, world_size: int, port: int, env: dict[str, str]) -> subprocess.Popen:
    place = {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "LOCAL_WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "GLOO_SOCKET_IFNAME": "lo",
        "DS_ACCELERATOR": "cpu",
        "OMP_NUM_THREADS": "1",
        "PYTHONUNBUFFERED": "1",
        # DeepSpeed looks for `ninja` on the path
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
    }
    with (folder / f"output-{rank}").open("wb") as output:
        return subprocess.Popen(
            [sys.executable, __file__, str(folder), str(rank), str(os.getpid())],
            env={**os.environ, **place, **env},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # a group of its own, so that what the rank starts is killed with it
        )


def _wait(processes: list[subprocess.Popen], timeout: float) -> bool:
    """Waits until all have ended, or `GRACE` after one has failed. False: `timeout` was over first."""
    deadline, failed = time.monotonic() + timeout, False
    while any(process.poll() is None for process in processes):
        if time.monotonic() > deadline:
            return failed
        if not failed and any(process.poll() for process in processes):
            failed, deadline = True, min(deadline, time.monotonic() + GRACE)
        time.sleep(0.02)
    return True


def _kill(process: subprocess.Popen) -> None:
    with contextlib.suppress(ProcessLookupError):  # the rank and all it started have ended
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _outcome(folder: Path, rank: int) -> Outcome | None:
    file = folder / f"outcome-{rank}"
    return Outcome(*pickle.loads(file.read_bytes())) if file.exists() else None


def _failures(
    folder: Path,
    processes: list[subprocess.Popen],
    outcomes: list[Outcome | None],
    in_time: bool,
    timeout: float,
) -> list[str]:
    """One text per rank that did not end well: the first failure first, killed ranks last."""
    texts = []
    for rank, (process, outcome) in enumerate(zip(processes, outcomes, strict=True)):
        if process.returncode == 0 and outcome is not None:
            continue
        if outcome is not None and outcome.failure:
            when, what = outcome.time, f"failed:\n{outcome.failure}"
        elif process.returncode == -signal.SIGKILL:
            reason = "another rank failed" if in_time else f"it did not end within {timeout:g} s"
            when, what = float("inf"), f"was killed because {reason}"
        else:
            when, what = 0.0, f"ended with exit status {process.returncode} and without a traceback"
        output = (folder / f"output-{rank}").read_text(errors="replace")[-OUTPUT:].strip()
        shown = f"{what.rstrip()}\n--- end of its output ---\n{output}" if output else what.rstrip()
        texts.append((when, rank, f"rank {rank} of {len(processes)} {shown}"))
    return [text for _, _, text in sorted(texts)]


def _end_with_parent(parent: int) -> None:
    """Lets the kernel kill this process when `parent` ends, so that none is left behind (Linux)."""
    pr_set_pdeathsig = 1
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)  # it has ended already


def _be_rank(folder: Path, rank: int) -> None:
    """The started process: joins the group, calls the function, leaves the outcome in a file."""
    failure = None
    try:
        with (folder / "call").open("rb") as call:
            sys.path[:] = pickle.load(call)
            import torch
            import torch.distributed as dist

            torch.set_num_threads(1)
            function, world_size, args = pickle.load(call)
        store = f"file://{folder}/store"
        dist.init_process_group("gloo", init_method=store, rank=rank, world_size=world_size)
        value = function(rank, world_size, *args)
        payload = pickle.dumps((value, None, time.time()))
    except BaseException:
        failure = traceback.format_exc()
        payload = pickle.dumps((None, failure, time.time()))
    aside = folder / f"aside-{rank}"
    aside.write_bytes(payload)
    aside.rename(folder / f"outcome-{rank}")
    if failure is None and dist.is_initialized():
        dist.destroy_process_group()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0 if failure is None else 1)  # see lingo_ds.commands.cli.leave


if __name__ == "__main__":
    _end_with_parent(int(sys.argv[3]))
    _be_rank(Path(sys.argv[1]), int(sys.argv[2]))
