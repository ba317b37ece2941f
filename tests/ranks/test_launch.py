"""The command as a user types it: DeepSpeed's launcher, two processes, a good end, a mistake and Ctrl-C."""

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from safetensors.torch import load_file

from lingo_ds.distributed.process_group import free_port
from lingo_ds.distributed.stop_signals import StopSignals
from tests.ranks.launching import CHECKOUT, RECIPE, Ended, Scenario, launch, small_run, starting


@pytest.fixture
def start() -> Iterator[Callable[..., Scenario]]:
    with starting() as job:
        yield job


@pytest.fixture
def overrides(shared, tmp_path) -> list[str]:
    return small_run(shared, tmp_path)


class Finished(NamedTuple):
    """A launch that went well, and the folder of its run."""

    ended: Ended
    run: Path


@pytest.fixture(scope="module")
def finished(shared, tmp_path_factory) -> Finished:
    folder = tmp_path_factory.mktemp("finished")
    settings = [*small_run(shared, folder), "train.max_steps=12", "train.eval_steps=4"]
    with starting() as start:
        return Finished(launch(start, folder, settings).wait(240), folder / "run")


def test_run_ends_well(finished):
    ended, run = finished
    assert ended.status == 0, ended.output
    assert not ended.orphans
    assert "Traceback" not in ended.output
    report = json.loads((run / "report.json").read_text())
    assert report["outcome"] == "finished"
    assert (report["world_size"], report["zero"]["stage"]) == (2, 3)
    assert report["metrics"]["test"]["mcc"] is not None
    assert len(load_file(run / "adapter" / "adapter_model.safetensors")) > 1


def test_what_was_noticed_in_the_data_is_said_once(finished):
    assert finished.ended.output.count("the same sequence more than once") == 1, finished.ended.output


def test_mistake_in_a_data_file_is_told_once(start, overrides, tmp_path):
    lines = (tmp_path / "data" / "train.csv").read_text().splitlines()
    lines[7] = "ACGTJACGT,1"
    (tmp_path / "data" / "train.csv").write_text("\n".join(lines) + "\n")
    ended = launch(start, tmp_path, [*overrides, "train.max_steps=12"]).wait(240)
    assert ended.status == 2, ended.output
    assert ended.output.count("error: ") == 1, ended.output
    assert f"error: {tmp_path / 'data' / 'train.csv'}:8: 'J': " in ended.output
    assert "Traceback" not in ended.output
    assert not ended.orphans
    assert not (tmp_path / "run" / "report.json").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_ctrl_c_ends_the_run_with_adapter_and_report(start, overrides, tmp_path, number):
    job = launch(start, tmp_path, [*overrides, "train.max_steps=100000", "train.eval_steps=5"])
    adapter = tmp_path / "run" / "adapter" / "adapter_model.safetensors"
    deadline = time.monotonic() + 240
    while not adapter.exists():
        assert time.monotonic() < deadline and job.process.poll() is None, job.output
        time.sleep(0.2)
    time.sleep(1)  # in the middle of steps
    os.killpg(job.process.pid, number)  # what a terminal or a batch system does
    ended = job.wait(60)
    assert ended.status != 0, ended.output
    assert not ended.orphans, ended.output
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["outcome"] == "interrupted"
    assert 5 <= report["steps"] < 100000
    assert len(load_file(adapter)) > 1
    assert list((tmp_path / "run" / "checkpoints").glob("step-*/bank.safetensors"))  # to go on from
    assert "lingo_ds" not in "".join(part for part in ended.output.split("Traceback")[1:])


def test_sigterm_again_from_the_launcher_kills_no_process():
    """SIGTERM to a whole group, as from `scancel`: DeepSpeed's launcher then sends each process another."""
    killed = []
    before = signal.signal(signal.SIGTERM, lambda *_: killed.append("by the second"))
    try:
        stop = StopSignals()
        with stop.installed():
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)
            assert stop.requested
            assert not killed
    finally:
        signal.signal(signal.SIGTERM, before)


def test_mistake_on_another_host_is_told_in_its_words(start, overrides, tmp_path):
    """Two hosts, one process each: on the second the data is missing, and its user must read so somewhere."""
    hosts = [tmp_path / "host0", tmp_path / "host1"]
    for host in hosts:
        host.mkdir()
    (tmp_path / "data").rename(hosts[0] / "data")
    port = str(free_port())
    script = [sys.executable, str(CHECKOUT / "launchers" / "train.py"), "--config", str(RECIPE)]
    jobs = [
        start(
            [*script, *overrides, "data.path=data", "data.cache_dir=cache"],
            host, RANK=str(rank), LOCAL_RANK="0", WORLD_SIZE="2", LOCAL_WORLD_SIZE="1",
            MASTER_ADDR="127.0.0.1", MASTER_PORT=port, GLOO_SOCKET_IFNAME="lo",
        )
        for rank, host in enumerate(hosts)
    ]  # fmt: skip
    ended = [job.wait(120) for job in jobs]
    assert [one.status for one in ended] == [2, 2], ended
    said = "".join(one.output for one in ended)
    assert "Traceback" not in said
    assert "error: data.path: 'data': is not there" in said


def test_a_process_that_does_not_come_is_told_in_words(start, tmp_path):
    code = (
        "from datetime import timedelta\n"
        "from lingo_ds.distributed.process_group import detect, start\n"
        "from lingo_ds.utils.errors import UserError\n"
        "try:\n"
        "    start(detect(), arrival=timedelta(seconds=3))\n"
        "except UserError as error:\n"
        "    print(error)\n"
    )
    place = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    ended = start([sys.executable, "-c", code], tmp_path, MASTER_PORT=str(free_port()), **place).wait(120)
    assert "error: MASTER_ADDR: '127.0.0.1:" in ended.output
    assert "not all 2 processes of the job met there" in ended.output
    assert "1/2 clients joined" in ended.output
