"""Reads a process's rank and the job's address from its launcher: deepspeed, torchrun, SLURM or MPI."""

import hashlib
import os
import re
import socket
import tempfile
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

from lingo_ds.utils.errors import Mistake, UserError

FIRST_PORT, PORTS = 20_000, 10_000
"""First port and number of ports for SLURM's jobs, below those that the system assigns by itself."""
_NO_STEP = 0xFFFFFFF0
"""First of SLURM's step ids that are not of an `srun`: the batch script, an interactive shell."""


class RankInfo(NamedTuple):
    """Ranks of one process, counted from 0, and the address at which the job's processes meet.

    Attributes:
        launcher: the launcher's name, for messages; None: this process is alone.
        address: address of the host of global rank 0; None: not known yet.
        port: free port on that host; None: not known yet.
    """

    rank: int
    local_rank: int
    world_size: int
    local_world_size: int
    launcher: str | None
    address: str | None
    port: int | None


def find_rank(environ: Mapping[str, str]) -> RankInfo:
    """Reads a process's ranks from its launcher's environment variables.

    A launcher takes precedence over the scheduler that it runs in: `deepspeed` and `mpirun` inside of a SLURM
    job start their own processes.

    Raises:
        UserError: where the variables are not numbers, or contradict each other.
    """
    for find in (_torch, _open_mpi, _slurm, _mpich):
        if (info := find(environ)) is not None:
            _check(info)
            return info
    return RankInfo(0, 0, 1, 1, None, None, None)


def may_be_rank_zero(environ: Mapping[str, str]) -> bool:
    """Whether this is global rank 0, or may be, where its rank cannot be read."""
    try:
        return find_rank(environ).rank == 0
    except UserError:
        return True


def reports_first(text: str, environ: Mapping[str, str]) -> bool:
    """Whether no other process of this job on this host has reported the same text before.

    Processes that find the same mistake cannot agree on who reports it: one of them may be gone already. The
    first one leaves an empty file, named by the text, by the launcher that started them all, and by the port
    at which they meet.
    """
    try:
        if find_rank(environ).world_size == 1:
            return True
        parent = os.getppid()
        began = Path(f"/proc/{parent}/stat").read_text().rpartition(")")[2].split()[19]
        job = f"{parent} {began} {environ.get('MASTER_PORT')}"
        known = hashlib.sha256(f"{job} {text}".encode()).hexdigest()[:32]
        os.close(os.open(Path(tempfile.gettempdir()) / f"lingo_ds-{known}", os.O_CREAT | os.O_EXCL, 0o600))
    except FileExistsError:
        return False
    except (OSError, UserError, IndexError):
        return True
    return True


def _torch(environ: Mapping[str, str]) -> RankInfo | None:
    """A process of `deepspeed`, `torchrun` or any launcher that sets torch's own variables."""
    if "RANK" not in environ:
        return None
    world_size = _number(environ, "WORLD_SIZE", default=1)
    local = "LOCAL_WORLD_SIZE" if "LOCAL_WORLD_SIZE" in environ else "LOCAL_SIZE"
    return RankInfo(
        _number(environ, "RANK"),
        _number(environ, "LOCAL_RANK", default=0),
        world_size,
        _number(environ, local, default=world_size),
        "torch",
        *_meeting(environ),
    )


def _slurm(environ: Mapping[str, str]) -> RankInfo | None:
    """A task of `srun`; the processes meet on the step's first node."""
    if "SLURM_PROCID" not in environ or _number(environ, "SLURM_STEP_ID", default=_NO_STEP) >= _NO_STEP:
        return None
    address, port = _meeting(environ)
    nodes = environ.get("SLURM_STEP_NODELIST") or environ.get("SLURM_JOB_NODELIST", "")
    job, step = _number(environ, "SLURM_JOB_ID"), _number(environ, "SLURM_STEP_ID")
    world_size = _number(environ, "SLURM_STEP_NUM_TASKS", default=_number(environ, "SLURM_NTASKS", default=1))
    tasks = environ.get("SLURM_STEP_TASKS_PER_NODE") or environ.get("SLURM_TASKS_PER_NODE", str(world_size))
    return RankInfo(
        _number(environ, "SLURM_PROCID"),
        _number(environ, "SLURM_LOCALID", default=0),
        world_size,
        tasks_per_node(tasks)[_number(environ, "SLURM_NODEID", default=0)],
        "SLURM",
        address or first_node(nodes),
        port or FIRST_PORT + (97 * job + step) % PORTS,
    )


