r"""What needs no language model, on the rows of `real_models`: logistic regression and a small CNN.

Both read one-hot bases. L2, learning rate and epochs are chosen on dev alone: the grid is searched with seed
0, every seed is trained at its best point, and of a CNN's epochs the best one counts. Then test is answered
once. Every run is one JSON file in `--results`, beside those of `real_models`; a second call repeats none.

    python -m benchmarks.baselines --gue DIR --sets prom_core_notata tf_0 --rows 4000 --seeds 0 1 2

Without `--gue` the embedded data. One thread; each run, but for its search, is a process of its own.
"""

import argparse
import csv
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from copy import deepcopy
from functools import cache, partial
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import torch
from sklearn.linear_model import LogisticRegression
from torch import nn

from benchmarks._common import circumstances, parser, show
from benchmarks._paired_runs import be_a_worker, subset
from benchmarks._results import Run, complete
from lingo_ds.data.builtin import BUILTIN_DATA
from lingo_ds.data.synthetic_promoters import write_promoters
from lingo_ds.evaluation.metrics import Metrics, classification_metrics
from lingo_ds.monitor.throughput import peak_host_bytes

ONE_HOT = "one-hot"
"""Takes the place of a backbone's name."""

LOGISTIC, CNN = "logistic regression", "CNN"

EPOCHS, BATCH = 40, 64
CHANNELS, POOL = 64, 3
ITERATIONS = 1000
"""Of L-BFGS at most."""


class Point(NamedTuple):
    """One point of a grid: the weight of L2, and Adam's learning rate, which logistic regression has not."""

    l2: float
    rate: float | None


GRIDS = {
    LOGISTIC: [Point(l2, None) for l2 in (1, 4, 16, 64, 256, 1024, 4096)],
    CNN: [Point(l2, rate) for l2, rate in product((0, 1e-3), (5e-4, 1e-3, 2e-3, 4e-3, 8e-3))],
}


class Split(NamedTuple):
    """One-hot bases (n, 4, bp) and labels (n,)."""

    bases: torch.Tensor
    labels: torch.Tensor


class Fitted(NamedTuple):
    """A trained model, and what its training took.

    Attributes:
        logits: of one-hot bases (n, 4, bp): (n, classes).
        parameters: their number.
        steps, selected_step: of the optimizer: all, and the one whose parameters are used.
        examples: that training read, repetitions included.
        seconds: of training, without the evaluations on dev.
    """

    logits: Callable[[torch.Tensor], torch.Tensor]
    parameters: int
    steps: int
    selected_step: int
    examples: int
    seconds: float


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
        point._asdict() | {"dev_mcc": scores(FIT[setting](splits, point, 0), splits["dev"])["mcc"]}
        for point in GRIDS[setting]
    ]


def measure(folder: Path, setting: str, point: Point, seed: int) -> dict[str, Any]:
    """Trains a setting at a point: its metrics on dev and test, its size, time and memory."""
    splits = read_splits(folder, "train", "dev", "test")
    fitted = FIT[setting](splits, point, seed)
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


def read_splits(folder: Path, *names: str) -> dict[str, Split]:
    """Splits of a folder in GUE's layout; what is no base, and what a sequence lacks at its end, is all 0."""
    rows = {}
    for name in names:
        with (folder / f"{name}.csv").open(newline="") as opened:
            rows[name] = list(csv.DictReader(opened))
    width = max(len(row["sequence"]) for split in rows.values() for row in split)
    return {name: _one_hot(split, width) for name, split in rows.items()}


def _one_hot(rows: list[dict[str, str]], width: int) -> Split:
    letters = "".join(row["sequence"].upper().ljust(width) for row in rows).encode()
    letters = torch.frombuffer(bytearray(letters), dtype=torch.uint8).view(len(rows), 1, width)
    bases = letters == torch.tensor(list(b"ACGT")).view(1, 4, 1)
    return Split(bases.float(), torch.tensor([int(row["label"]) for row in rows]))


def scores(fitted: Fitted, split: Split) -> Metrics:
    """All metrics of a split."""
    return classification_metrics(fitted.logits(split.bases).numpy(), split.labels.numpy())


def fit_logistic(splits: dict[str, Split], point: Point, seed: int) -> Fitted:
    """Multinomial logistic regression by L-BFGS, which draws nothing: `seed` is not read."""
    train = splits["train"]
    start = time.perf_counter()
    model = LogisticRegression(C=1 / point.l2, max_iter=ITERATIONS)
    model.fit(train.bases.flatten(1).numpy(), train.labels.numpy())
    seconds, steps = time.perf_counter() - start, int(model.n_iter_.max())
    return Fitted(
        logits=lambda bases: torch.from_numpy(model.predict_log_proba(bases.flatten(1).numpy())),
        parameters=model.coef_.size + model.intercept_.size,
        steps=steps,
        selected_step=steps,
        examples=steps * len(train.labels),
        seconds=seconds,
    )


def fit_cnn(splits: dict[str, Split], point: Point, seed: int) -> Fitted:
    """Adam at one rate for `EPOCHS` epochs, of which the one with the best MCC on dev counts."""
    torch.manual_seed(seed)
    train, dev = splits["train"], splits["dev"]
    network = make_cnn(train.bases.shape[-1], classes=int(train.labels.max()) + 1)
    optimizer = torch.optim.Adam(network.parameters(), lr=point.rate, weight_decay=point.l2)
    steps, best_epoch, best_mcc, best_weights, seconds = 0, 0, -1.0, {}, 0.0
    for epoch in range(1, EPOCHS + 1):
        start = time.perf_counter()
        steps += _train_epoch(network, optimizer, train)
        seconds += time.perf_counter() - start
        logits = _logits(network, dev.bases).numpy()
        mcc = classification_metrics(logits, dev.labels.numpy())["mcc"]
        if mcc > best_mcc:
            best_epoch, best_mcc, best_weights = epoch, mcc, deepcopy(network.state_dict())
    network.load_state_dict(best_weights)
    return Fitted(
        logits=partial(_logits, network),
        parameters=sum(weight.numel() for weight in network.parameters()),
        steps=steps,
        selected_step=steps // EPOCHS * best_epoch,
        examples=EPOCHS * len(train.labels),
        seconds=seconds,
    )


def make_cnn(bp: int, *, classes: int) -> nn.Module:
    """Two convolutions with pooling and a dense layer, as DeepSEA (doi 10.1038/nmeth.3547), for short DNA."""
    return nn.Sequential(
        *(nn.Conv1d(4, CHANNELS, 11, padding=5), nn.ReLU(), nn.MaxPool1d(POOL), nn.Dropout(0.2)),
        *(nn.Conv1d(CHANNELS, CHANNELS, 5, padding=2), nn.ReLU(), nn.MaxPool1d(POOL), nn.Dropout(0.2)),
        *(nn.Flatten(), nn.Linear(CHANNELS * (bp // POOL // POOL), 64), nn.ReLU(), nn.Dropout(0.5)),
        nn.Linear(64, classes),
    )


def _train_epoch(network: nn.Module, optimizer: torch.optim.Optimizer, train: Split) -> int:
    """One pass over the rows, in an order drawn anew; the number of steps."""
    network.train()
    batches = torch.randperm(len(train.labels)).split(BATCH)
    for rows in batches:
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(train.bases[rows]), train.labels[rows]).backward()
        optimizer.step()
    return len(batches)


@torch.no_grad()
def _logits(network: nn.Module, bases: torch.Tensor) -> torch.Tensor:
    return network.eval()(bases)


FIT = {LOGISTIC: fit_logistic, CNN: fit_cnn}


if __name__ == "__main__":
    main()
