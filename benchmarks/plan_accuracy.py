"""How near the plan comes: predicted peak memory and step time beside what training took, on this CPU.

Every row is a job of its own (`deepspeed launchers/train.py` or `lingo-ds train`): Llama shapes with random
weights, 1, 2 and 4 processes, whole copies and shards, and two hosts (network namespaces) whose cable `tc`
limits. Before, `_probe` times small kernels and collectives once per number of processes, and a tiny model is
trained to see what a process needs without any; the plan knows nothing else of this machine.

`python -m benchmarks.plan_accuracy --json FILE`; as root, for the two hosts. With `--keep FOLDER --minutes N`
the jobs can be run in pieces: what is measured stays there.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks._common import parser, say, show
from benchmarks._cpu_machine import predicted
from benchmarks._plan_runs import Setting, make_shape, make_work, run_setting
from benchmarks._training_runs import ROOT
from benchmarks._workloads import Work
from lingo_ds.planning.cost.estimate import Estimate
from lingo_ds.utils import logging as logs
from tests.hosts.hosts import Hosts, missing

GRID = (
    Setting("6M", processes=1, stage=0, batch=8),
    Setting("51M", processes=2, stage=3, batch=8),
    Setting("6M", processes=2, stage=3, batch=8, link="100mbit"),
    Setting("51M", processes=1, stage=0, batch=4),
    Setting("51M", processes=4, stage=3, group=4, batch=16),
    Setting("51M", processes=2, stage=3, batch=8, link="1gbit"),
    Setting("85M", processes=1, stage=0, batch=4),
    Setting("154M", processes=1, stage=0, batch=4, length=100),
    Setting("51M", processes=2, stage=3, batch=8, eight_bit=True, link="1gbit"),
    Setting("51M", processes=1, stage=0, batch=4, checkpointing=True),
    Setting("6M", processes=4, stage=3, group=2, batch=16, link="100mbit"),
    Setting("51M", processes=2, stage=0, batch=8),
    Setting("6M", processes=2, stage=3, batch=8, link="1gbit"),
    Setting("6M", processes=2, stage=3, batch=8, eight_bit=True, link="100mbit"),
    Setting("85M", processes=2, stage=3, batch=8),
    Setting("51M", processes=2, stage=3, batch=8, eight_bit=True),
    Setting("6M", processes=4, stage=3, group=4, batch=16, link="100mbit"),
    Setting("154M", processes=2, stage=3, batch=8, length=100),
    Setting("85M", processes=4, stage=3, group=2, batch=8),
    Setting("6M", processes=4, stage=3, group=2, batch=16, link="1gbit"),
    Setting("51M", processes=2, stage=3, batch=8, checkpointing=True),
)
"""What is run, the most different first."""

QUICK = (Setting("6M", processes=1, stage=0, batch=4), Setting("6M", processes=2, stage=3, batch=8))

BASES = tuple(
    Setting("tiny", processes=count, stage=stage, batch=4, length=100)
    for count, stage in ((1, 0), (2, 3), (4, 3))
)
"""Jobs that show what a process needs without a model."""

MIB = 1 << 20
STEPS = 4
"""Timed steps of a job."""


class Kept:
    """What was measured, in a folder, so that a later call goes on."""

    def __init__(self, folder: Path, *, minutes: float | None):
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._end = folder, None if minutes is None else time.monotonic() + 60 * minutes

    @property
    def time_is_up(self) -> bool:
        return self._end is not None and time.monotonic() > self._end

    def has(self, setting: Setting) -> bool:
        return self._file(setting).exists()

    def _file(self, setting: Setting) -> Path:
        return self._folder / f"{setting.name}.json"

    def rates(self, processes: int) -> dict[str, Any]:
        """What `_probe` finds for so many processes."""
        file = self._folder / f"probe-{processes}.json"
        if not file.exists():
            command = [sys.executable, "-W", "ignore", str(ROOT / "benchmarks" / "_probe.py")]
            subprocess.run([*command, str(processes), str(file)], check=True, cwd=ROOT)
        return json.loads(file.read_text())

    def measured(self, setting: Setting, hosts: Hosts | None) -> dict[str, Any]:
        """Step seconds and peak bytes of a job."""
        file = self._file(setting)
        if not file.exists():
            work = self._work(setting)
            start = time.perf_counter()
            with tempfile.TemporaryDirectory(dir=self._folder) as folder:
                seen = run_setting(setting, work, Path(folder), hosts)
            found = {"step_seconds": seen.step_seconds, "peak_host_bytes": seen.peak_host_bytes}
            file.write_text(json.dumps(found))
            whole = time.perf_counter() - start
            say(f"{setting.name}: {seen.step_seconds:.3f} s a step, {whole:.0f} s in all")
        return json.loads(file.read_text())

    def base(self, setting: Setting, rates: dict[str, Any]) -> tuple[int, float]:
        """What the job of a tiny model shows: bytes of a process, seconds to start an operation.

        The latter is what makes the plan of this job right, whose arithmetic takes next to nothing.
        """
        seen = self.measured(setting, None)
        none, one = (
            self.predicted(setting, rates | {"dispatch": seconds}, 0).seconds for seconds in (0.0, 1.0)
        )
        dispatch = (seen["step_seconds"] - none) / (one - none)
        return seen["peak_host_bytes"], max(dispatch, rates["dispatch"])

    def predicted(self, setting: Setting, rates: dict[str, Any], runtime: int) -> Estimate:
        """What the plan says."""
        return predicted(setting, self._work(setting), rates, runtime, self._folder)

    def _work(self, setting: Setting) -> Work:
        backbone = self._folder / "backbones" / setting.shape
        if not backbone.exists():
            make_shape(setting.shape, backbone)
        return make_work(setting, backbone, self._folder / "work" / setting.name, steps=STEPS)


def compare(setting: Setting, seen: dict[str, Any], planned: Estimate) -> dict[str, Any]:
    """A row: what was planned, what was measured, and how far off the plan is."""
    peak = planned.peak_bytes
    return {
        "job": setting.name,
        "planned MiB": peak / MIB,
        "peak MiB": seen["peak_host_bytes"] / MIB,
        "peak off": peak / seen["peak_host_bytes"] - 1,
        "passes s": planned.compute,
        "exposed s": planned.exposed,
        "update s": planned.update,
        "planned s": planned.seconds,
        "step s": seen["step_seconds"],
        "step off": planned.seconds / seen["step_seconds"] - 1,
    }


def _rates_shown(rates: dict[str, Any]) -> dict[str, Any]:
    gather = rates.get("all_gather")
    return {
        "products GFLOP/s": " ".join(f"{rate / 1e9:.0f}" for rate in rates["products"]),
        "memory GB/s": rates["memory"] / 1e9,
        "operation us": rates["dispatch"] * 1e6,
        "gather MB/s": gather[1] / 1e6 if gather else None,
        "gather ms": gather[0] * 1e3 if gather else None,
    }


def measure(kept: Kept, grid: tuple[Setting, ...]) -> Iterator[tuple[Setting, dict[str, Any]]]:
    """Runs what is not measured yet, until the time is up."""
    with ExitStack() as stack:
        hosts = None
        for setting in grid:
            if kept.has(setting):
                yield setting, kept.measured(setting, None)
                continue
            if kept.time_is_up:
                continue
            if setting.link and hosts is None:
                if reason := missing():
                    say(f"{setting.name} is left out: {reason}")
                    continue
                hosts = Hosts(Path(stack.enter_context(tempfile.TemporaryDirectory())) / "net")
                stack.callback(hosts.down)
                hosts.up()
            yield setting, kept.measured(setting, hosts)


def main() -> None:
    given = parser(__doc__)
    given.add_argument("--keep", type=Path, help="folder for what is measured")
    given.add_argument("--minutes", type=float, help="start no more jobs after so many")
    args = given.parse_args()
    logs.quieten_libraries()
    with tempfile.TemporaryDirectory(prefix="plan_accuracy-") as name:
        kept = Kept(args.keep or Path(name), minutes=args.minutes)
        grid = QUICK if args.quick else GRID
        counts = sorted({setting.processes for setting in grid})
        rates = {count: kept.rates(count) for count in counts}
        runtime = {}
        for base in BASES:
            if (count := base.processes) in counts:
                runtime[count], dispatch = kept.base(base, rates[count])
                rates[count] = rates[count] | {"dispatch": dispatch}
        measured = list(measure(kept, grid))
        rows = [
            compare(
                setting, seen, kept.predicted(setting, rates[setting.processes], runtime[setting.processes])
            )
            for setting, seen in measured
        ]
        within = [
            {
                "rows": len(rows),
                "peak within 10 %": sum(abs(row["peak off"]) <= 0.10 for row in rows),
                "step within 25 %": sum(abs(row["step off"]) <= 0.25 for row in rows),
            }
        ]
        machine = [
            {"processes": count, **_rates_shown(rates[count]), "runtime MiB": runtime[count] / MIB}
            for count in counts
        ]
        show(
            {"plan and training": rows, "in all": within, "what the plan knew of this machine": machine},
            json_path=args.json,
        )


if __name__ == "__main__":
    main()
