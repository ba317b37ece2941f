"""What `train_throughput` runs: workloads as files, and one job of ours or of the rival on them."""

import csv
import json
import os
import signal
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from tensorboard.backend.event_processing.event_accumulator import SCALARS, EventAccumulator
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerBase

from lingo_ds.config.run_config import RunConfig
from lingo_ds.data.batches import epoch_order
from lingo_ds.data.prompt import make_prompt
from lingo_ds.data.synthetic_promoters import write_promoters
from lingo_ds.distributed.process_group import free_port
from lingo_ds.models.backbone.builtin import write_backbone
from lingo_ds.models.backbone.tokenizer import read_tokenizer
from tests.hosts.hosts import ADDRESSES, Hosts

ROOT = Path(__file__).resolve().parents[1]
TIMEOUT = 3600
"""Seconds after which a job counts as hung."""

SEED, RANK, ALPHA = 0, 8, 16.0
WARMUP = 3
"""Steps before the timed ones; the learning rate rises in them."""

COOLDOWN = 1
"""Steps after the timed ones: ours evaluates within its last step."""

LLAMA_50M = {
    "hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 16, "num_attention_heads": 8,
    "num_key_value_heads": 8, "head_dim": 64, "initializer_range": 512**-0.5,
}  # fmt: skip
MADE = {"tiny": {}, "llama-50m": LLAMA_50M}
"""Backbones made on the spot, by what differs from `builtin:tiny`."""

DESCRIPTION = """
Decide whether the following stretch of human DNA is a core promoter. A core promoter lies around the
place where transcription starts, binds the general transcription factors and positions RNA polymerase.
Look for a TATA box about thirty bases before that place, for an initiator on top of it and, where there
is no TATA box, for a downstream element about thirty bases behind it. A motif that lies elsewhere does
not count."""
ANSWER = "\nSequence: {sequence}\nAnnotation:"


def describe_task(tokenizer: PreTrainedTokenizerBase, tokens: int = 100) -> str:
    """A template that begins with as many words of the description as make up so many tokens."""
    words = DESCRIPTION.split()
    texts = (" ".join(words[:count]) for count in range(1, len(words) + 1))
    return next(text for text in texts if len(tokenizer(text)["input_ids"]) >= tokens) + ANSWER


class Workload(NamedTuple):
    """Examples of equal shares of some lengths, shuffled; `prefix` makes a template for a tokenizer."""

    lengths: tuple[int, ...]
    what: str
    prefix: Callable[[PreTrainedTokenizerBase], str | None]


WORKLOADS = {
    "a": Workload((70,), "no prefix", lambda tokenizer: None),
    "b": Workload((70,), "long prefix", describe_task),
    "c": Workload((70, 101, 300, 500), "short prefix", lambda tokenizer: "Domain: human promoters" + ANSWER),
}


class Work(NamedTuple):
    """A workload on a backbone, as files.

    Attributes:
        backbone: Hugging Face folder.
        what: name for the tables.
        data: folder with train.csv, dev.csv and test.csv; an epoch is a run.
        prefix: template around the DNA.
        rows: the training examples' token ids and labels, in the order of our first epoch.
        batch: examples per step.
        steps: timed steps.
        learning_rate: peak.
        tokens: per example, on average.
    """

    backbone: Path
    what: str
    data: Path
    prefix: str | None
    rows: Path
    batch: int
    steps: int
    learning_rate: float
    tokens: float

    @property
    def all_steps(self) -> int:
        """Steps of a run."""
        return WARMUP + self.steps + COOLDOWN


