"""This machine's CPU as the plan knows a GPU: rates from `_probe`, a process's own memory from a tiny job."""

from pathlib import Path
from typing import Any

from benchmarks._plan_runs import Setting, config_of
from benchmarks._workloads import Work
from lingo_ds.distributed.process_group import DistEnv, detect
from lingo_ds.planning.cost.elsewhere import Cluster, make_scenario, read_shapes
from lingo_ds.planning.cost.estimate import Estimate, estimate_step
from lingo_ds.planning.cost.machine import Machine, Wire
from lingo_ds.planning.layer import HOLES
from lingo_ds.utils.host import host_bytes

OF_A_LINK = 0.94
"""Of an Ethernet link's rate, what is left for data: 1448 of 1538 bytes of a frame."""

LINKS = {"100mbit": 1e8 / 8, "1gbit": 1e9 / 8}


def machine(rates: dict[str, Any], runtime: int, link: str | None) -> Machine:
    """One process among as many as the rates were found with."""
    count = rates["processes"]
    latency, rate = rates.get("all_gather", (0.0, 1.0))
    inside = Wire(rate, latency / max(count - 1, 1), hidden=0.0)  # what carries the bytes is what computes
    between = Wire(OF_A_LINK * LINKS[link], inside.latency, hidden=1.0) if link else inside
    return Machine(
        name="CPU",
        memory_bytes=host_bytes() // count,
        runtime_bytes=runtime,
        holes=HOLES["cpu"],
        widths=tuple(rates["widths"]),
        products=tuple(rates["products"]),
        adapters=tuple(rates["adapters"]),
        attention=rates["attention"],
        causal_half=False,
        memory=rates["memory"],
        dispatch=rates["dispatch"],
        runs_ahead=False,
        inside=inside,
        between=between,
        trees=False,
    )


def predicted(setting: Setting, work: Work, rates: dict[str, Any], runtime: int, folder: Path) -> Estimate:
    """What the plan says of a job, from its config, its data and the rates alone."""
    config = config_of(setting, work, folder)
    env: DistEnv = detect()
    cluster = Cluster(
        hosts=setting.hosts,
        per_host=setting.processes // setting.hosts,
        machine=machine(rates, runtime, setting.link),
        device="cpu",
    )
    return estimate_step(make_scenario(config, read_shapes(config, env, None), cluster))
