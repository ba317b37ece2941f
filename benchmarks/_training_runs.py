"""One job of ours or of the rival on a workload, and what it showed."""

import json
import os
import signal
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

from tensorboard.backend.event_processing.event_accumulator import SCALARS, EventAccumulator

from benchmarks._workloads import COOLDOWN, SEED, WARMUP, Work
from lingo_ds.config.run_config import RunConfig
from lingo_ds.distributed.process_group import free_port
from tests.hosts.hosts import ADDRESSES, Hosts

ROOT = Path(__file__).resolve().parents[1]
TIMEOUT = 3600
"""Seconds after which a job counts as hung."""

RANK, ALPHA = 8, 16.0


class Measured(NamedTuple):
    """What one job showed.

    Attributes:
        stamps: wall time at the end of each step, seconds.
        losses: mean over each step's global batch.
        rates: learning rate of each step.
        trainable: trained entries.
        peak_host_bytes: of the process that needed most.
        peak_device_bytes: likewise, of its GPU's memory; None on a CPU.
        held: share of the frozen weights that a process keeps between steps.
        sites: adapted maps; None for the rival.
    """

    stamps: list[float]
    losses: list[float]
    rates: list[float]
    trainable: int
    peak_host_bytes: int
    held: float
    sites: int | None = None
    peak_device_bytes: int | None = None

    @property
    def step_seconds(self) -> float:
        """Mean seconds of a timed step."""
        timed = self.stamps[WARMUP - 1 : len(self.stamps) - COOLDOWN]
        return (timed[-1] - timed[0]) / (len(timed) - 1)


def our_config(
    work: Work, folder: Path, *, dtype: str, stage: str | int, adapter: dict[str, Any]
) -> RunConfig:
    """LoRA as ours trains it, in a folder: evaluated only at the end."""
    return RunConfig(
        name="train_throughput",
        seed=SEED,
        output_dir=folder / "run",
        backbone={"path": str(work.backbone), "dtype": dtype},
        data={"path": str(work.data), "prefix": work.prefix},
        adapter={"method": "lora", "rank": RANK, "alpha": ALPHA} | adapter,
        rank_sampling={"mode": "off"},
        train={
            "global_batch_size": work.batch,
            "max_steps": work.all_steps,
            "eval_steps": work.all_steps,
            "learning_rate": work.learning_rate,
            "warmup": WARMUP,
        },
        zero={"stage": stage},
        checkpoint={"resume": "never"},
    )


def run_ours(
    work: Work,
    folder: Path,
    *,
    dtype: str,
    processes: int,
    stage: str | int,
    device: str = "cpu",
    **adapter: Any,
) -> Measured:
    """A job of ours in an empty folder."""
    config = our_config(work, folder, dtype=dtype, stage=stage, adapter=adapter)
    (folder / "config.yaml").write_text(config.to_yaml())
    launch(["launchers/train.py", "--config", str(folder / "config.yaml")], folder, processes, device=device)
    return measured(config.run_dir)


def measured(run_dir: Path) -> Measured:
    """What a run of ours left in its folder."""
    events = EventAccumulator(str(run_dir / "tensorboard"), size_guidance={SCALARS: 0}).Reload()
    losses, report = events.Scalars("train/loss"), json.loads((run_dir / "report.json").read_text())
    return Measured(
        stamps=[event.wall_time for event in losses],
        losses=[event.value for event in losses],
        rates=[event.value for event in events.Scalars("train/lr")],
        trainable=report["parameters"]["trainable"],
        peak_host_bytes=max(report["memory"]["peak_host_bytes"]),
        held=1 / report["zero"]["shard_group"],
        sites=len(report["rank_sampling"]["ranks"]),
        peak_device_bytes=max(filter(None, report["memory"]["peak_device_bytes"]), default=None),
    )


