"""Two processes with a pretend card each: their losses are those of one process on the CPU."""

import os
import socket
from pathlib import Path
from typing import Any

import pytest

from lingo_ds.commands.cli import main
from lingo_ds.distributed.process_group import free_port
from tests.pretend.runs import RECIPE, STEPS, losses_on_cpu, settings, train
from tests.unit.running import at_step, command, report_of

WAYS = {
    "whole": [],
    "sharded": ["zero.stage=3"],
    "eight bits": ["zero.stage=3", "zero.quantized_weights=true"],
    "offloaded": ["zero.stage=3", "zero.profile=zero3_offload"],
}

OF_TORCHRUN = {"TORCHELASTIC_RUN_ID": "none", "TORCH_NCCL_ASYNC_ERROR_HANDLING": "1"}
"""Variables that torchrun sets for its processes, the second where its user has not."""


def train_in_turn(data: Path, out: Path, ports: dict[str, str]) -> dict[str, Any]:
    seen = {}
    for way, port in ports.items():
        os.environ["MASTER_PORT"] = port
        seen[way] = train(data, out / way, *WAYS[way])
    return seen


def train_refused(folder: Path) -> tuple[int, str]:
    return command("train", RECIPE, folder / "refused", *settings(folder / "data"))


def train_and_lose_one(folder: Path) -> None:
    lost = [*settings(folder / "data"), f"output_dir={folder / 'lost'}", "checkpoint.resume=never"]
    with at_step(3, lambda: os._exit(0) if os.environ["RANK"] == "1" else None):
        main(["train", "--config", str(RECIPE), *lost])  # its output is that of the process


def train_with_another(fact: str, value: Any, folder: Path) -> tuple[int, str]:
    """What two hosts say of which the second has another card."""
    from tests.pretend.device import CARD

    rank = os.environ["RANK"]
    socket.gethostname = lambda: f"node{rank}"
    if rank == "1":
        setattr(CARD, fact, value)
    out = folder / f"another {fact}"
    status, shown = command("train", RECIPE, out, *settings(folder / "data"))
    log = out / "train.log"
    return status, shown + (log.read_text() if log.exists() else "")


def train_in_groups(folder: Path) -> tuple[int, str]:
    runs = ["seeds=[0,1,2]", "placement=groups", "concurrent=1"]
    return command("train", RECIPE, folder / "groups", *settings(folder / "data"), *runs)


@pytest.fixture(scope="module")
def on_cpu(folder) -> list[float]:
    return losses_on_cpu(folder, "bf16")


@pytest.fixture(scope="module")
def seen(cards, folder) -> list[dict[str, Any]]:
    ports = {way: str(free_port()) for way in WAYS}
    return cards.call(train_in_turn, folder / "data", folder / "two cards", ports, processes=2)


@pytest.mark.parametrize("way", WAYS)
def test_losses_are_those_of_one_process_on_the_cpu(seen, on_cpu, way):
    first, second = (one[way]["losses"] for one in seen)
    assert first == second and len(first) == STEPS
    assert first == pytest.approx(on_cpu, rel=0.02)


@pytest.mark.parametrize("way", WAYS)
def test_each_process_uses_its_own_card(seen, way):
    for rank, one in enumerate(seen):
        where = {words.split()[0] for words in one[way]["weights"]}
        assert where == ({"cpu"} if way == "offloaded" else {f"cuda:{rank}"})


def test_groups_of_one_card_share_out_runs(cards, folder):
    """The groups leave nccl's communicator of all for their own, and meet again at the end."""
    (status, first), (other, second) = cards.call(train_in_groups, folder, processes=2)
    assert (status, other) == (0, 0), first + second
    for seed in (0, 1, 2):
        words = f"run {seed + 1} of 3: "
        assert first.count(words) + second.count(words) == 1
        report = report_of(folder / f"groups/seed-{seed}")
        assert (report["world_size"], report["outcome"]) == (1, "finished")


def test_a_process_that_sees_one_gpu_takes_it(cards, folder, on_cpu):
    """As under `srun --gpus-per-task=1` and wrappers that set CUDA_VISIBLE_DEVICES for MPI's processes."""
    ports = {"sharded": str(free_port())}
    seen = cards.call(
        train_in_turn,
        folder / "data",
        folder / "one card seen",
        ports,
        processes=2,
        env=lambda rank: {"CUDA_VISIBLE_DEVICES": str(rank), "OMPI_COMM_WORLD_LOCAL_RANK": str(rank)},
    )
    for one in seen:
        assert one["sharded"]["weights"] == {"cuda:0 bfloat16 part"}
        assert one["sharded"]["losses"] == pytest.approx(on_cpu, rel=0.02)


@pytest.mark.parametrize("launcher", [{}, OF_TORCHRUN], ids=["deepspeed", "torchrun"])
def test_a_lost_process_is_named_before_nccl_ends_the_others(cards, folder, launcher):
    """The lost one ends with status 0, since `cards` ends all others where one fails."""
    named = r"(?s)process 0: status 1\n.*error: process 1 of 2: '.*': has ended or was killed"
    with pytest.raises(AssertionError, match=named):
        cards.call(train_and_lose_one, folder, processes=2, env=lambda rank: launcher)


def test_hosts_with_another_nccl_are_refused_before_it_is_asked(cards, folder):
    ended = cards.call(train_with_another, "nccl", (2, 21, 5), folder, processes=2)
    assert [status for status, _ in ended] == [2, 2]
    said = "error: host node1: 'nccl 2.21.5': is 2.27.3 on node0: install the same versions on all hosts"
    assert said in ended[0][1]


def test_hosts_with_other_gpus_train_and_are_named(cards, folder):
    ended = cards.call(train_with_another, "name", "NVIDIA A100", folder, processes=2)
    assert [status for status, _ in ended] == [0, 0]
    assert "process 1 (node1) has a GPU NVIDIA A100, process 0 (node0) NVIDIA H200" in ended[0][1]


def test_processes_that_see_the_same_gpu_are_refused(cards, folder):
    ended = cards.call(train_refused, folder, processes=2, env=lambda rank: {"CUDA_VISIBLE_DEVICES": "0"})
    assert [status for status, _ in ended] == [2, 2]
    assert "runs 2 processes and has 1 GPUs: give it as many slots as it has GPUs" in "".join(
        shown for _, shown in ended
    )
