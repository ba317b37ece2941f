"""Every test in this folder starts real processes, and most compare with what one host learns."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.hosts.hosts import CableRun, Hosts, missing, run_over_cable, two_hosts
from tests.ranks.launching import STEPS, small_run, starting

HERE = Path(__file__).resolve().parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks the tests of this folder `ranks`."""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.ranks)


class Learned(NamedTuple):
    """The adapter and the report of a run."""

    adapter: dict[str, Tensor]
    report: dict[str, Any]

    def require_same(self, folder: Path, *, processes: int) -> None:
        """Checks that the run in a folder learned the same, on so many processes."""
        other = learned(folder)
        assert other.report["world_size"] == processes
        ours, theirs = (one.report["rank_sampling"] for one in (self, other))
        assert ours["ranks"] == theirs["ranks"] and ours["mask_events"] > 0
        assert self.adapter.keys() == other.adapter.keys()
        for name, value in other.adapter.items():
            torch.testing.assert_close(value, self.adapter[name], rtol=1e-5, atol=1e-5, msg=name)


def learned(folder: Path) -> Learned:
    adapter = load_file(folder / "adapter" / "adapter_model.safetensors")
    return Learned(adapter, json.loads((folder / "report.json").read_text()))


@pytest.fixture
def start():
    with starting() as job:
        yield job


@pytest.fixture
def overrides(shared, tmp_path) -> list[str]:
    return small_run(shared, tmp_path)


@pytest.fixture(scope="session")
def one_host(deepspeed_run) -> Learned:
    """What two processes under `deepspeed` on one host learn."""
    assert deepspeed_run.ended.status == 0, deepspeed_run.ended.output
    return learned(deepspeed_run.folder)


@pytest.fixture(scope="session")
def hosts(tmp_path_factory) -> Iterator[Hosts]:
    """The two hosts, with no process on them but their sshd."""
    if reason := missing():
        pytest.skip(f"two hosts: {reason}")
    with two_hosts(tmp_path_factory.mktemp("hosts") / "net") as made:
        yield made


@pytest.fixture(scope="session")
def short_run(shared, hosts, tmp_path_factory) -> CableRun:
    """The run of `one_host` on two hosts, with one process on each."""
    folder = tmp_path_factory.mktemp("two-hosts")
    with starting() as job:
        return run_over_cable(job, hosts, folder, [*small_run(shared, folder), *STEPS], slots=1)
