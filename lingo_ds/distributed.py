"""Who am I among the processes of this job, and the few collectives the project needs."""

import hashlib
import json
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from lingo_ds.errors import Mistake, UserError


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
    """Reads the place from the launcher's environment: deepspeed and torchrun, Open MPI, or a single process.

    Raises:
        UserError: where the launcher's variables contradict each other.
    """
    names = {
        "RANK": ("RANK", "OMPI_COMM_WORLD_RANK"),
        "LOCAL_RANK": ("LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_RANK"),
        "WORLD_SIZE": ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE"),
        "LOCAL_WORLD_SIZE": ("LOCAL_WORLD_SIZE", "LOCAL_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE"),
    }
    found = {
        name: next((os.environ[a] for a in aliases if a in os.environ), None)
        for name, aliases in names.items()
    }
    rank, local_rank, world_size = (int(found[name] or 0) for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"))
    world_size = max(world_size, 1)
    if rank >= world_size:
        raise UserError(
            Mistake("RANK", rank, f"is not below WORLD_SIZE {world_size}", "start through a launcher")
        )
    local_world_size = int(found["LOCAL_WORLD_SIZE"] or world_size)
    use_cuda = torch.cuda.is_available() and os.environ.get("DS_ACCELERATOR", "cuda") == "cuda"
    device = torch.device("cuda", local_rank) if use_cuda else torch.device("cpu")
    return DistEnv(rank, local_rank, world_size, local_world_size, device)


def start(env: DistEnv, *, timeout: timedelta = timedelta(minutes=30)) -> None:
    """Joins the job's process group: nccl on GPUs, gloo on CPU. A single process makes a group of its own."""
    import deepspeed  # slow to import, and one process with a whole backbone does without
    from deepspeed.ops import __compatible_ops__

    # On CPU DeepSpeed would compile a shared-memory op (a minute, g++ needed) that only its inference
    # all-reduce uses.
    __compatible_ops__["deepspeed_shm_comm"] = False

    if env.device.type == "cuda":
        torch.cuda.set_device(env.device)
    if env.world_size == 1 and "MASTER_ADDR" not in os.environ:
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(free_port()))
    os.environ.update(
        RANK=str(env.global_rank), LOCAL_RANK=str(env.local_rank), WORLD_SIZE=str(env.world_size)
    )
    backend = "nccl" if env.device.type == "cuda" else "gloo"
    deepspeed.init_distributed(backend, auto_mpi_discovery=False, verbose=False, timeout=timeout)


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def stop() -> None:
    """Leaves the process group, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()


def _alone() -> bool:
    return not dist.is_initialized() or dist.get_world_size() == 1


def all_reduce_(tensor: torch.Tensor) -> torch.Tensor:
    """Sums `tensor` over all processes, in place."""
    if not _alone():
        dist.all_reduce(tensor)
    return tensor


def broadcast_(tensor: torch.Tensor) -> torch.Tensor:
    """Copies global rank 0's `tensor` to all processes, in place."""
    if not _alone():
        dist.broadcast(tensor, 0)
    return tensor


def all_gather(tensor: torch.Tensor) -> torch.Tensor:
    """Stacks every process's `tensor` of one shape: (world_size, *shape)."""
    if _alone():
        return tensor[None]
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
    dist.broadcast(size, source)
    data = torch.zeros(int(size), dtype=torch.uint8, device=env.device)
    if mine:
        data.copy_(torch.frombuffer(bytearray(payload), dtype=torch.uint8))
    dist.broadcast(data, source)
    return json.loads(bytes(data.cpu().tolist()))


def share_from_all(value: list[Any], env: DistEnv) -> list[list[Any]]:
    """Every process's JSON-able list, in order of global rank, on every process."""
    return [share_json(value, env, source=rank) for rank in range(env.world_size)]


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
        mistake = Mistake(
            what, f"processes {different}", "differs from global rank 0's", "make all hosts alike"
        )
        raise UserError(mistake, on_all=True)


def shard_group(size: int, env: DistEnv) -> dist.ProcessGroup | None:
    """The group of `size` neighbouring processes that this one belongs to; None for all of them.

    Every process must call this at the same point.
    """
    if size == env.world_size:
        return None
    groups = [dist.new_group(list(range(i, i + size))) for i in range(0, env.world_size, size)]
    return groups[env.global_rank // size]
