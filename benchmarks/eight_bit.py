"""What frozen maps in 8 bits (`zero.quantized_weights`) cost in accuracy: everything else alike.

Every backbone, data set and seed is trained with whole and with 8-bit weights, on one process under ZeRO-3:
the weights are the same on any number of processes. Test is evaluated once, at the step that dev chose;
differences are paired by seed. Then every adapter that was trained on whole weights answers test on both,
which leaves out the luck of two trainings. Runs are kept in `--runs`.

`python -m benchmarks.eight_bit --gue DIR --sets prom_core_tata --backbones DIR --json FILE`; without
arguments the embedded data and English model. What they save in time is in `benchmarks.plan_accuracy`.
"""

import argparse
import logging
import statistics
import warnings
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as parquet

from benchmarks._common import parser, show
from benchmarks.methods import Run, paired, run_all, seed_spread, subset
from lingo_ds.config import RunConfig

WHOLE, EIGHT = "whole", "8 bits"


def main() -> None:
    args = _arguments()
    args.runs.mkdir(parents=True, exist_ok=True)
    runs = [
        make_run(args, backbone, data, weights, seed)
        for seed in range(args.seeds) for data in args.sets for backbone in args.backbones
        for weights in (WHOLE, EIGHT)
    ]  # fmt: skip
    done = run_all(runs, args, "runs")
    whole = [run for run in runs if run.method == WHOLE]
    with ProcessPoolExecutor(args.jobs, mp_context=get_context("spawn")) as pool:
        folders = [args.runs / run.key for run in whole]
        answers = dict(
            zip(
                (run.key for run in whole),
                pool.map(both_ways, [run.config for run in whole], folders),
                strict=True,
            )
        )
    rows = []
    for backbone in dict.fromkeys(run.backbone for run in runs):
        for data in args.sets:
            cell = [run for run in runs if (run.backbone, run.data) == (backbone, data)]
            rows.append(summarize(cell, done, answers))
    show({"maps in 8 bits, test MCC": rows}, json_path=args.json)


def _arguments() -> argparse.Namespace:
    given = parser(__doc__)
    given.add_argument("--gue", type=Path, help="folder of the data sets' folders")
    given.add_argument("--sets", nargs="+", default=["builtin:promoters"])
    given.add_argument("--backbones", nargs="+", default=["builtin:english"])
    given.add_argument("--rate", type=float, default=2e-3)
    given.add_argument("--seeds", type=int, default=3)
    given.add_argument("--rows", type=int, help="training rows, drawn once with seed 0; default: all")
    given.add_argument("--eval-rows", type=int, help="rows of dev and of test, likewise")
    given.add_argument("--steps", type=int, default=1200)
    given.add_argument("--batch", type=int, default=8)
    given.add_argument("--runs", type=Path, default=Path("runs/eight_bit"))
    given.add_argument("--jobs", type=int, default=2, help="runs at a time, one thread each")
    args = given.parse_args()
    if args.quick:
        args.steps, args.seeds = min(args.steps, 60), 1
    return args


def make_run(args: argparse.Namespace, backbone: str, data: str, weights: str, seed: int) -> Run:
    """A run under ZeRO-3; `method` says how its maps are held."""
    path = data if args.gue is None else str(subset(args, data, args.gue / data))
    config: dict[str, Any] = {
        "name": "eight_bit",
        "seed": seed,
        "backbone": {"path": backbone, "dtype": "fp32"},
        "data": {"path": path},
        "adapter": {"rank": 8, "alpha": 16},
        "rank_sampling": {"mode": "exact", "target_rank": 4},
        "train": {
            "max_steps": args.steps, "global_batch_size": args.batch, "learning_rate": args.rate,
            "eval_steps": max(1, args.steps // 4),
        },
        "zero": {"stage": 3, "quantized_weights": weights == EIGHT},
    }  # fmt: skip
    return Run(Path(backbone).name, data, weights, args.rate, seed, config)


def both_ways(config: dict[str, Any], folder: Path) -> tuple[list[float], list[np.ndarray]]:
    """In a worker: MCC and probabilities on test of a trained adapter, on whole and on 8-bit weights."""
    import torch

    from lingo_ds import distributed, run

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.getLogger("lingo_ds").setLevel(logging.ERROR)
    run.logs.results.quiet = run.logs.console.quiet = True
    scores, probabilities = [], []
    for eight in (False, True):
        changed = RunConfig(
            **config | {"zero": config["zero"] | {"quantized_weights": eight}}, output_dir=folder
        )
        scores.append(run.evaluate(changed, distributed.detect())["mcc"])
        table = parquet.read_table(folder / "predictions" / "test.parquet")
        columns = [name for name in table.column_names if name.startswith("probability")]
        probabilities.append(np.stack([table[name].to_numpy() for name in columns], axis=1))
    return scores, probabilities


def summarize(
    cell: Sequence[Run],
    done: dict[str, dict[str, Any]],
    answers: dict[str, tuple[list[float], list[np.ndarray]]],
) -> dict[str, Any]:
    """A row: one backbone on one data set."""
    test = {
        weights: {("", run.seed): done[run.key]["test"]["mcc"] for run in cell if run.method == weights}
        for weights in (WHOLE, EIGHT)
    }
    mine = [answers[run.key] for run in cell if run.method == WHOLE]
    moved = [np.abs(eight - whole).mean() for _, (whole, eight) in mine]
    flipped = [(eight.argmax(1) != whole.argmax(1)).mean() for _, (whole, eight) in mine]
    return {
        "backbone": cell[0].backbone,
        "data": cell[0].data,
        "seeds": len(mine),
        WHOLE: statistics.mean(test[WHOLE].values()),
        EIGHT: statistics.mean(test[EIGHT].values()),
        "sd of seeds": seed_spread(test[WHOLE]),
        f"{EIGHT} - {WHOLE} [95 %]": paired(test[EIGHT], test[WHOLE]),
        "same adapter: MCC": statistics.mean(scores[1] - scores[0] for scores, _ in mine),
        "answers changed": statistics.mean(map(float, flipped)),
        "probability moved": statistics.mean(map(float, moved)),
    }


if __name__ == "__main__":
    main()
