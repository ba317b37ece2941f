"""Whole suites as jobs: their runs together, one after the other, and run by run by HF Trainer with PEFT."""

import json
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import yaml

from benchmarks._training_runs import launch, measured, our_config, rival_job, rival_settings
from benchmarks._workloads import COOLDOWN, WARMUP, Work
from lingo_ds.planning.fleet import FleetPlan, plan_fleet
from tests.hosts.hosts import Hosts

MIB = 1 << 20
ONE_BY_ONE, RIVAL = "1", "HF Trainer + PEFT"
"""Ways to train a suite, beside numbers of runs that advance together."""


class Sharding(NamedTuple):
    """How a job holds the backbone.

    Attributes:
        processes: of the job, over all hosts.
        stage: of ZeRO.
        link: what `tc` lets through between two hosts, e.g. `100mbit`; None: one host.
    """

    processes: int
    stage: int
    link: str | None = None

    @property
    def columns(self) -> dict[str, Any]:
        """What a row says of it."""
        weights = "sharded" if self.stage == 3 else "whole"
        return {"processes": self.processes, "weights": weights, "link": self.link}


class Suite(NamedTuple):
    """Runs that differ by their seed, trained in one way: `1`, `auto`, a number of runs, or `RIVAL`."""

    work: Work
    runs: int
    sharding: Sharding
    way: str

    @property
    def what(self) -> dict[str, Any]:
        """All that decides what is measured."""
        work = self.work
        return {
            "backbone": work.backbone.name,
            "data": f"{work.what}, {work.batch} x {work.steps} steps",
            "runs": self.runs,
            **self.sharding._asdict(),
            "way": self.way,
        }


def train(suite: Suite, folder: Path, *, hosts: Hosts | None) -> dict[str, Any]:
    """Trains in an empty folder.

    Returns:
        `seconds` to the finished suite, `examples_per_second` of all runs' steps, `peak_bytes` of the process
        that needed most, and of ours `planned_bytes` and how many runs advanced `together`.
    """
    if hosts:
        hosts.limit(suite.sharding.link)
    return _by_rival(suite, folder, hosts) if suite.way == RIVAL else _by_us(suite, folder, hosts)


def recipe_of(suite: Suite, folder: Path) -> dict[str, Any]:
    """The runs that the rival is compared with, `train_throughput`'s, with one seed each."""
    config = our_config(suite.work, folder, dtype="fp32", stage=suite.sharding.stage, adapter={})
    values = config.model_dump(mode="json", exclude_unset=True, exclude={"seed"})
    return values | {"seeds": list(range(suite.runs)), "concurrent": yaml.safe_load(suite.way)}


def _by_us(suite: Suite, folder: Path, hosts: Hosts | None) -> dict[str, Any]:
    recipe = recipe_of(suite, folder)
    seconds = seconds_of_suite(recipe, folder, suite.sharding.processes, hosts=hosts)
    run_dirs = [Path(recipe["output_dir"]) / f"seed-{seed}" for seed in range(suite.runs)]
    each = [measured(run_dir) for run_dir in run_dirs]
    plan = planned_fleet(run_dirs[0], suite.way, suite.runs)
    return {
        "seconds": seconds,
        "examples_per_second": steps_per_second([run.stamps for run in each]) * suite.work.batch,
        "peak_bytes": max(run.peak_host_bytes for run in each),
        "planned_bytes": plan.runs * plan.run_bytes + plan.shared_bytes + plan.pass_bytes,
        "together": plan.runs,
    }


def seconds_of_suite(
    recipe: dict[str, Any], folder: Path, processes: int, *, hosts: Hosts | None = None
) -> float:
    """Trains a recipe; seconds from the start of the launcher to its end."""
    (folder / "suite.yaml").write_text(yaml.safe_dump(recipe))
    start = time.perf_counter()
    script = ["launchers/train.py", "--config", str(folder / "suite.yaml")]
    launch(script, folder, processes, hosts=hosts)
    return time.perf_counter() - start


