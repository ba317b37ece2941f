"""Killed, hung or cut off: the job ends in time everywhere, names the culprit, and the command goes on."""

import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from lingo_ds.distributed.process_group import free_port
from tests.ranks.launching import Ended, Job, launch, small_run, starting

STEPS = 40
LONGEST = 60
"""Seconds in which every process must have ended."""

SETTINGS = [f"train.max_steps={STEPS}", "train.eval_steps=8", "checkpoint.every=2", "train.timeout=15"]


@pytest.fixture(scope="module")
def place(shared, tmp_path_factory) -> Path:
    """A folder whose cache is filled, so that the jobs in it begin to train soon."""
    return tmp_path_factory.mktemp("killed")


@pytest.fixture(scope="module")
def settings(shared, place) -> list[str]:
    return [*small_run(shared, place), *SETTINGS]


@pytest.fixture
def start() -> Iterator[Callable[..., Job]]:
    with starting() as job:
        yield job


@pytest.fixture(scope="module")
def undisturbed(settings, place) -> dict[str, bytes]:
    """What a run learns that nobody disturbs."""
    with starting() as start:
        ended = launch(start, place, [*settings, f"output_dir={place / 'undisturbed'}"]).wait(240)
        assert ended.status == 0, ended.output
    return learned(place / "undisturbed")


def learned(run: Path) -> dict[str, bytes]:
    """The bank at the last step, and the adapter."""
    files = [
        run / f"checkpoints/step-{STEPS:08d}/bank.safetensors",
        run / "adapter/adapter_model.safetensors",
    ]
    return {file.name: file.read_bytes() for file in files}


def ranks_of(job: Job) -> list[psutil.Process]:
    """The job's training processes, by global rank."""
    found = {}
    for process in job.own_processes():
        line = process.cmdline()
        if "deepspeed" not in " ".join(line[:4]) and any(word.endswith("train.py") for word in line):
            found[int(process.environ()["RANK"])] = process
    return [found[rank] for rank in sorted(found)]


def launcher_of(job: Job) -> psutil.Process:
    return psutil.Process(job.process.pid)


def when_trained(job: Job, run: Path, step: int) -> None:
    """Waits until a checkpoint of `step` or later is there."""
    deadline = time.monotonic() + 240
    while not any(int(path.name[5:]) >= step for path in (run / "checkpoints").glob("step-*")):
        assert time.monotonic() < deadline and job.process.poll() is None, job.output
        time.sleep(0.02)


def ends(job: Job) -> Ended:
    """The job's end, which must come in time and leave no process."""
    ended = job.wait(LONGEST)
    assert not ended.orphans, ended.output
    assert ended.seconds < LONGEST, ended.output
    return ended


def kill_one(job: Job) -> str:
    ranks_of(job)[1].kill()
    return "error: process 1 of 2: "


def kill_the_first(job: Job) -> str:
    ranks_of(job)[0].kill()
    return "error: process 0 of 2: "


def kill_all(job: Job) -> str:
    for process in ranks_of(job):
        process.kill()
    return ""


def kill_the_launcher(job: Job) -> str:
    launcher_of(job).kill()
    return "the launcher is gone"


KILLS = {"one": kill_one, "the first": kill_the_first, "all": kill_all, "the launcher": kill_the_launcher}


