"""How fast LoRA trains here, beside Hugging Face's Trainer with PEFT, under DeepSpeed ZeRO-3 on CPUs.

1. Examples per second, peak memory and loss of the same training: same backbone, examples, order, batch,
   adapted maps, rank, dtype, optimizer, learning rates. Ours as it comes, with a copy of the backbone on
   every process where it fits (`zero.stage: auto`), and sharded as the rival's is (`zero.stage: 3`); the
   rival with batches padded as they come, and grouped by length. Workloads: (a) 70 bp; (b) 70 bp after a
   task description of about 100 tokens; (c) 70, 101, 300 and 500 bp mixed, after a short prefix.
   On GPUs (`--device cuda`) both are in bf16, and on one GPU the rival runs without DeepSpeed.
2. What a step of ours costs with more tokens, more adapted maps, higher ranks; one process.

`python -m benchmarks.train_throughput --json FILE`. Every run is a job of its own; the runs take turns. Timed
are the steps between the first three and the last, from the end of a step to the end of another: the same
examples in all runs. A run's mean counts, not its median: grouping by length makes short and long steps.
"""

import argparse
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

from benchmarks._common import parser, say, show
from benchmarks._training_runs import ALPHA, RANK, Measured, run_ours, run_rival
from benchmarks._workloads import MADE, WORKLOADS, Work, make_backbone, prepare
from benchmarks.make_backbone import SHAPES
from lingo_ds.models.backbone.families import TARGETS
from lingo_ds.utils import logging as logs
from lingo_ds.utils.units import GIB

Runs = dict[str, list[Measured]]
"""Repeats by the run's name."""

SAME_ORDER = "rival, padded"
COST_STEPS = 8
"""Timed steps, at most, where only ours is measured."""


def main() -> None:
    args = _arguments()
    logs.quieten_libraries()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # takes the job and the temporary folder along
    compared, described, costs = [], [], []
    with tempfile.TemporaryDirectory(prefix="train_throughput-") as name:
        folder = Path(name)
        for given in args.backbones:
            made = given in MADE or given in SHAPES
            backbone = make_backbone(given, folder / given) if made else Path(given).resolve()
            for key in args.workloads if "rival" in args.parts else ():
                place = folder / "work" / backbone.name / key
                work = prepare(
                    WORKLOADS[key],
                    backbone,
                    place,
                    batch=args.batch,
                    steps=args.steps,
                    learning_rate=args.learning_rate,
                )
                if work is None:
                    say(f"{backbone.name}: workload {key} is left out: beyond the context")
                    continue
                title = f"{backbone.name}; {work.what}"
                runs = _take_turns(_competitors(args, work), title, folder, args.repeats)
                require_same_work(runs)
                compared += compare(work, runs)
                described += describe(work, runs)
            if "cost" in args.parts:
                costs += cost_of_a_step(args, backbone, folder)
    setting = f"{args.processes} {args.device} processes, {args.dtype}, batch {args.batch}"
    tables = {
        f"LoRA, {setting}: examples/s": compared,
        f"run by run, {setting}": described,
        f"what a step of ours costs, one {args.device} process, {args.dtype}": costs,
    }
    show({title: rows for title, rows in tables.items() if rows}, json_path=args.json)


def _arguments() -> argparse.Namespace:
    given = parser(__doc__)
    names = ", ".join(MADE | SHAPES)
    given.add_argument("--backbones", nargs="+", help=f"folders, or {names}; default: llama-50m")
    given.add_argument("--workloads", nargs="+", choices=WORKLOADS, default=list(WORKLOADS))
    given.add_argument("--parts", nargs="+", choices=("rival", "cost"), default=["rival", "cost"])
    given.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    given.add_argument("--dtype", choices=("fp32", "bf16"), help="default: fp32, on a GPU bf16")
    given.add_argument("--processes", type=int, help="default: 2, on GPUs one for each")
    given.add_argument("--batch", type=int, default=16, help="examples per step, over all processes")
    given.add_argument("--steps", type=int, default=20, help="timed steps of a run")
    given.add_argument("--learning-rate", type=float, default=1e-4, help="peak")
    given.add_argument("--repeats", type=int, default=3)
    args = given.parse_args()
    args.backbones = args.backbones or ["tiny" if args.quick else "llama-50m"]
    if args.quick:
        args.backbones, args.workloads = args.backbones[:1], args.workloads[-1:]
        args.steps, args.repeats = min(args.steps, 4), 1
    cuda = args.device == "cuda"
    if cuda and not torch.cuda.is_available():
        given.error("--device cuda: there is no GPU here")
    args.dtype = args.dtype or ("bf16" if cuda else "fp32")
    args.processes = args.processes or (torch.cuda.device_count() if cuda else 2)
    if missing := [name for name in args.backbones if name not in MADE | SHAPES and not Path(name).is_dir()]:
        given.error(f"--backbones {missing[0]}: is no folder and none of {names}")
    if args.batch % args.processes:
        given.error(f"--batch {args.batch}: the {args.processes} processes cannot share it equally")
    return args


def _competitors(args: argparse.Namespace, work: Work) -> dict[str, Callable[[Path], Measured]]:
    """What is compared, by its name in the tables; each takes an empty folder."""
    how = {"dtype": args.dtype, "processes": args.processes, "device": args.device}
    ours, rival = partial(run_ours, work, **how), partial(run_rival, work, **how)
    sharded = {"ours, stage 3": partial(ours, stage=3)} if args.processes > 1 else {}
    return {
        "ours, auto": partial(ours, stage="auto"),
        **sharded,
        SAME_ORDER: partial(rival, grouped=False),
        "rival, grouped": partial(rival, grouped=True),
    }


