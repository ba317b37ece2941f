"""The helper itself: real processes, a failing rank is named, a hanging one is ended."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import torch.distributed as dist

from lingo_ds.distributed import process_group
from lingo_ds.distributed.process_group import DistEnv
from tests.ranks import spawn
from tests.ranks.spawn import run_ranks

CHECKOUT = Path(__file__).resolve().parents[2]


class Seen(NamedTuple):
    rank: int
    env: tuple[str, str]
    pid: int
    total: torch.Tensor


def summed(rank: int, world_size: int, offset: int) -> Seen:
    tensor = torch.tensor([rank + offset])
    dist.all_reduce(tensor)
    return Seen(rank, (os.environ["RANK"], os.environ["WORLD_SIZE"]), os.getpid(), tensor)


def second_fails(rank: int, world_size: int) -> None:
    if rank == 1:
        raise ValueError("the second rank's own words")
    dist.barrier()


def second_vanishes(rank: int, world_size: int) -> None:
    if rank == 1:
        os._exit(7)
    dist.barrier()


def second_hangs(rank: int, world_size: int, folder: Path) -> None:
    child = subprocess.Popen(["sleep", "600"])
    (folder / str(rank)).write_text(f"{os.getpid()} {child.pid}")
    if rank == 1:
        time.sleep(600)


def ends_its_server(rank: int, world_size: int) -> None:
    os.kill(os.getppid(), signal.SIGKILL)
    time.sleep(600)


def joins_again(rank: int, world_size: int) -> tuple[int, float]:
    process_group.start(DistEnv(rank, rank, world_size, world_size, torch.device("cpu")))
    import deepspeed

    tensor = torch.ones(1)
    deepspeed.comm.all_reduce(tensor)
    return deepspeed.comm.get_rank(), tensor.item()


def test_ranks_form_a_group_and_return_their_values():
    first, second = run_ranks(summed, 2, 10)
    assert (first.rank, second.rank) == (0, 1)
    assert (first.env, second.env) == (("0", "2"), ("1", "2"))
    assert len({first.pid, second.pid, os.getpid()}) == 3
    assert first.total.item() == second.total.item() == 21


def test_deepspeed_accepts_the_group():
    assert run_ranks(joins_again, 2) == [(0, 2.0), (1, 2.0)]


def test_failing_rank_is_named_first_with_its_traceback():
    with pytest.raises(AssertionError) as caught:
        run_ranks(second_fails, 2)
    text = str(caught.value)
    assert text.startswith("rank 1 of 2 failed:")
    assert "ValueError: the second rank's own words" in text
    assert "in second_fails" in text


def test_rank_that_ends_without_a_value_is_named():
    with pytest.raises(AssertionError, match="rank 1 of 2 ended with exit status 7"):
        run_ranks(second_vanishes, 2)


def test_hanging_rank_is_ended_in_time_with_all_it_started(tmp_path):
    start = time.monotonic()
    with pytest.raises(AssertionError, match="rank 1 of 2 was killed because it did not end within 5 s"):
        run_ranks(second_hangs, 2, tmp_path, timeout=5)
    assert time.monotonic() - start < 15
    pids = [int(pid) for rank in (0, 1) for pid in (tmp_path / str(rank)).read_text().split()]
    assert not [pid for pid in pids if is_running(pid)]


def test_ranks_end_with_their_parent(tmp_path):
    code = (
        "import pathlib; from tests.ranks import spawn, test_spawn; spawn.IMPORTED = (); "
        f"spawn.run_ranks(test_spawn.second_hangs, 2, pathlib.Path({str(tmp_path)!r}))"
    )
    with subprocess.Popen([sys.executable, "-c", code], cwd=CHECKOUT) as parent:
        files = [tmp_path / "0", tmp_path / "1"]
        wait_until(lambda: all(file.exists() and file.read_text() for file in files), 60)
        parent.kill()
    ranks = [int(file.read_text().split()[0]) for file in files]
    wait_until(lambda: not any(is_running(pid) for pid in ranks), 10)
    for file in files:  # what a rank itself started outlives it here, for nobody was left to kill the group
        os.kill(int(file.read_text().split()[1]), 9)


def test_a_call_after_a_server_has_ended_has_a_new_one(monkeypatch):
    monkeypatch.setattr(spawn, "_servers", {})
    monkeypatch.setattr(spawn, "IMPORTED", ())
    with pytest.raises((EOFError, ConnectionError)):
        run_ranks(ends_its_server, 1)
    try:
        assert run_ranks(summed, 1, 10)[0].total.item() == 10
    finally:
        spawn.stop_servers()


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until(condition, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)
