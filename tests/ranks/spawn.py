"""Runs a test's function in several real processes that form a gloo process group.

The processes are forked from servers that have imported the libraries (`fork_server`). They meet in a file
store, leave their outcome in a file and end with their parent.
"""

import contextlib
import os
import pickle
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, NamedTuple

from lingo_ds.distributed.process_group import free_port
from tests.ranks.fork_server import ForkServer, Request

SERVERS = 2
"""Neighbouring ranks come from different ones, so that hashes of text differ between them as in a job."""

IMPORTED = (
    "pytest",
    "deepspeed",
    "lingo_ds.commands.train",
    "lingo_ds.commands.predict",
    "matplotlib.pyplot",
    "pandas",
    "sklearn.metrics",
    "tensorboard.backend.event_processing.event_accumulator",
    "transformers.models.auto.modeling_auto",
    "transformers.models.gpt2.modeling_gpt2",
    "transformers.models.llama.modeling_llama",
    "transformers.models.opt.modeling_opt",
)
"""Modules that the ranks have already; importing them takes longer than most of what ranks do."""

GRACE = 5.0
"""Seconds in which the other ranks may fail too and be heard, once one has."""

OUTPUT = 4000
"""Characters of a failed rank's output that are shown."""


class Outcome(NamedTuple):
    """What a rank left: a value or a traceback, and the time of it (seconds since the epoch)."""

    value: Any
    failure: str | None
    time: float


@dataclass
class Rank:
    """A started rank; `status` is None while it runs, then its exit status."""

    server: ForkServer
    pid: int
    status: int | None = None


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
        ranks: list[Rank] = []
        try:
            _start(ranks, folder, world_size, env or {})
            in_time = _wait(ranks, timeout)
            _kill(ranks)
        except BaseException:  # interrupted, or a server has ended: the next call begins with new ones
            _signal_groups(ranks)
            stop_servers()
            raise
        outcomes = [_outcome(folder, rank) for rank in range(world_size)]
        failures = _failures(folder, ranks, outcomes, in_time, timeout)
        assert not failures, "\n\n".join(failures)
        return [outcome.value for outcome in outcomes]


def stop_servers() -> None:
    """Ends the servers and their ranks."""
    while _servers:
        _servers.popitem()[1].stop()


_servers: dict[int, ForkServer] = {}


def _start(ranks: list[Rank], folder: Path, world_size: int, env: dict[str, str]) -> None:
    """Forks all ranks, in turn from each server; appends them to `ranks`."""
    port = free_port()
    requests = [
        Request(folder, rank, _environment(rank, world_size, port) | env, os.getcwd())
        for rank in range(world_size)
    ]
    slots = range(min(SERVERS, world_size))
    for slot in slots:  # they import at the same time
        if slot not in _servers:
            _servers[slot] = ForkServer(_environment(0, 1, port), IMPORTED)
    started: dict[int, Rank] = {}
    for slot in slots:
        server, own = _servers[slot], requests[slot::SERVERS]
        for request, pid in zip(own, server.fork(own), strict=True):
            started[request.rank] = Rank(server, pid)
    ranks += [started[rank] for rank in range(world_size)]


def _environment(rank: int, world_size: int, port: int) -> dict[str, str]:
    return {
        **os.environ,
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


def _wait(ranks: list[Rank], timeout: float) -> bool:
    """Waits until all have ended, or `GRACE` after one has failed. False: `timeout` was over first."""
    deadline, failed = time.monotonic() + timeout, False
    while any(rank.status is None for rank in ranks):
        left = deadline - time.monotonic()
        if left <= 0:
            return failed
        _note_ended(ranks, left)
        if not failed and any(rank.status for rank in ranks):
            failed, deadline = True, min(deadline, time.monotonic() + GRACE)
    return True


def _note_ended(ranks: list[Rank], seconds: float | None = None) -> None:
    """Waits until some rank ends, at most so long, and notes its status."""
    running = {rank.pid: rank for rank in ranks if rank.status is None}
    for connection in wait({rank.server.connection for rank in running.values()}, seconds):
        pid, status = connection.recv()
        running[pid].status = status


def _kill(ranks: list[Rank]) -> None:
    """Kills what runs, with all that any rank has started, and waits for its end."""
    _signal_groups(ranks)
    while any(rank.status is None for rank in ranks):
        _note_ended(ranks)


def _signal_groups(ranks: list[Rank]) -> None:
    for rank in ranks:
        with contextlib.suppress(ProcessLookupError):  # the rank and all it started have ended
            os.killpg(rank.pid, signal.SIGKILL)


def _outcome(folder: Path, rank: int) -> Outcome | None:
    file = folder / f"outcome-{rank}"
    return Outcome(*pickle.loads(file.read_bytes())) if file.exists() else None


def _failures(
    folder: Path, ranks: list[Rank], outcomes: list[Outcome | None], in_time: bool, timeout: float
) -> list[str]:
    """One text per rank that did not end well: the first failure first, killed ranks last."""
    texts = []
    for number, (rank, outcome) in enumerate(zip(ranks, outcomes, strict=True)):
        if rank.status == 0 and outcome is not None:
            continue
        if outcome is not None and outcome.failure:
            when, what = outcome.time, f"failed:\n{outcome.failure}"
        elif rank.status == -signal.SIGKILL:
            reason = "another rank failed" if in_time else f"it did not end within {timeout:g} s"
            when, what = float("inf"), f"was killed because {reason}"
        else:
            when, what = 0.0, f"ended with exit status {rank.status} and without a traceback"
        output = (folder / f"output-{number}").read_text(errors="replace")[-OUTPUT:].strip()
        shown = f"{what.rstrip()}\n--- end of its output ---\n{output}" if output else what.rstrip()
        texts.append((when, number, f"rank {number} of {len(ranks)} {shown}"))
    return [text for _, _, text in sorted(texts)]