def planned_fleet(run_dir: Path, concurrent: str, runs: int) -> FleetPlan:
    """The plan of a suite whose runs are all like one that has left its plan in a folder."""
    plan = json.loads((run_dir / "plan.json").read_text())
    tokens = plan["micro_batch_tokens"] or plan["micro_batch_size"] * plan["facts"]["longest"]
    more = {"facts": SimpleNamespace(**plan["facts"]), "forward_tokens": tokens}
    alone: Any = SimpleNamespace(**plan | more)
    return plan_fleet([alone], concurrent=concurrent, runs=runs, device="cpu")


def steps_per_second(stamps: Sequence[Sequence[float]]) -> float:
    """Steps of all runs over the time in which at least one of them takes timed steps.

    What comes before, between and after these, starts and evaluations, is not counted: the time to the
    finished suite has it.

    Args:
        stamps: wall time at the end of each step of each run.
    """
    timed = sorted(run[WARMUP - 1 : len(run) - COOLDOWN] for run in stamps)
    seconds, end = 0.0, -math.inf
    for window in timed:
        seconds += max(window[-1] - max(window[0], end), 0.0)
        end = max(end, window[-1])
    return sum(len(window) - 1 for window in timed) / seconds


def _by_rival(suite: Suite, folder: Path, hosts: Hosts | None) -> dict[str, Any]:
    """One run by the rival, which all others are like; alone in its process it needs no DeepSpeed."""
    processes = suite.sharding.processes
    settings = rival_settings(suite.work, dtype="fp32", processes=processes, grouped=False, device="cpu")
    start = time.perf_counter()
    run = rival_job(settings | {"deepspeed": processes > 1}, folder, processes, hosts=hosts)
    return {
        "seconds": suite.runs * (time.perf_counter() - start),
        "examples_per_second": suite.work.batch / run.step_seconds,
        "peak_bytes": run.peak_host_bytes,
    }


Found = Mapping[Suite, Sequence[dict[str, Any]]]
"""What each repeat of each suite gave."""


def compare_speed(found: Found) -> list[dict[str, Any]]:
    """A row for each way of ours to train runs together: examples per second of all runs' timed steps."""
    return _compared(found, "examples/s", "examples_per_second", ratio=lambda ours, rival: ours / rival)


def compare_seconds(found: Found) -> list[dict[str, Any]]:
    """A row for each way of ours to train runs together: seconds to the finished suite."""
    return _compared(found, "s to the finished suite", "seconds", ratio=lambda ours, rival: rival / ours)


def _compared(
    found: Found, unit: str, name: str, *, ratio: Callable[[float, float], float]
) -> list[dict[str, Any]]:
    """Runs together beside the same runs one after the other, and by the rival where that was measured."""

    def of(repeats: Sequence[dict[str, Any]]) -> float:
        return statistics.median(one[name] for one in repeats)

    rows = []
    for suite, repeats in found.items():
        others = {way: suite._replace(way=way) for way in (ONE_BY_ONE, RIVAL)}
        if suite in others.values() or others[ONE_BY_ONE] not in found:
            continue
        ours, one_by_one = of(repeats), of(found[others[ONE_BY_ONE]])
        rival = of(found[others[RIVAL]]) if others[RIVAL] in found else None
        rows.append(
            {
                "backbone": suite.work.backbone.name,
                **suite.sharding.columns,
                "runs": suite.runs,
                "together": repeats[0]["together"],
                "unit": unit,
                "ours": ours,
                "rival": one_by_one,
                "ratio": ratio(ours, one_by_one),
                RIVAL: rival,
                f"over {RIVAL}": None if rival is None else ratio(ours, rival),
            }
        )
    return rows


def compare_memory(found: Found) -> list[dict[str, Any]]:
    """A row for each suite of ours: planned and largest memory of a process."""
    rows = []
    for suite, repeats in found.items():
        if suite.way == RIVAL:
            continue
        planned = repeats[0]["planned_bytes"]
        peak = max(one["peak_bytes"] for one in repeats)
        rows.append(
            {
                "backbone": suite.work.backbone.name,
                **suite.sharding.columns,
                "together": repeats[0]["together"],
                "planned MiB": planned / MIB,
                "peak MiB": peak / MIB,
                "off": planned / peak - 1,
            }
        )
    return rows
