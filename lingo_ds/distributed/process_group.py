"""This process's rank and device, joining and leaving the job, and the collectives in use."""

import atexit
import os
import socket
import time
from collections.abc import Iterator, MutableMapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from lingo_ds.distributed import devices
from lingo_ds.distributed.launchers import find_rank, meet_by_mpi
from lingo_ds.distributed.traffic import counter, hosts_of
from lingo_ds.utils.errors import Mistake, UserError, one_line


@dataclass(frozen=True)
class DistEnv:
    """Ranks and device of one process. Ranks count from 0; a host runs `local_world_size` processes.

    In a group of `divided`, `group` is its number, and ranks and `world_size` are those among its processes.
    """

    global_rank: int
    local_rank: int
    world_size: int
    local_world_size: int
    device: torch.device
    group: int = 0

    @property
    def is_main(self) -> bool:
        """True on the one process that logs, decides and writes."""
        return self.global_rank == 0


def detect() -> DistEnv:
    """This process's ranks as its launcher sets them (`find_rank`), and its device.

    A GPU is that of the local rank, or the only one that this process sees: SLURM's `--gpus-per-task` and
    wrappers around MPI's processes show each its own.

    Raises:
        UserError: where the launcher's variables contradict each other.
    """
    place = find_rank(os.environ)
    use_cuda = torch.cuda.is_available() and os.environ.get("DS_ACCELERATOR", "cuda") == "cuda"
    device = torch.device("cpu")
    if use_cuda:
        device = torch.device("cuda", 0 if torch.cuda.device_count() == 1 else place.local_rank)
    return DistEnv(place.rank, place.local_rank, place.world_size, place.local_world_size, device)


ARRIVAL = timedelta(minutes=5)
"""Longest time in which a job's processes wait for the last of them."""

TIMEOUT = timedelta(minutes=30)
"""Longest time that a collective may take."""

LET_OUR_WATCHDOG_SPEAK = ("TORCH_NCCL_ASYNC_ERROR_HANDLING", "0")
"""Environment variable of torch and its value with which nccl's own watchdog logs a lost connection instead
of aborting the process, which would end before `watchdog` has named the one that is lost."""


def start(env: DistEnv, *, arrival: timedelta = ARRIVAL, timeout: timedelta = TIMEOUT) -> None:
    """Joins the job's process group: nccl on GPUs, gloo on CPUs. A single process makes its own group.

    Args:
        env: ranks and device of this process.
        arrival: longest time to wait for the last process.
        timeout: longest time that a collective may take.

    Raises:
        UserError: where there is no GPU for this process, or some process does not join in time.
    """
    import deepspeed  # slow to import, and one process with a whole backbone does without
    from deepspeed.ops import __compatible_ops__

    # On CPU DeepSpeed would compile a shared-memory op (a minute, g++ needed) that only its inference
    # all-reduce uses.
    __compatible_ops__["deepspeed_shm_comm"] = False

    if env.device.type == "cuda":
        devices.take_gpu(env)
        _let_our_watchdog_speak(os.environ)
    backend = "nccl" if env.device.type == "cuda" else "gloo"
    if not dist.is_initialized():
        _join(backend, env, _meet(env, arrival), timeout)
    deepspeed.init_distributed(backend, auto_mpi_discovery=False, verbose=False)
    if backend == "gloo":
        atexit.unregister(_leave_at_exit)  # registered for an earlier group
        atexit.register(_leave_at_exit)
    _place_counter(env)


def _join(backend: str, env: DistEnv, store: Store, timeout: timedelta) -> None:
    dist.init_process_group(
        backend, store=store, timeout=timeout, rank=env.global_rank, world_size=env.world_size
    )


def _place_counter(env: DistEnv) -> None:
    """Tells the counter of traffic the hosts of all processes; none goes on before all are here."""
    counter.place([])  # those of another process group
    local = all_gather(torch.tensor([env.local_rank], device=env.device)).flatten().tolist()
    counter.place(hosts_of(local))


@contextmanager
def divided(size: int, env: DistEnv) -> Iterator[DistEnv]:
    """While inside, every `size` neighbouring processes are a job of their own; all enter and leave it.

    A group has no collective with the others: they share the job's store alone, see `job_log`.

    Args:
        size: processes of a group; a divisor of those of the job.
        env: this process in the job.

    Yields:
        This process in its group.
    """
    store, backend = _job_store(), dist.get_backend()
    number, rank = divmod(env.global_rank, size)
    first_here = max(number * size, env.global_rank - env.local_rank)  # the group's first on this host
    local_rank = env.global_rank - first_here
    own = replace(env, global_rank=rank, world_size=size, local_rank=local_rank, group=number)
    _rejoin(backend, own, PrefixStore(f"group {number}", store))
    yield own
    _rejoin(backend, env, PrefixStore("together again", store))


