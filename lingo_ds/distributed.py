"""Who am I among the processes of this job, and the few collectives the project needs."""

import atexit
import hashlib
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from lingo_ds.counter import counter, hosts_of
from lingo_ds.errors import Mistake, UserError, one_line
from lingo_ds.place import find_place, meet_by_mpi


@dataclass(frozen=True)
class DistEnv:
    """One process's place in the job. Processes count from 0; a host runs `local_world_size` of them."""

    global_rank: int
    local_rank: int
    world_size: int
    local_world_size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """True on the one process that logs, decides and writes."""
        return self.global_rank == 0


def detect() -> DistEnv:
    """This process's place, as its launcher says it, see `find_place`.

    Raises:
        UserError: where the launcher's variables contradict each other.
    """
    place = find_place(os.environ)
    use_cuda = torch.cuda.is_available() and os.environ.get("DS_ACCELERATOR", "cuda") == "cuda"
    device = torch.device("cuda", place.local_rank) if use_cuda else torch.device("cpu")
    return DistEnv(place.rank, place.local_rank, place.world_size, place.local_world_size, device)


ARRIVAL = timedelta(minutes=5)
"""How long a job's processes wait for the last of them."""
TIMEOUT = timedelta(minutes=30)
"""How long a collective may take."""


def start(env: DistEnv, *, arrival: timedelta = ARRIVAL, timeout: timedelta = TIMEOUT) -> None:
    """Joins the job's process group: nccl on GPUs, gloo on CPU. A single process makes a group of its own.

    Args:
        env: this process's place.
        arrival: how long to wait for the last process.
        timeout: how long a collective may take.

    Raises:
        UserError: where there is no GPU for this process, or some process does not come in time.
    """
    import deepspeed  # slow to import, and one process with a whole backbone does without
    from deepspeed.ops import __compatible_ops__

    # On CPU DeepSpeed would compile a shared-memory op (a minute, g++ needed) that only its inference
    # all-reduce uses.
    __compatible_ops__["deepspeed_shm_comm"] = False

    if env.device.type == "cuda":
        _take_gpu(env)
    backend = "nccl" if env.device.type == "cuda" else "gloo"
    if not dist.is_initialized():
        place = {"rank": env.global_rank, "world_size": env.world_size}
        dist.init_process_group(backend, store=_meet(env, arrival), timeout=timeout, **place)
    deepspeed.init_distributed(backend, auto_mpi_discovery=False, verbose=False)
    if backend == "gloo":
        atexit.unregister(_let_go)  # of an earlier group
        atexit.register(_let_go)
    local = all_gather(torch.tensor([env.local_rank], device=env.device)).flatten().tolist()
    counter.place(hosts_of(local))


def _meet(env: DistEnv, arrival: timedelta) -> dist.Store:
    """The store of the job's processes, once all have come."""
    address, port = _meeting_place(env)
    os.environ.update(
        RANK=str(env.global_rank), LOCAL_RANK=str(env.local_rank), WORLD_SIZE=str(env.world_size),
        MASTER_ADDR=address, MASTER_PORT=str(port),
    )  # fmt: skip
    try:
        return next(rendezvous("env://", timeout=arrival))[0]
    except (dist.DistError, TimeoutError) as error:
        rule = f"not all {env.world_size} processes of the job met there ({one_line(str(error))})"
        fix = "see that every host is up and reaches this address"
        raise UserError(Mistake("MASTER_ADDR", f"{address}:{port}", rule, fix)) from None


def _take_gpu(env: DistEnv) -> None:
    if env.local_rank >= (count := torch.cuda.device_count()):
        host, fix = socket.gethostname(), "give it as many slots as it has GPUs"
        rule = f"runs {env.local_world_size} processes and has {count} GPUs"
        raise UserError(Mistake(f"host {host}", f"process {env.global_rank}", rule, fix))
    torch.cuda.set_device(env.device)


def _meeting_place(env: DistEnv) -> tuple[str, int]:
    """Where the job's processes meet: as the launcher says, or agreed through MPI.

    Raises:
        UserError: where nobody says it.
    """
    place = find_place(os.environ)
    if env.world_size == 1 and (place.address is None or place.port is None):
        return "127.0.0.1", free_port()
    if place.launcher == "MPI" and (place.address is None or place.port is None):
        place = meet_by_mpi(place)
    if place.address is None or place.port is None:
        missing = "MASTER_ADDR" if place.address is None else "MASTER_PORT"
        raise UserError(Mistake(missing, "nothing", "is not set", "start through a launcher"), on_all=True)
    return place.address, place.port


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def stop() -> None:
    """Leaves the process group, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()


def _let_go() -> None:
    """For a script's end: a thread of gloo's that drops the last collective's tensors needs Python for it.

    Once Python finalises, that would abort the process; so it is given the interpreter before.
    """
    time.sleep(0.05)
    stop()


def _alone() -> bool:
    return not dist.is_initialized() or dist.get_world_size() == 1


def all_reduce_(tensor: torch.Tensor, *, what: str = "other") -> torch.Tensor:
    """Sums a flat `tensor` over all processes, in place; `what` it is goes to the counter of traffic."""
    if not _alone():
        counter.add("all_reduce", what, tensor.nbytes)
        dist.all_reduce(tensor)
    return tensor


def broadcast_(tensor: torch.Tensor, *, what: str = "other") -> torch.Tensor:
    """Copies global rank 0's `tensor` to all processes, in place."""
    if not _alone():
        _send(tensor, what, source=0)
    return tensor


