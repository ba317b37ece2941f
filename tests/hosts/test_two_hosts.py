"""`deepspeed --hostfile hosts launchers/train.py` over two hosts with a network between them."""

import time

import pytest

from tests.hosts.hosts import ADDRESSES, over_hosts, run_over_cable
from tests.ranks.launching import STEPS, launch

FOREVER = ["train.max_steps=100000", "train.eval_steps=100000", "checkpoint.every=2"]


def test_two_hosts_learn_what_one_does(short_run, one_host):
    one_host.require_same(short_run.folder, processes=2)


@pytest.mark.slow
def test_two_hosts_of_two_processes_learn_what_one_does(start, hosts, overrides, one_host, tmp_path):
    run = run_over_cable(start, hosts, tmp_path, [*overrides, *STEPS], slots=2)
    one_host.require_same(run.folder, processes=4)


def trains(job, folder):
    """Waits until a checkpoint is there."""
    deadline = time.monotonic() + 120
    while not list(folder.glob("run/checkpoints/step-*/bank.safetensors")):
        assert job.process.poll() is None and time.monotonic() < deadline, job.output
        time.sleep(0.2)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["unplug", "kill"])
def test_a_lost_host_ends_the_job_everywhere_and_is_named(start, hosts, overrides, tmp_path, how):
    job = over_hosts(start, hosts, tmp_path, [*overrides, *FOREVER, "zero.stage=3"], slots=1)
    trains(job, tmp_path)
    getattr(hosts, how)(1)
    try:
        ended = job.wait(120)
        deadline = time.monotonic() + 120
        while any(running(process) for k in range(2) for process in hosts.processes(k)):
            assert time.monotonic() < deadline, "processes stayed"
            time.sleep(0.5)
    finally:
        hosts.plug_in(1)
    assert ended.status != 0 and "Traceback" not in ended.output, ended.output
    assert "node1" in ended.output, ended.output
    alone = launch(start, tmp_path, [*overrides, "train.max_steps=100000", "train.eval_steps=100000"])
    deadline = time.monotonic() + 120
    while "resumed from" not in alone.output:
        assert alone.process.poll() is None and time.monotonic() < deadline, alone.output
        time.sleep(0.2)


def running(process):
    """Whether it is a process of training, and not the host's sshd."""
    try:
        with open(f"/proc/{process}/cmdline", "rb") as file:
            return b"train.py" in file.read()
    except OSError:
        return False


def test_an_absent_host_is_reported_at_once(start, hosts, overrides, tmp_path):
    file = hosts.hostfile(1)
    text = file.read_text().replace(ADDRESSES[1], "10.77.0.9")
    job = over_hosts(start, hosts, tmp_path, overrides, slots=1, hostfile=text)
    deadline = time.monotonic() + 60
    while "10.77.0.9" not in job.output.partition("\npdsh@")[2]:
        assert job.process.poll() is None and time.monotonic() < deadline, job.output
        time.sleep(0.2)
    assert "No route to host" in job.output
    assert not (tmp_path / "run" / "report.json").exists()
