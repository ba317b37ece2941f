"""What frozen maps in 8 bits (`zero.quantized_weights`) cost in accuracy: everything else alike.

Every backbone, data set and seed is trained with whole and with 8-bit weights, on one process under ZeRO-3:
the weights are the same on any number of processes. Test is evaluated once, at the step that dev chose;
differences are paired by seed. Then every adapter that was trained on whole weights answers test on both,
which leaves out the luck of two trainings. Runs are kept in `--runs`.

`python -m benchmarks.eight_bit --gue DIR --sets prom_core_tata --backbones DIR --json FILE`; without
arguments the embedded data and English model. What they save in time is in `benchmarks.plan_accuracy`.
"""

import argparse
import statistics
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as parquet

from benchmarks._common import parser, show
from benchmarks._paired_runs import (
    Run,
    add_arguments,
    be_a_worker,
    data_path,
    paired,
    parse,
    run_all,
    run_config,
    seed_spread,
)
from benchmarks.methods import METHODS
from lingo_ds.config.run_config import RunConfig

WHOLE, EIGHT = "whole", "8 bits"


def main() -> None:
    args = _arguments()
    args.runs.mkdir(parents=True, exist_ok=True)
    runs = [
        make_run(args, backbone, data, weights, seed)
        for seed in range(args.seeds)
        for data in args.sets
        for backbone in args.backbones
        for weights in (WHOLE, EIGHT)
    ]
    done = run_all(runs, args, "runs")
    whole = [run for run in runs if run.method == WHOLE]
    with ProcessPoolExecutor(args.jobs, mp_context=get_context("spawn")) as pool:
        asked = {run.key: pool.submit(both_ways, run.config, args.runs / run.key) for run in whole}
        answers = {key: answer.result() for key, answer in asked.items()}
    rows = []
    for backbone in dict.fromkeys(run.backbone for run in runs):
        for data in args.sets:
            cell = [run for run in runs if (run.backbone, run.data) == (backbone, data)]
            rows.append(summarize(cell, done, answers))
    show({"maps in 8 bits, test MCC": rows}, json_path=args.json)


def _arguments() -> argparse.Namespace:
    given = parser(__doc__)
    add_arguments(given, backbone="builtin:english", runs="eight_bit", steps=1200)
    given.add_argument("--rate", type=float, default=2e-3)
    return parse(given)


def make_run(args: argparse.Namespace, backbone: str, data: str, weights: str, seed: int) -> Run:
    """A run under ZeRO-3; `method` says how its maps are held."""
    sections = METHODS["exact"] | {
        "data": {"path": data_path(args, data)},
        "zero": {"stage": 3, "quantized_weights": weights == EIGHT},
    }
    config = run_config(args, "eight_bit", seed, backbone, args.rate, **sections)
    return Run(Path(backbone).name, data, weights, args.rate, seed, config)


def both_ways(config: dict[str, Any], folder: Path) -> tuple[list[float], list[np.ndarray]]:
    """In a worker: MCC and probabilities on test of a trained adapter, on whole and on 8-bit weights."""
    from lingo_ds.commands.evaluate import evaluate
    from lingo_ds.distributed import process_group

    be_a_worker()
    scores, probabilities = [], []
    for eight in (False, True):
        changed = RunConfig(
            **config | {"zero": config["zero"] | {"quantized_weights": eight}}, output_dir=folder
        )
        scores.append(evaluate(changed, process_group.detect())["mcc"])
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
