"""A process that imports the libraries once and forks ranks on request, each in a few milliseconds.

Forking is safe because the server only imports: it starts no thread of torch's and joins no process group.
"""

import contextlib
import ctypes
import gc
import importlib
import os
import pickle
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Sequence
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import NamedTuple, NoReturn

import numpy as np
import torch
import torch.distributed as dist


class Request(NamedTuple):
    """One rank to be forked.

    Attributes:
        folder: of the call: `output-RANK` takes what the rank writes.
        rank: its number.
        env: its whole environment.
        cwd: its working directory.
    """

    folder: Path
    rank: int
    env: dict[str, str]
    cwd: str


class Ended(NamedTuple):
    """A rank that has ended, with its exit status; negative: the signal that killed it."""

    pid: int
    status: int


class ForkServer:
    """A server seen from the process that started it; it and its ranks end with that process.

    Args:
        env: the server's environment.
        imported: names of the modules that it imports first.

    Attributes:
        connection: gives an `Ended` for each rank that ends.
    """

    def __init__(self, env: dict[str, str], imported: Sequence[str]):
        self.connection, theirs = Pipe()
        with theirs:
            code = (
                f"import sys\nsys.path[:] = {sys.path!r}\n"
                f"from tests.ranks.fork_server import main\n"
                f"main({theirs.fileno()}, {list(imported)}, parent={os.getpid()})"
            )
            self._process = subprocess.Popen(
                [sys.executable, "-c", code],
                env=env,
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # Ctrl-C in a terminal is pytest's
            )

    def fork(self, requests: list[Request]) -> list[int]:
        """Starts ranks, all of a call at once; returns their process ids.

        Raises:
            EOFError, ConnectionError: the server has ended; its traceback is on stderr.
        """
        self.connection.send(requests)
        return self.connection.recv()

    def stop(self) -> None:
        """Ends the server, and with it its ranks."""
        self.connection.close()
        self._process.kill()
        self._process.wait()


def main(descriptor: int, imported: list[str], *, parent: int) -> None:
    """Imports the modules in the server's process, then serves until the other end is closed."""
    _end_with_parent(parent)
    connection = Connection(descriptor)
    os.set_inheritable(descriptor, False)
    for name in imported:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # the ranks leave these pages shared
    with contextlib.suppress(EOFError):
        while True:
            _fork_all(connection, connection.recv())


def _fork_all(connection: Connection, requests: list[Request]) -> None:
    """Forks the ranks of one call, and reports each rank's end."""
    server, ranks = os.getpid(), []
    for request in requests:
        pid = os.fork()
        if pid == 0:
            connection.close()
            _become_rank(request, server)
            _run_rank(request.folder, request.rank)
        with contextlib.suppress(OSError):  # the rank did so first
            os.setpgid(pid, pid)
        ranks.append(pid)
    connection.send(ranks)
    for _ in ranks:
        pid, status = os.wait()
        connection.send(Ended(pid, os.waitstatus_to_exitcode(status)))


def _become_rank(request: Request, server: int) -> None:
    """Gives the forked process its own group, output, environment and random state."""
    os.setpgid(0, 0)  # what the rank starts is killed with it
    _end_with_parent(server)
    output = os.open(request.folder / f"output-{request.rank}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.close(output)
    os.environ.clear()
    os.environ.update(request.env)
    os.chdir(request.cwd)
    np.random.seed()  # else all ranks would draw alike, as no two processes of a job do


def _run_rank(folder: Path, rank: int) -> NoReturn:
    """Joins the group, calls the function and leaves the outcome in a file."""
    failure = None
    try:
        with (folder / "call").open("rb") as call:
            sys.path[:] = pickle.load(call)
            function, world_size, args = pickle.load(call)
        torch.set_num_threads(1)
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
    os._exit(0 if failure is None else 1)  # see lingo_ds.commands.cli.exit_process


def _end_with_parent(parent: int) -> None:
    """Lets the kernel kill this process when `parent` ends, so that none is left behind (Linux)."""
    pr_set_pdeathsig = 1
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)  # it has ended already
