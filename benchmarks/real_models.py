r"""What adapters learn on real language models: one training run after the other, each kept as a JSON file.

Every run is one setting of one model on one data set. Its result, with its whole config, goes to `--results`
(docs/results holds those that docs/results.md shows); a second call repeats none, and a run that was stopped
goes on from its checkpoint in `--runs`. With several `--rates` the runs are a search: they keep dev alone.

    python -m benchmarks.real_models --models DIR --gue DIR --backbones gemma_3_270m --sets prom_core_tata \
        --settings exact LoRA --rates 5e-4 --epochs 3

`--models` holds one Hugging Face folder per model, with the names of `MODELS`.
"""

import argparse
import json
from collections.abc import Iterator
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import AutoConfig, AutoModel, AutoTokenizer

from benchmarks._common import circumstances, parser
from benchmarks._paired_runs import subset
from benchmarks._results import Run, complete
from benchmarks._training_runs import launch
from lingo_ds.training.report import read_report

MODELS = {
    "qwen_2.5_0.5b": "Qwen2.5-Coder-0.5B-Instruct",
    "gemma_3_270m": "Gemma 3 270M",
    "minilm_l6": "all-MiniLM-L6-v2",
    "stories260k": "stories260k",
}
"""Names of the models in docs/results.md, by the names of their folders."""

SETTINGS: dict[str, dict[str, Any]] = {
    "exact": {},
    "LoRA": {"adapter": {"method": "lora", "rank": 4}, "rank_sampling": {"mode": "off"}},
    "head alone": {"adapter": {"method": "none"}, "rank_sampling": {"mode": "off"}},
    "nucleotides": {"data": {"tokens": "nucleotides"}},
    "nucleotides, LoRA": {
        "data": {"tokens": "nucleotides"},
        "adapter": {"method": "lora", "rank": 4},
        "rank_sampling": {"mode": "off"},
    },
    "no prefix": {"data": {"prefix": "none"}},
    "rich prefix": {"data": {"prefix": "rich"}},
    "random weights": {},
    "nucleotides, random weights": {"data": {"tokens": "nucleotides"}},
    "nucleotides, mean": {"data": {"tokens": "nucleotides", "prefix": None}, "head": {"pooling": "mean"}},
}
"""What each setting changes of `exact`: ranks 8 -> 4 by exact sampling, text, the published prefix."""

RANDOM = "random weights"
TIMEOUT = 12 * 3600


def main() -> None:
    args = _arguments()
    complete(_runs(args), args.results, partial(train, args))


def _arguments() -> argparse.Namespace:
    given = parser(__doc__)
    given.add_argument("--models", type=Path, required=True, help="folder of the models")
    given.add_argument("--gue", type=Path, required=True, help="folder of the data sets")
    given.add_argument("--backbones", nargs="+", required=True, choices=MODELS)
    given.add_argument("--sets", nargs="+", default=["prom_core_tata"])
    given.add_argument("--rows", type=int, help="training rows, drawn once with seed 0; default: all")
    given.add_argument("--settings", nargs="+", default=["exact"], choices=SETTINGS)
    given.add_argument("--rates", nargs="+", type=float, help="learning rates; default: auto")
    given.add_argument("--epochs", type=float, default=3)
    given.add_argument("--batch", type=int, default=32, help="examples per step")
    given.add_argument("--seeds", nargs="+", type=int, default=[0])
    given.add_argument("--processes", type=int, default=1)
    given.add_argument("--runs", type=Path, default=Path("runs/real_models"))
    given.add_argument("--results", type=Path, default=Path("docs/results"))
    args = given.parse_args()
    if args.quick:
        args.rows, args.epochs, args.results = 64, 1, args.runs / "results"
    return args


def _runs(args: argparse.Namespace) -> Iterator[Run]:
    rates = args.rates or [None]
    for seed in args.seeds:
        for data in args.sets:
            for backbone in args.backbones:
                for setting in args.settings:
                    for rate in rates:
                        search = len(rates) > 1
                        yield Run(
                            *(backbone, data, args.rows, setting),
                            *(args.epochs, args.batch, rate, seed, search),
                        )


def run_config(args: argparse.Namespace, run: Run) -> dict[str, Any]:
    """The settings of a run, each section that its setting changes merged into those of `exact`."""
    folder = args.models / run.backbone
    if run.setting.endswith(RANDOM):
        folder = _random_weights(folder, args.models / f"{run.backbone}-random")
    data = subset(args.runs, run.data, args.gue / run.data, rows=run.rows)
    values: dict[str, Any] = {
        "name": run.name,
        "seed": run.seed,
        "output_dir": str((args.runs / run.name / "run").resolve()),
        "backbone": {"path": str(folder.resolve())},
        "data": {"task": run.data, "path": str(data.resolve()), "prefix": "published"},
        "adapter": {"rank": 8},
        "rank_sampling": {"mode": "exact", "target_rank": 4},
        "train": {
            "global_batch_size": run.batch,
            "num_epochs": run.epochs,
            "learning_rate": run.rate or "auto",
        },
        "checkpoint": {"every": 25},
    }
    for section, changed in deepcopy(SETTINGS[run.setting]).items():
        keep = {} if changed.get("mode") == "off" else values.get(section, {})
        values[section] = keep | changed
    return values


def train(args: argparse.Namespace, run: Run) -> dict[str, Any]:
    """Trains a run through the launcher, as a user would; what its report says."""
    folder = args.runs / run.name
    folder.mkdir(parents=True, exist_ok=True)
    values = run_config(args, run)
    (folder / "config.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    done = read_report(folder / "run" / "report.json")
    if done is None or done.outcome == "interrupted":
        job = ["launchers/train.py", "--config", str(folder.resolve() / "config.yaml")]
        launch(job, folder.resolve(), args.processes, timeout=TIMEOUT)
    report = json.loads((folder / "run" / "report.json").read_text())
    plan = json.loads((folder / "run" / "plan.json").read_text())
    metrics = {split: report["metrics"][split] for split in ("dev", "test")}
    if run.search:
        del metrics["test"]
    return run._asdict() | {
        "metrics": metrics,
        "learning_rate": report["learning_rate"],
        "alpha": report["adapter"]["alpha"],
        "selected_step": report["selected_step"],
        "steps": report["steps"],
        "parameters": report["parameters"],
        "seconds": report["throughput"]["seconds"],
        "examples_per_second": report["throughput"]["examples_per_second"],
        "peak_host_bytes": max(report["memory"]["peak_host_bytes"]),
        "processes": args.processes,
        "dtype": "fp32" if plan["facts"]["compute_bytes"] == 4 else "bf16",
        **circumstances(),
    }


def _random_weights(source: Path, target: Path) -> Path:
    """A model of the same shape and tokenizer, with the weights that transformers draws for a new one."""
    if not target.exists():
        torch.manual_seed(0)
        model = AutoModel.from_config(AutoConfig.from_pretrained(source))
        model.to(torch.bfloat16).save_pretrained(target)
        AutoTokenizer.from_pretrained(source).save_pretrained(target)
    return target


if __name__ == "__main__":
    main()