@pytest.mark.parametrize(
    "name", ["one", "the launcher", *(pytest.param(n, marks=pytest.mark.slow) for n in ("the first", "all"))]
)
def test_a_killed_job_ends_in_time_names_the_process_and_goes_on(start, settings, place, undisturbed, name):
    run = place / name.replace(" ", "-")
    command = [*settings, f"output_dir={run}"]
    job = launch(start, place, command)
    when_trained(job, run, 6)
    words = KILLS[name](job)
    ended = ends(job)
    assert words in ended.output, ended.output
    again = launch(start, place, command).wait(240)
    assert again.status == 0, again.output
    assert "resumed from" in again.output
    assert learned(run) == undisturbed


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_stopped_process_is_named(start, settings, place, rank):
    run = place / f"stopped-{rank}"
    job = launch(start, place, [*settings, "train.max_steps=100000", f"output_dir={run}"])
    when_trained(job, run, 4)
    ranks_of(job)[rank].suspend()
    ended = job.wait(120)
    assert f"error: process {rank} of 2: " in ended.output, ended.output
    assert not ended.orphans


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_warned_process_ends_the_job_well(start, settings, place, undisturbed, number):
    run = place / f"warned-{number}"
    command = [*settings, f"output_dir={run}"]
    job = launch(start, place, command)
    when_trained(job, run, 6)
    ranks_of(job)[1].send_signal(number)
    ended = ends(job)
    assert ended.status == 0, ended.output
    report = json.loads((run / "report.json").read_text())
    assert report["outcome"] == "interrupted" and report["steps"] < STEPS
    words = f"interrupted after step {report['steps']}: run the same command again to resume from there"
    assert words in ended.output
    assert launch(start, place, command).wait(240).status == 0
    assert learned(run) == undisturbed


def test_a_second_run_in_the_same_folder_is_refused(start, settings, place):
    run = place / "shared"
    command = [*settings, "train.max_steps=100000", f"output_dir={run}"]
    first = launch(start, place, command)
    when_trained(first, run, 2)
    second = launch(start, place, command).wait(120)
    assert second.status == 2, second.output
    assert f"error: output_dir: '{run}': another run is writing there (process " in second.output
    assert first.process.poll() is None
    os.kill(ranks_of(first)[0].pid, signal.SIGTERM)
    assert ends(first).status == 0


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_fifty_kills_at_random_moments_change_nothing(start, settings, place, undisturbed):
    """One run that is killed again and again, wherever it stands, in start-up and while it writes too."""
    draw, run = random.Random(0), place / "fifty"
    command = [*settings, f"output_dir={run}"]
    for number in range(50):
        before = max((int(p.name[5:]) for p in (run / "checkpoints").glob("step-*")), default=0)
        if before >= STEPS - 2:
            break
        job = launch(start, place, command)
        if draw.random() < 0.8:  # else in start-up
            when_trained(job, run, before + 1)
        time.sleep(draw.random() * 0.5)
        name = draw.choice(list(KILLS))
        if len(ranks_of(job)) == 2:
            KILLS[name](job)
        else:
            launcher_of(job).kill()
        ended = ends(job)
        assert ended.status != 2, (number, name, ended.output)
    assert launch(start, place, command).wait(240).status == 0
    assert learned(run) == undisturbed


HANGING = """
import os, sys, time
import torch, torch.distributed as dist
from lingo_ds.distributed import process_group, watchdog
env = process_group.detect()
dist.init_process_group("gloo")
def look_for_a_file_that_never_comes():
    time.sleep(600)
with watchdog.watching(env), watchdog.judging(3):
    for step in range(3):
        watchdog.beat()
        dist.all_reduce(torch.zeros(1))
    if env.global_rank == 1:
        look_for_a_file_that_never_comes()
    watchdog.beat()
    dist.all_reduce(torch.zeros(1))
"""


def test_a_process_that_hangs_is_named(start, tmp_path):
    place = {
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "GLOO_SOCKET_IFNAME": "lo",
    }
    port = str(free_port())
    jobs = [
        start(
            [sys.executable, "-c", HANGING],
            tmp_path,
            RANK=str(rank),
            LOCAL_RANK=str(rank),
            MASTER_PORT=port,
            **place,
        )
        for rank in range(2)
    ]
    first, second = (job.wait(LONGEST) for job in jobs)
    assert (first.status, second.status) == (1, 1), first.output + second.output
    assert "error: process 1 of 2: " in first.output
    assert "hangs, and the others have waited for it for 3 s (train.timeout)" in first.output
    assert "look_for_a_file_that_never_comes" in second.output, "it shows where it stands"