def rival_settings(work: Work, *, dtype: str, processes: int, grouped: bool, device: str) -> dict[str, Any]:
    """What `_rival.py` is told; alone on a GPU it needs no DeepSpeed and does without."""
    return {
        "backbone": str(work.backbone),
        "rows": str(work.rows),
        "dtype": dtype,
        "device": device,
        "deepspeed": device == "cpu" or processes > 1,
        "seed": SEED,
        "batch": work.batch // processes,
        "steps": work.all_steps,
        "warmup": WARMUP,
        "timed_steps": [WARMUP, WARMUP + work.steps],
        "timed_rows": [work.batch * WARMUP, work.batch * (WARMUP + work.steps)],
        "grouped": grouped,
        "rank": RANK,
        "alpha": ALPHA,
        "targets": "all-linear",
        "learning_rate": work.learning_rate,
    }


def run_rival(
    work: Work, folder: Path, *, dtype: str, processes: int, grouped: bool, device: str = "cpu"
) -> Measured:
    """A job of the rival in an empty folder."""
    settings = rival_settings(work, dtype=dtype, processes=processes, grouped=grouped, device=device)
    return rival_job(settings, folder, processes)


def rival_job(
    settings: dict[str, Any], folder: Path, processes: int, *, hosts: Hosts | None = None
) -> Measured:
    """The rival with these settings, in an empty folder; see `launch`."""
    (folder / "settings.json").write_text(json.dumps(settings))
    job = ["benchmarks/_rival.py", str(folder / "settings.json")]
    launch(job, folder, processes, hosts=hosts, device=settings["device"])
    seen = [json.loads((folder / f"process-{k}.json").read_text()) for k in range(processes)]
    return Measured(
        stamps=seen[0]["stamps"],
        losses=[statistics.mean(step) for step in zip(*(one["losses"] for one in seen), strict=True)],
        rates=seen[0]["rates"],
        trainable=seen[0]["trainable"],
        peak_host_bytes=max(one["peak_host_bytes"] for one in seen),
        held=max(one["held"] for one in seen),
        peak_device_bytes=max(filter(None, (one["peak_device_bytes"] for one in seen)), default=None),
    )


def launch(
    script: list[str],
    folder: Path,
    processes: int,
    *,
    hosts: Hosts | None = None,
    device: str = "cpu",
    timeout: float = TIMEOUT,
) -> None:
    """Runs a script on so many processes; its output goes to `log` in the folder.

    On CPUs each has one thread, on GPUs each has its own GPU.

    With `hosts` half of the processes run on each. A job that takes longer than `timeout` seconds is killed.

    Raises:
        RuntimeError: with the end of the log, where it fails or hangs.
    """
    command = [sys.executable]
    if processes > 1:
        launcher = Path(sys.executable).with_name("deepspeed")
        command = [str(launcher), "--num_accelerators", str(processes), "--master_port", str(free_port())]
    if hosts:
        file = hosts.hostfile(processes // len(hosts.names))
        of_hosts = ["--hostfile", str(file), "--master_addr", ADDRESSES[0], "--no_ssh_check"]
        command = hosts.inside(0, [command[0], *of_hosts, *command[-2:]])
    of_device = {"DS_ACCELERATOR": "cuda"}
    if device == "cpu":
        of_device = {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    env = os.environ | {
        **of_device,
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "LINGO_DS_CACHE": str(folder.parent / "cache"),
        "PYTHONPATH": str(ROOT),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        **(hosts.environment() if hosts else {}),
    }
    log = folder / "log"
    with log.open("w") as opened:
        job = subprocess.Popen(
            [*command, *script],
            cwd=ROOT,
            env=env,
            stdout=opened,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            status = job.wait(timeout)
        except subprocess.TimeoutExpired:
            status = f"none within {timeout} s"
        finally:
            if job.poll() is None:
                os.killpg(job.pid, signal.SIGKILL)
                job.wait()
    if status != 0:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-30:])
        raise RuntimeError(f"{' '.join(script)} ended with status {status}:\n{tail}")
