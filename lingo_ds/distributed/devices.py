"""Whether the devices of a job fit together: told by the job's store, before nccl is asked to communicate.

Kept on purpose: nccl of two versions, or two processes on one GPU, fail in the first collective or wait for
ever in it, and neither names the host.
"""

import json
import logging
import socket
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch.distributed.distributed_c10d import PrefixStore, Store

from lingo_ds.utils.errors import Mistake, UserError

if TYPE_CHECKING:
    from lingo_ds.distributed.process_group import DistEnv

logger = logging.getLogger(__name__)


class DeviceFacts(NamedTuple):
    """What a process tells the others of its device.

    Attributes:
        rank: its global rank.
        host: name of its host.
        type: `cuda` or `cpu`.
        model: name of the GPU; empty on a CPU, as the next two.
        uuid: the GPU's own number.
        libraries: versions that must be the same to communicate and to compute alike.
    """

    rank: int
    host: str
    type: str
    model: str
    uuid: str
    libraries: dict[str, str]


def take_gpu(env: "DistEnv") -> None:
    """Makes the GPU of this process the current one.

    Raises:
        UserError: where there is none for its local rank.
    """
    host, count = socket.gethostname(), torch.cuda.device_count()
    if env.device.index >= count:
        raise UserError(_too_few_gpus(host, env.global_rank, env.local_world_size, count))
    torch.cuda.set_device(env.device)


def require_compatible(env: "DistEnv", store: Store) -> None:
    """Compares the devices of all processes on global rank 0, which tells all what it found.

    GPUs of different models are a warning: their sums are rounded in different orders, which the audit of
    the adapters finds and repairs.

    Raises:
        UserError: on every process, where two share a GPU, or where the libraries of some host or its type
            of device are not those of global rank 0.
    """
    told, ranks = PrefixStore("devices", store), [str(rank) for rank in range(env.world_size)]
    told.set(str(env.global_rank), json.dumps(_own_device(env)))
    if env.is_main:
        facts = [DeviceFacts(*json.loads(text)) for text in told.multi_get(ranks)]
        for line in other_models(facts):
            logger.warning("%s", line)
        told.set(
            "mistakes", json.dumps([[str(word) for word in mistake] for mistake in find_mistakes(facts)])
        )
    mistakes = json.loads(told.get("mistakes"))
    told.set(f"read by {env.global_rank}", "")
    if mistakes:
        if env.is_main:
            told.wait([f"read by {rank}" for rank in ranks])  # the store ends with this process
        raise UserError([Mistake(*words) for words in mistakes], on_all=True)


def _own_device(env: "DistEnv") -> DeviceFacts:
    """What this process has to tell."""
    rank, host = env.global_rank, socket.gethostname()
    if env.device.type == "cpu":
        return DeviceFacts(rank, host, "cpu", "", "", {})
    properties = torch.cuda.get_device_properties(env.device)
    libraries = {
        "CUDA": str(torch.version.cuda or torch.version.hip),
        "nccl": ".".join(map(str, torch.cuda.nccl.version())),
    }
    return DeviceFacts(rank, host, "cuda", properties.name, str(properties.uuid), libraries)


def find_mistakes(facts: Sequence[DeviceFacts]) -> list[Mistake]:
    """What keeps processes from working together; `facts` are in order of global rank. Once per host."""
    hosts: dict[str, list[DeviceFacts]] = {}
    for one in facts:
        hosts.setdefault(one.host, []).append(one)
    return [mistake for processes in hosts.values() for mistake in _mistakes_of(processes, facts[0])]


def _mistakes_of(processes: Sequence[DeviceFacts], first: DeviceFacts) -> list[Mistake]:
    """Mistakes of one host's processes, beside global rank 0's."""
    where = f"host {processes[0].host}"
    if other := next((one for one in processes if one.type != first.type), None):
        rule = f"computes on {other.type}, and process 0 ({first.host}) on {first.type}"
        fix = "give every process a GPU, or set DS_ACCELERATOR=cpu on all hosts"
        return [Mistake(where, f"process {other.rank}", rule, fix)]
    gpus = {one.uuid for one in processes}
    if first.type == "cuda" and len(gpus) < len(processes):
        return [_too_few_gpus(processes[0].host, processes[0].rank, len(processes), len(gpus))]
    fix = "install the same versions on all hosts"
    return [
        Mistake(where, f"{library} {version}", f"is {expected} on {first.host}", fix)
        for library, expected in first.libraries.items()
        if (version := processes[0].libraries[library]) != expected
    ]


def other_models(facts: Sequence[DeviceFacts]) -> list[str]:
    """A line for each host and model of GPU that is not global rank 0's."""
    first, lines = facts[0], {}
    for one in reversed(facts):
        if one.model != first.model:
            lines[one.host, one.model] = (
                f"process {one.rank} ({one.host}) has a GPU {one.model}, process 0 ({first.host}) "
                f"{first.model}: their sums differ in the last bit, so audits find and repair differences "
                "(rank_sampling.on_divergence), and the faster ones wait for the others"
            )
    return list(reversed(lines.values()))


def _too_few_gpus(host: str, rank: int, processes: int, count: int) -> Mistake:
    rule = f"runs {processes} processes and has {count} GPUs"
    return Mistake(f"host {host}", f"process {rank}", rule, "give it as many slots as it has GPUs")