def _rejoin(backend: str, env: DistEnv, store: Store) -> None:
    """Leaves the process group for another one."""
    stop()
    _join(backend, env, store, TIMEOUT)
    _place_counter(env)


def own_connection(timeout: timedelta) -> Store:
    """A connection of its own to the job's store, so that no collective waits behind it, nor it behind one.

    Args:
        timeout: longest time that it waits for an answer.
    """
    store: Store = _job_store().clone()  # type: ignore[attr-defined]  # stub lacks it
    store.set_timeout(timeout)
    return store


def _job_store() -> Store:
    return dist.distributed_c10d._get_default_store()


def _let_our_watchdog_speak(environ: MutableMapping[str, str]) -> None:
    """Sets the variable, unless the user has: torchrun sets it to 1 for those who have not."""
    name, value = LET_OUR_WATCHDOG_SPEAK
    if name not in environ or ("TORCHELASTIC_RUN_ID" in environ and environ[name] == "1"):
        environ[name] = value


def _meet(env: DistEnv, arrival: timedelta) -> Store:
    """The store of the job's processes, once all have joined."""
    address, port = _meeting_place(env)
    # DeepSpeed takes the local rank for the number of its GPU, and Open MPI's must be the same.
    local_rank = str(env.local_rank if env.device.index is None else env.device.index)
    os.environ.update(
        RANK=str(env.global_rank),
        LOCAL_RANK=local_rank,
        WORLD_SIZE=str(env.world_size),
        MASTER_ADDR=address,
        MASTER_PORT=str(port),
    )
    if "OMPI_COMM_WORLD_LOCAL_RANK" in os.environ:
        os.environ["OMPI_COMM_WORLD_LOCAL_RANK"] = local_rank
    try:
        store = next(rendezvous("env://", timeout=arrival))[0]
        devices.require_compatible(env, store)
        return store
    except (dist.DistError, TimeoutError) as error:
        rule = f"not all {env.world_size} processes of the job met there ({one_line(str(error))})"
        fix = "check that every host is up and reaches this address"
        raise UserError(Mistake("MASTER_ADDR", f"{address}:{port}", rule, fix)) from None


def _meeting_place(env: DistEnv) -> tuple[str, int]:
    """Address and port at which the job's processes meet, from the launcher or broadcast by MPI.

    Raises:
        UserError: where neither gives them.
    """
    place = find_rank(os.environ)
    if env.world_size == 1 and (place.address is None or place.port is None):
        return "127.0.0.1", free_port()
    if place.launcher == "MPI" and (place.address is None or place.port is None):
        place = meet_by_mpi(place)
    if place.address is None or place.port is None:
        missing = "MASTER_ADDR" if place.address is None else "MASTER_PORT"
        raise UserError(Mistake(missing, "nothing", "is not set", "start through a launcher"), on_all=True)
    return place.address, place.port


def free_port() -> int:
    """A port of this host on which nothing listens."""
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def stop() -> None:
    """Leaves the process group, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()


def _leave_at_exit() -> None:
    """Leaves the group at a script's end, after the interpreter was free for 50 ms.

    A thread of gloo's needs the interpreter to release the last collective's tensors; once Python finalises,
    that would abort the process.
    """
    time.sleep(0.05)
    stop()


def is_alone() -> bool:
    """Whether this is the only process."""
    return not dist.is_initialized() or dist.get_world_size() == 1


def all_reduce_(tensor: torch.Tensor, *, what: str = "other") -> torch.Tensor:
    """Sums a flat `tensor` over all processes, in place; the counter of traffic files it under `what`."""
    if not is_alone():
        counter.add("all_reduce", what, tensor.nbytes)
        dist.all_reduce(tensor)
    return tensor


def broadcast_(tensor: torch.Tensor, *, what: str = "other") -> torch.Tensor:
    """Copies global rank 0's `tensor` to all processes, in place."""
    if not is_alone():
        broadcast_from(tensor, what, source=0)
    return tensor


def broadcast_from(tensor: torch.Tensor, what: str, *, source: int) -> None:
    """Copies the `tensor` of global rank `source` to all processes, in place."""
    counter.add("broadcast", what, tensor.nbytes)
    dist.broadcast(tensor, source)


def all_gather(tensor: torch.Tensor, *, what: str = "other") -> torch.Tensor:
    """Stacks every process's `tensor` of one shape: (world_size, *shape)."""
    if is_alone():
        return tensor[None]
    counter.add("all_gather", what, dist.get_world_size() * tensor.nbytes)
    out = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
    dist.all_gather(out, tensor.contiguous())
    return torch.stack(out)


def shard_group(size: int, env: DistEnv) -> dist.ProcessGroup | None:
    """The group of `size` neighbouring processes that this one belongs to; None for all of them.

    Every process must call this at the same point.
    """
    if size == env.world_size:
        return None
    groups = [dist.new_group(list(range(i, i + size))) for i in range(0, env.world_size, size)]
    return groups[env.global_rank // size]