def _take_turns(
    runs: Mapping[str, Callable[[Path], Measured]], title: str, folder: Path, repeats: int
) -> Runs:
    """All repeats of all runs, one of each at a time, so that a drift of the machine meets all alike."""
    found: Runs = {name: [] for name in runs}
    for turn in range(1, repeats + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            found[name].append(run(Path(tempfile.mkdtemp(dir=folder))))
            say(
                f"{title}; {name}; {turn} of {repeats}: "
                f"{found[name][-1].step_seconds:.3f} s a step, {time.perf_counter() - start:.0f} s in all"
            )
    return found


def require_same_work(runs: Runs) -> None:
    """Checks that all runs train as many entries, in as many steps, at the same learning rates."""
    (reference, first), *others = ((name, repeat) for name, repeats in runs.items() for repeat in repeats)
    for name, other in others:
        alike = (
            other.trainable == first.trainable
            and len(other.stamps) == len(other.losses) == len(first.losses)
            and all(abs(a - b) <= 1e-6 * a for a, b in zip(first.rates, other.rates, strict=True))
        )
        assert alike, f"{name} does other work than {reference}"


def compare(work: Work, runs: Runs) -> list[dict[str, Any]]:
    """One row per run of ours: against the faster rival, and against each."""
    speed = {
        name: work.batch / statistics.median(run.step_seconds for run in repeats)
        for name, repeats in runs.items()
    }
    rivals = {name: value for name, value in speed.items() if name.startswith("rival")}
    best = max(rivals, key=rivals.get)
    return [
        {
            "backbone": work.backbone.name,
            "workload": work.what,
            "tokens each": work.tokens,
            "run": name,
            "unit": "examples/s",
            "ours": speed[name],
            "rival": rivals[best],
            "ratio": speed[name] / rivals[best],
            **{f"over {rival}": speed[name] / value for rival, value in rivals.items()},
        }
        for name in speed
        if name not in rivals
    ]


def describe(work: Work, runs: Runs) -> list[dict[str, Any]]:
    """One row per run: speed with its spread, memory, loss; the loss of the first repeat, all being alike."""
    reference, *_ = runs.values()
    rows = []
    for name, repeats in runs.items():
        speeds = [work.batch / run.step_seconds for run in repeats]
        same_order = name.startswith("ours") or name == SAME_ORDER
        rows.append(
            {
                "backbone": work.backbone.name,
                "workload": work.what,
                "run": name,
                "examples/s": statistics.median(speeds),
                "slowest": min(speeds),
                "fastest": max(speeds),
                "tokens/s": statistics.median(speeds) * work.tokens,
                "weights held": repeats[0].held,
                "peak GiB": max(run.peak_device_bytes or run.peak_host_bytes for run in repeats) / GIB,
                "last loss": last_quarter(repeats[0].losses),
                "loss apart": difference(repeats[0].losses, reference[0].losses) if same_order else None,
            }
        )
    return rows


def last_quarter(losses: Sequence[float]) -> float:
    """Mean over the last quarter of the steps."""
    return statistics.mean(losses[-max(1, len(losses) // 4) :])


def difference(losses: Sequence[float], others: Sequence[float]) -> float:
    """Mean absolute difference of two curves, step by step."""
    return statistics.mean(abs(a - b) for a, b in zip(losses, others, strict=True))


def cost_of_a_step(args: argparse.Namespace, backbone: Path, folder: Path) -> list[dict[str, Any]]:
    """One row per number of tokens, set of adapted maps and rank; one process's share of workload (a)."""
    maps = list(TARGETS[AutoConfig.from_pretrained(backbone).model_type])
    variants: dict[str, dict[str, Any]] = {
        "base": {},
        "2 x tokens": {"factor": 2},
        "4 x tokens": {"factor": 4},
        **{f"maps: {' '.join(maps[:count])}": {"targets": maps[:count]} for count in (1, len(maps) // 2)},
        **{f"rank {rank}": {"rank": rank, "alpha": ALPHA / RANK * rank} for rank in (4, 16)},
    }
    if args.quick:
        variants = {name: variants[name] for name in ("base", "2 x tokens")}
    share, steps = args.batch // args.processes, min(args.steps, COST_STEPS)
    works, runs = {}, {}
    for name, adapter in variants.items():
        batch = adapter.pop("factor", 1) * share
        place = folder / "costs" / backbone.name / str(len(works))
        works[name] = prepare(
            WORKLOADS["a"], backbone, place, batch=batch, steps=steps, learning_rate=args.learning_rate
        )
        runs[name] = partial(
            run_ours, works[name], dtype=args.dtype, processes=1, stage="auto", device=args.device, **adapter
        )
    measured = _take_turns(runs, f"{backbone.name}; cost of a step", folder, args.repeats)
    seconds = {name: statistics.median(run.step_seconds for run in measured[name]) for name in runs}
    return [
        {
            "backbone": backbone.name,
            "what": name,
            "tokens a step": round(works[name].batch * works[name].tokens),
            "adapted maps": measured[name][0].sites,
            "rank": variants[name].get("rank", RANK),
            "trained entries": measured[name][0].trainable,
            "ms a step": seconds[name] * 1e3,
            "of the base": seconds[name] / seconds["base"],
        }
        for name in runs
    ]


if __name__ == "__main__":
    main()