class Measured(NamedTuple):
    """What one job showed.

    Attributes:
        stamps: wall time at the end of each step, seconds.
        losses: mean over each step's global batch.
        rates: learning rate of each step.
        trainable: trained entries.
        peak_host_bytes: of the process that needed most.
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

    @property
    def step_seconds(self) -> float:
        """Mean seconds of a timed step."""
        timed = self.stamps[WARMUP - 1 : len(self.stamps) - COOLDOWN]
        return (timed[-1] - timed[0]) / (len(timed) - 1)


def make_backbone(name: str, folder: Path) -> Path:
    """Writes one of `MADE` with random weights."""
    write_backbone(folder, seed=SEED)
    if MADE[name]:
        config = AutoConfig.from_pretrained(folder)
        config.update(MADE[name])
        torch.manual_seed(SEED)
        model = AutoModelForCausalLM.from_config(config)
        torch.nn.init.normal_(model.get_input_embeddings().weight)  # as `builtin:tiny` has them
        model.save_pretrained(folder)
    return folder


def prepare(
    workload: Workload, backbone: Path, folder: Path, *, batch: int, steps: int, learning_rate: float
) -> Work | None:
    """Writes one epoch of exactly the run's steps; None where no length fits the backbone's context."""
    tokenizer = read_tokenizer(backbone)
    prefix = workload.prefix(tokenizer)
    prompt = make_prompt(prefix, domain=None)
    context = AutoConfig.from_pretrained(backbone).max_position_embeddings
    room = context + 1 - len(tokenizer(prompt.render("A"))["input_ids"])  # a base is a token at most
    fitting = [length for length in workload.lengths if length <= room]
    if not fitting:
        return None
    count = batch * (WARMUP + steps + COOLDOWN)
    write_data(folder / "data", fitting, count)
    with (folder / "data" / "train.csv").open(newline="") as opened:
        rows = list(csv.DictReader(opened))
    tokens = tokenizer([prompt.render(row["sequence"]) for row in rows])["input_ids"]
    order = epoch_order(count, seed=SEED, epoch=0).tolist()
    examples = [{"input_ids": tokens[row], "labels": int(rows[row]["label"])} for row in order]
    (folder / "rows.json").write_text(json.dumps(examples))
    what = f"{' '.join(map(str, fitting))} bp, {workload.what}"
    if left_out := [length for length in workload.lengths if length > room]:
        what += f"; {' '.join(map(str, left_out))} bp beyond the context"
    mean_tokens = statistics.mean(map(len, tokens))
    return Work(
        backbone,
        what,
        folder / "data",
        prefix,
        folder / "rows.json",
        batch,
        steps,
        learning_rate,
        mean_tokens,
    )


def write_data(folder: Path, lengths: Sequence[int], count: int) -> None:
    """A folder in GUE's layout: `count` generated promoters, equal shares of each length, shuffled."""
    splits: dict[str, list[str]] = {"train": [], "dev": [], "test": []}
    for length in lengths:
        part = folder / f"{length}"
        write_promoters(
            part, seed=SEED, train=max(2, -(-count // len(lengths))), dev=2, test=2, length=length
        )
        for split, lines in splits.items():
            lines += (part / f"{split}.csv").read_text().splitlines()[1:]
    for split, lines in splits.items():
        order = np.random.default_rng(SEED).permutation(len(lines))[:count]
        text = "\n".join(["sequence,label", *(lines[row] for row in order)])
        (folder / f"{split}.csv").write_text(text + "\n")


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
            "global_batch_size": work.batch, "max_steps": work.all_steps, "eval_steps": work.all_steps,
            "learning_rate": work.learning_rate, "warmup": WARMUP,
        },
        zero={"stage": stage},
        checkpoint={"resume": "never"},
    )  # fmt: skip


def run_ours(
    work: Work, folder: Path, *, dtype: str, processes: int, stage: str | int, **adapter: Any
) -> Measured:
    """A job of ours in an empty folder."""
    config = our_config(work, folder, dtype=dtype, stage=stage, adapter=adapter)
    (folder / "config.yaml").write_text(config.to_yaml())
    launch(["launchers/train.py", "--config", str(folder / "config.yaml")], folder, processes)
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
    )


def run_rival(work: Work, folder: Path, *, dtype: str, processes: int, grouped: bool) -> Measured:
    """A job of the rival in an empty folder."""
    settings = {
        "backbone": str(work.backbone), "rows": str(work.rows), "dtype": dtype, "seed": SEED,
        "batch": work.batch // processes, "steps": work.all_steps, "warmup": WARMUP,
        "timed_rows": [work.batch * WARMUP, work.batch * (WARMUP + work.steps)], "grouped": grouped,
        "rank": RANK, "alpha": ALPHA, "targets": "all-linear", "learning_rate": work.learning_rate,
    }  # fmt: skip
    (folder / "settings.json").write_text(json.dumps(settings))
    launch(["benchmarks/_rival.py", str(folder / "settings.json")], folder, processes)
    seen = [json.loads((folder / f"process-{k}.json").read_text()) for k in range(processes)]
    return Measured(
        stamps=seen[0]["stamps"],
        losses=[statistics.mean(step) for step in zip(*(one["losses"] for one in seen), strict=True)],
        rates=seen[0]["rates"],
        trainable=seen[0]["trainable"],
        peak_host_bytes=max(one["peak_host_bytes"] for one in seen),
        held=max(one["held"] for one in seen),
    )


def launch(script: list[str], folder: Path, processes: int, *, hosts: Hosts | None = None) -> None:
    """Runs a script on so many CPU processes, one thread each; what it says goes to `log` in the folder.

    With `hosts` half of the processes run on each.

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
    env = os.environ | {
        "DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false", "LINGO_DS_CACHE": str(folder.parent / "cache"),
        "PYTHONPATH": str(ROOT), "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        **(hosts.environment() if hosts else {}),
    }  # fmt: skip
    log = folder / "log"
    with log.open("w") as opened:
        job = subprocess.Popen(
            [*command, *script], cwd=ROOT, env=env, stdout=opened, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
        try:
            status = job.wait(TIMEOUT)
        except subprocess.TimeoutExpired:
            status = f"none within {TIMEOUT} s"
        finally:
            if job.poll() is None:
                os.killpg(job.pid, signal.SIGKILL)
                job.wait()
    if status != 0:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-30:])
        raise RuntimeError(f"{' '.join(script)} ended with status {status}:\n{tail}")
