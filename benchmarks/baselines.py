r"""What needs no language model, on the rows of `real_models`: logistic regression and a small CNN.

Both read one-hot bases. L2, learning rate and epochs are chosen on dev alone: the grid is searched with seed
0, every seed is trained at its best point, and of a CNN's epochs the best one counts. Then test is answered
once. Every run is one JSON file in `--results`, beside those of `real_models`; a second call repeats none.

    python -m benchmarks.baselines --gue DIR --sets prom_core_notata tf_0 --rows 4000 --seeds 0 1 2

Without `--gue` the embedded data. One thread; each run, but for its search, is a process of its own.
"""

import argparse
import csv
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from functools import cache, partial
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks._common import circumstances, parser, show
from benchmarks._paired_runs import be_a_worker, subset
from benchmarks._results import Run, complete
from lingo_ds.data.builtin import BUILTIN_DATA
from lingo_ds.data.one_hot import one_hot
from lingo_ds.data.synthetic_promoters import write_promoters
from lingo_ds.data.task import make_task
from lingo_ds.evaluation.metrics import Metrics, classification_metrics
from lingo_ds.monitor.throughput import peak_host_bytes
from lingo_ds.training.baselines.cnn import BATCH, fit_cnn
from lingo_ds.training.baselines.fitting import Fitted, OneHotSplit, Point, Problem
from lingo_ds.training.baselines.linear import fit_linear

ONE_HOT = "one-hot"
"""Takes the place of a backbone's name."""

LOGISTIC, CNN = "logistic regression", "CNN"

EPOCHS = 40

GRIDS = {
    LOGISTIC: [Point(l2, None) for l2 in (1, 4, 16, 64, 256, 1024, 4096)],
    CNN: [Point(l2, rate) for l2, rate in product((0, 1e-3), (5e-4, 1e-3, 2e-3, 4e-3, 8e-3))],
}


def main() -> None:
    args = _arguments()
    torch.set_num_threads(1)
    results = complete(_runs(args), args.results, partial(train, args))
    rows = [
        {
            **{name: result[name] for name in ("data", "setting", "seed", "l2", "learning_rate")},
            **{f"{split} MCC": scores["mcc"] for split, scores in result["metrics"].items()},
            "seconds": result["seconds"],
        }
        for result in results
    ]
    show({"one-hot baselines": rows}, json_path=args.json)


def _arguments() -> argparse.Namespace:
    given = parser(__doc__)
    given.add_argument("--gue", type=Path, help="folder of the data sets")
    given.add_argument("--sets", nargs="+", default=[BUILTIN_DATA])
    given.add_argument("--rows", type=int, help="training rows, drawn once with seed 0; default: all")
    given.add_argument("--settings", nargs="+", default=list(GRIDS), choices=GRIDS)
    given.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="of the CNN")
    given.add_argument("--runs", type=Path, default=Path("runs/baselines"))
    given.add_argument("--results", type=Path, help="default: docs/results, without --gue within --runs")
    args = given.parse_args()
    if args.gue is None and args.sets != [BUILTIN_DATA]:
        given.error("--sets: --gue must say in which folder they lie")
    if args.quick:
        args.rows, args.seeds = 500, args.seeds[:1]
    if args.results is None:
        args.results = Path("docs/results") if args.gue and not args.quick else args.runs / "results"
    return args


def _runs(args: argparse.Namespace) -> Iterator[Run]:
    for data in args.sets:
        for setting in args.settings:
            drawn = setting == CNN
            epochs, batch = (EPOCHS, BATCH) if drawn else (None, None)
            for seed in args.seeds[: None if drawn else 1]:
                yield Run(ONE_HOT, data, args.rows, setting, epochs, batch, None, seed, False)


def train(args: argparse.Namespace, run: Run) -> dict[str, Any]:
    """One run at the best point of its grid; what its file says."""
    folder = _data_folder(args, run.data)
    grid = search(folder, run.setting)
    best = max(grid, key=lambda tried: tried["dev_mcc"])
    point = Point(best["l2"], best["rate"])
    # a process of its own: the peak of memory is that of this run
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=be_a_worker) as pool:
        measured = pool.submit(measure, folder, run.setting, point, run.seed).result()
    return run._asdict() | measured | {"grid": grid, **circumstances()}


def _data_folder(args: argparse.Namespace, data: str) -> Path:
    """The rows that `real_models` trains on; the embedded data are written below `--runs`."""
    if args.gue:
        source = args.gue / data
    else:
        write_promoters(source := args.runs / "promoters")
    return subset(args.runs, data, source, rows=args.rows)


@cache
def search(folder: Path, setting: str) -> list[dict[str, Any]]:
    """Every point of a setting's grid with its MCC on dev."""
    splits = read_splits(folder, "train", "dev")
    return [
        point._asdict() | {"dev_mcc": scores(fit(splits, setting, point, 0), splits["dev"])["mcc"]}
        for point in GRIDS[setting]
    ]


def measure(folder: Path, setting: str, point: Point, seed: int) -> dict[str, Any]:
    """Trains a setting at a point: its metrics on dev and test, its size, time and memory."""
    splits = read_splits(folder, "train", "dev", "test")
    fitted = fit(splits, setting, point, seed)
    return {
        "metrics": {split: scores(fitted, splits[split]) for split in ("dev", "test")},
        "learning_rate": point.rate,
        "l2": point.l2,
        "selected_step": fitted.selected_step,
        "steps": fitted.steps,
        "parameters": {"trainable": fitted.parameters, "backbone": 0, "fraction": None},
        "seconds": fitted.seconds,
        "examples_per_second": fitted.examples / fitted.seconds,
        "peak_host_bytes": peak_host_bytes(),
        "processes": 1,
        "dtype": "fp32",
    }


def read_splits(folder: Path, *names: str) -> dict[str, OneHotSplit]:
    """Splits of a folder in GUE's layout; what is no base, and what a sequence lacks at its end, is all 0."""
    rows = {}
    for name in names:
        with (folder / f"{name}.csv").open(newline="") as opened:
            rows[name] = list(csv.DictReader(opened))
    width = max(len(row["sequence"]) for split in rows.values() for row in split)
    return {
        name: OneHotSplit(
            one_hot([row["sequence"] for row in split], width=width),
            np.array([int(row["label"]) for row in split]),
        )
        for name, split in rows.items()
    }


def fit(splits: Mapping[str, OneHotSplit], setting: str, point: Point, seed: int) -> Fitted:
    """Trains a setting at a point, for the best MCC on dev."""
    classes = int(splits["train"].labels.max()) + 1
    bp = splits["train"].bases.shape[-1]
    task = make_task("baseline", classes=classes, template=None, domain=None, max_length=bp)
    problem = Problem(task, "mcc", splits["train"], splits["dev"])
    if setting == LOGISTIC:
        return fit_linear(problem, point)
    return fit_cnn(problem, point, seed, epochs=EPOCHS)


def scores(fitted: Fitted, split: OneHotSplit) -> Metrics:
    """All metrics of a split."""
    return classification_metrics(fitted.logits(split.bases), split.labels)


if __name__ == "__main__":
    main()