def _open_mpi(environ: Mapping[str, str]) -> RankInfo | None:
    """A process of Open MPI's `mpirun`."""
    names = ("RANK", "LOCAL_RANK", "SIZE", "LOCAL_SIZE")
    return _mpi(environ, *(f"OMPI_COMM_WORLD_{name}" for name in names))


def _mpich(environ: Mapping[str, str]) -> RankInfo | None:
    """A process of MPICH's or Intel MPI's `mpirun`."""
    return _mpi(environ, "PMI_RANK", "MPI_LOCALRANKID", "PMI_SIZE", "MPI_LOCALNRANKS")


def _mpi(
    environ: Mapping[str, str], rank: str, local_rank: str, size: str, local_size: str
) -> RankInfo | None:
    if rank not in environ:
        return None
    world_size = _number(environ, size, default=1)
    return RankInfo(
        _number(environ, rank),
        _number(environ, local_rank, default=0),
        world_size,
        _number(environ, local_size, default=world_size),
        "MPI",
        *_meeting(environ),
    )


def meet_by_mpi(info: RankInfo) -> RankInfo:
    """Broadcasts the address of global rank 0, and a free port there, by MPI.

    Raises:
        UserError: where mpi4py cannot be used.
    """
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        rule = f"is needed to start under mpirun ({error})"
        fix = "pip install lingo_ds[mpi], or set MASTER_ADDR and MASTER_PORT"
        raise UserError(Mistake("mpi4py", "not usable", rule, fix), on_all=True) from None
    with closing(socket.socket()) as probe:
        probe.bind(("", 0))
        mine = (_own_address(), probe.getsockname()[1])
    address, port = MPI.COMM_WORLD.bcast(mine)
    MPI.Finalize()  # MPI is not used again, and mpirun reports a process that ends without it as failed
    return info._replace(address=address, port=port)


def first_node(nodes: str) -> str:
    """The first node of a list in SLURM's short form: `gpu007` of `gpu[007-009,12],login`.

    Raises:
        UserError: where the list names no node.
    """
    found = re.match(r"([^\[\],]+)(?:\[(\w+))?", nodes)
    if not found:
        fix = "start by srun, or set MASTER_ADDR"
        raise UserError(Mistake("SLURM_STEP_NODELIST", nodes, "names no node", fix), on_all=True)
    return found[1] + (found[2] or "")


def tasks_per_node(text: str) -> list[int]:
    """Counts per node in SLURM's short form: [8, 8, 4] of `8(x2),4`.

    Raises:
        UserError: where the text has another form.
    """
    counts: list[int] = []
    for part in text.split(","):
        if not (found := re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part)):
            raise UserError(
                Mistake("SLURM_STEP_TASKS_PER_NODE", text, "is not a list of counts", "start by srun")
            )
        counts += [int(found[1])] * int(found[2] or 1)
    return counts


def _own_address() -> str:
    """The address at which other hosts reach this one: its name's, unless that is a loopback address."""
    name = socket.gethostname()
    try:
        address = socket.gethostbyname(name)
    except OSError:
        return "127.0.0.1"
    return "127.0.0.1" if address.startswith("127.") else address


def _meeting(environ: Mapping[str, str]) -> tuple[str | None, int | None]:
    address = environ.get("MASTER_ADDR")
    return address, _number(environ, "MASTER_PORT") if address and "MASTER_PORT" in environ else None


def _number(environ: Mapping[str, str], name: str, *, default: int | None = None) -> int:
    text = environ.get(name)
    if text is None and default is not None:
        return default
    if text is None or not re.fullmatch(r"\d{1,18}", text):
        raise UserError(Mistake(name, text, "is not a number", "start through a launcher"))
    return int(text)


def _check(info: RankInfo) -> None:
    for value, name, limit, of in (
        (info.rank, "global rank", info.world_size, "processes of the job"),
        (info.local_rank, "local rank", info.local_world_size, "processes of the host"),
    ):
        if value >= limit:
            rule = f"is not below the {limit} {of} that {info.launcher} names"
            raise UserError(Mistake(name, value, rule, "start through a launcher"))
