"""The command as a user types it: DeepSpeed's launcher, two processes, a good end, a mistake and Ctrl-C."""

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file

from lingo_ds.distributed import process_group
from lingo_ds.distributed.process_group import DistEnv
from lingo_ds.distributed.stop_signals import StopSignals
from lingo_ds.utils.errors import UserError
from tests.ranks.launching import RECIPE, Job, launch, run_command, small_run, starting
from tests.ranks.spawn import run_ranks


@pytest.fixture
def start() -> Iterator[Callable[..., Job]]:
    with starting() as job:
        yield job


@pytest.fixture
def overrides(shared, tmp_path) -> list[str]:
    return small_run(shared, tmp_path)


def test_run_ends_well(deepspeed_run):
    ended, run = deepspeed_run
    assert ended.status == 0, ended.output
    assert not ended.orphans
    assert "Traceback" not in ended.output
    report = json.loads((run / "report.json").read_text())
    assert report["outcome"] == "finished"
    assert (report["world_size"], report["zero"]["stage"]) == (2, 3)
    assert report["metrics"]["test"]["mcc"] is not None
    assert len(load_file(run / "adapter" / "adapter_model.safetensors")) > 1


def test_summary_of_the_data_is_logged_once(deepspeed_run):
    output = deepspeed_run.ended.output
    assert output.count("the same sequence more than once") == 1, output


def test_mistake_in_a_data_file_is_reported_once(start, overrides, tmp_path):
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


def test_mistake_in_the_settings_is_reported_once(start, overrides, tmp_path):
    """Both processes find it before they have met."""
    ended = launch(start, tmp_path, [*overrides, "train.eval_steps=2", "train.eval_epochs=1"]).wait(240)
    assert ended.status == 2, ended.output
    assert ended.output.count("cannot be combined with train.eval_epochs") == 1, ended.output
    assert "Traceback" not in ended.output


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


def train_on_own_host(rank: int, world_size: int, hosts: list[Path], overrides: list[str]) -> tuple[int, str]:
    """Exit status and stderr of the command as the only process of a host."""
    os.chdir(hosts[rank])
    of_host = {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", "CUBLAS_WORKSPACE_CONFIG": (":16:8", ":0:0")[rank]}
    os.environ.update(of_host)
    return run_command(["train", "--config", str(RECIPE), *overrides])


def test_mistake_on_another_host_is_reported_in_its_words(overrides, tmp_path):
    """Two hosts, one process each: the second has no data, and the user must be able to read that."""
    hosts = [tmp_path / "host0", tmp_path / "host1"]
    for host in hosts:
        host.mkdir()
    (tmp_path / "data").rename(hosts[0] / "data")
    settings = [*overrides, "data.path=data", "data.cache_dir=cache"]
    ended = run_ranks(train_on_own_host, 2, hosts, settings)
    assert [status for status, _ in ended] == [2, 2], ended
    assert "error: data.path: 'data': is not there" in "".join(output for _, output in ended)


def test_a_variable_of_another_host_is_reported_in_its_words(overrides, tmp_path):
    """The first host's cuBLAS may give the same bits each time, the second's may not."""
    ended = run_ranks(train_on_own_host, 2, [tmp_path] * 2, [*overrides, "train.deterministic=true"])
    assert [status for status, _ in ended] == [2, 2], ended
    assert "error: CUBLAS_WORKSPACE_CONFIG: ':0:0': lets products differ" in ended[0][1]


def waits_for_a_second(rank: int, world_size: int) -> str:
    dist.destroy_process_group()
    with pytest.raises(UserError) as raised:
        process_group.start(DistEnv(0, 0, 2, 2, torch.device("cpu")), arrival=timedelta(seconds=3))
    return str(raised.value)


def test_a_process_that_does_not_come_is_reported():
    (message,) = run_ranks(waits_for_a_second, 1)
    assert message.startswith("error: MASTER_ADDR: '127.0.0.1:")
    assert "not all 2 processes of the job met there" in message
    assert "1/2 clients joined" in message
