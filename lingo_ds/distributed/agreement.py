"""Agreement between processes: broadcasts JSON, raises one process's mistake on all, compares inputs."""

import hashlib
import json
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from lingo_ds.distributed.process_group import (
    DistEnv,
    all_gather,
    broadcast_from,
    is_alone,
)
from lingo_ds.utils.errors import Mistake, UserError


def broadcast_json(value: Any, env: DistEnv, *, source: int = 0) -> Any:
    """The JSON-able `value` of global rank `source`, on every process (JSON, never pickle)."""
    if is_alone():
        return value
    mine = env.global_rank == source
    payload = json.dumps(value).encode() if mine else b""
    size = torch.tensor([len(payload)], dtype=torch.long, device=env.device)
    broadcast_from(size, "other", source=source)
    data = torch.zeros(int(size), dtype=torch.uint8, device=env.device)
    if mine:
        data.copy_(torch.frombuffer(bytearray(payload), dtype=torch.uint8))
    broadcast_from(data, "other", source=source)
    return json.loads(bytes(data.cpu().tolist()))


def all_gather_json(value: Any, env: DistEnv) -> list[Any]:
    """Every process's JSON-able value, in order of global rank, on every process."""
    if is_alone():
        return [value]
    payload = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
    sizes = all_gather(torch.tensor([len(payload)], device=env.device)).flatten().tolist()
    row = torch.zeros(max(sizes), dtype=torch.uint8, device=env.device)
    row[: len(payload)] = payload.to(env.device)
    rows = all_gather(row).cpu().numpy()
    return [json.loads(row[:size].tobytes()) for row, size in zip(rows, sizes, strict=True)]


def raise_on_all(failure: UserError | None, env: DistEnv) -> None:
    """Raises the same error on every process where one of them found a user's mistake.

    Raises:
        UserError: the `failure` of the first process that has one.
    """
    failed = all_gather(torch.tensor([failure is not None], device=env.device)).flatten().nonzero()
    if len(failed):
        source = int(failed[0])
        mine = [list(map(str, mistake)) for mistake in failure.mistakes] if failure else None
        raise UserError([Mistake(*words) for words in broadcast_json(mine, env, source=source)], on_all=True)


@contextmanager
def errors_raised_on_all(env: DistEnv) -> Iterator[None]:
    """Raises one process's mistake on all; for work that each does alone, without collectives.

    Raises:
        UserError: on every process, with the same text.
    """
    failure = None
    try:
        yield
    except UserError as error:
        failure = error
    raise_on_all(failure, env)


def run_once_per_host(work: Callable[[], Any], env: DistEnv) -> None:
    """Runs `work` once per host while the other processes wait; a user's mistake there is raised on all.

    Raises:
        UserError: on every process, whichever host found the mistake.
    """
    with errors_raised_on_all(env):
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
        hosts = all_gather_json(socket.gethostname(), env)
        where = f"processes {different} ({', '.join(sorted({hosts[rank] for rank in different}))})"
        rule = f"differs from that of process 0 ({hosts[0]})"
        raise UserError(Mistake(what, where, rule, "use the same on all hosts"), on_all=True)
