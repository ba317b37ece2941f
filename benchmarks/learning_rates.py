"""Which learning rate fits which backbone, beside the one that `train.learning_rate: auto` takes.

Every backbone and method is trained with every rate, and the best evaluation on dev counts; test is left
alone. Runs are kept in `--runs`; a second call repeats none.

`python -m benchmarks.learning_rates --gue DIR --sets prom_core_tata --backbones DIR DIR --json FILE`;
without arguments the embedded data and backbone.
"""

import argparse
import statistics
from pathlib import Path
from typing import Any

from benchmarks._common import parser, show
from benchmarks._paired_runs import Run, add_arguments, data_path, parse, run_all, run_config
from lingo_ds.config.run_config import RunConfig
from lingo_ds.models.backbone.hub import backbone_folder, make_builtin_backbone
from lingo_ds.models.backbone.spec import read_spec
from lingo_ds.planning.automatic import choose_learning_rate
from lingo_ds.utils.files import default_cache

METHODS: dict[str, dict[str, Any]] = {
    "exact": {},
    "LoRA": {"adapter": {"method": "lora"}, "rank_sampling": {"mode": "off"}},
    "head only": {"adapter": {"method": "none"}, "rank_sampling": {"mode": "off"}},
}


def main() -> None:
    args = _arguments()
    args.runs.mkdir(parents=True, exist_ok=True)
    runs = [
        _run(args, backbone, data, method, rate, seed)
        for backbone in args.backbones
        for method in args.methods
        for rate in args.rates
        for data in args.sets
        for seed in range(args.seeds)
    ]
    done = run_all(runs, args, "learning rates")
    show(
        {"learning rates, dev MCC": [_row(args, runs, done, name) for name in _cells(runs)]},
        json_path=args.json,
    )


def _arguments() -> argparse.Namespace:
    given = parser(__doc__)
    add_arguments(given, backbone="builtin:english", runs="learning_rates", steps=400)
    given.set_defaults(batch=32, seeds=1)
    given.add_argument("--methods", nargs="+", default=["exact"], choices=METHODS)
    given.add_argument("--rates", nargs="+", type=float, default=[5e-4, 1e-3, 2e-3, 4e-3, 8e-3])
    given.add_argument("--dtype", default="fp32", choices=["fp32", "bf16"])
    args = parse(given)
    if args.quick:
        args.rates = args.rates[1:3]
    return args


def _run(args: argparse.Namespace, backbone: str, data: str, method: str, rate: float, seed: int) -> Run:
    sections = METHODS[method] | {"data": {"path": data_path(args, data)}}
    config = run_config(args, "learning_rates", seed, backbone, rate, **sections)
    config["backbone"]["dtype"] = args.dtype
    return Run(Path(backbone).name, data, method, rate, seed, config)


def _cells(runs: list[Run]) -> list[tuple[str, str]]:
    return list(dict.fromkeys((run.backbone, run.method) for run in runs))


def _row(
    args: argparse.Namespace, runs: list[Run], done: dict[str, dict[str, Any]], cell: tuple[str, str]
) -> dict[str, Any]:
    """Mean dev MCC of a backbone and method at every rate."""
    backbone, method = cell
    scores = {
        f"{rate:g}": statistics.mean(
            done[run.key]["dev"]
            for run in runs
            if (run.backbone, run.method, run.learning_rate) == (*cell, rate)
        )
        for rate in args.rates
    }
    return {"backbone": backbone, "method": method, "auto": _automatic(args, cell), **scores}


def _automatic(args: argparse.Namespace, cell: tuple[str, str]) -> float:
    """The learning rate that `auto` takes for a backbone and method."""
    backbone = next(path for path in args.backbones if Path(path).name == cell[0])
    make_builtin_backbone(backbone, default_cache())
    spec = read_spec(backbone_folder(backbone, revision=None, cache=default_cache()), cache=default_cache())
    sections = {"name": "auto", "backbone": {"path": backbone}, "data": {"path": "builtin:promoters"}}
    config = RunConfig.model_validate(sections | METHODS[cell[1]])
    return choose_learning_rate(config, hidden_size=spec.hidden_size).value


if __name__ == "__main__":
    main()