def _send(tensor: torch.Tensor, what: str, *, source: int) -> None:
    counter.add("broadcast", what, tensor.nbytes)
    dist.broadcast(tensor, source)


def all_gather(tensor: torch.Tensor, *, what: str = "other") -> torch.Tensor:
    """Stacks every process's `tensor` of one shape: (world_size, *shape)."""
    if _alone():
        return tensor[None]
    counter.add("all_gather", what, dist.get_world_size() * tensor.nbytes)
    out = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
    dist.all_gather(out, tensor.contiguous())
    return torch.stack(out)


def share_json(value: Any, env: DistEnv, *, source: int = 0) -> Any:
    """The JSON-able `value` of global rank `source`, on every process (JSON, never pickle)."""
    if _alone():
        return value
    mine = env.global_rank == source
    payload = json.dumps(value).encode() if mine else b""
    size = torch.tensor([len(payload)], dtype=torch.long, device=env.device)
    _send(size, "other", source=source)
    data = torch.zeros(int(size), dtype=torch.uint8, device=env.device)
    if mine:
        data.copy_(torch.frombuffer(bytearray(payload), dtype=torch.uint8))
    _send(data, "other", source=source)
    return json.loads(bytes(data.cpu().tolist()))


def share_from_all(value: Any, env: DistEnv) -> list[Any]:
    """Every process's JSON-able value, in order of global rank, on every process."""
    if _alone():
        return [value]
    payload = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
    sizes = all_gather(torch.tensor([len(payload)], device=env.device)).flatten().tolist()
    row = torch.zeros(max(sizes), dtype=torch.uint8, device=env.device)
    row[: len(payload)] = payload.to(env.device)
    rows = all_gather(row).cpu().numpy()
    return [json.loads(row[:size].tobytes()) for row, size in zip(rows, sizes, strict=True)]


def raise_together(failure: UserError | None, env: DistEnv) -> None:
    """Raises on every process, in the same words, where one of them found a user's mistake.

    Raises:
        UserError: `failure` of the first process that has one.
    """
    failed = all_gather(torch.tensor([failure is not None], device=env.device)).flatten().nonzero()
    if len(failed):
        source = int(failed[0])
        mine = [list(map(str, mistake)) for mistake in failure.mistakes] if failure else None
        raise UserError([Mistake(*words) for words in share_json(mine, env, source=source)], on_all=True)


@contextmanager
def together(env: DistEnv) -> Iterator[None]:
    """Around work that every process does alone, without collectives: one process's mistake ends all of them.

    Raises:
        UserError: on every process, in the same words.
    """
    failure = None
    try:
        yield
    except UserError as error:
        failure = error
    raise_together(failure, env)


def first_on_host_does(work: Callable[[], Any], env: DistEnv) -> None:
    """Runs `work` once per host while the other processes wait; a user's mistake there is raised everywhere.

    Raises:
        UserError: on every process, whichever host found the mistake.
    """
    with together(env):
        if env.local_rank == 0:
            work()


def text_fingerprint(text: str) -> int:
    """64-bit signed fingerprint of a text, the same on every machine."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big", signed=True)


def require_equal(value: str, what: str, env: DistEnv) -> None:
    """Checks that all processes hold the same text, e.g. the resolved config.

    Raises:
        UserError: on every process, naming those that differ from global rank 0.
    """
    mine = text_fingerprint(value)
    numbers = all_gather(torch.tensor([mine], dtype=torch.long, device=env.device)).flatten().tolist()
    different = [rank for rank, other in enumerate(numbers) if other != numbers[0]]
    if different:
        hosts = share_from_all(socket.gethostname(), env)
        where = f"processes {different} ({', '.join(sorted({hosts[rank] for rank in different}))})"
        rule = f"differs from that of process 0 ({hosts[0]})"
        raise UserError(Mistake(what, where, rule, "make all hosts alike"), on_all=True)


def shard_group(size: int, env: DistEnv) -> dist.ProcessGroup | None:
    """The group of `size` neighbouring processes that this one belongs to; None for all of them.

    Every process must call this at the same point.
    """
    if size == env.world_size:
        return None
    groups = [dist.new_group(list(range(i, i + size))) for i in range(0, env.world_size, size)]
    return groups[env.global_rank // size]
