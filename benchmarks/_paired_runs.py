"""Many small training runs that differ in one thing: their arguments, their results, their statistics.

Every run is known by its whole config and kept in `--runs`, so that a second call repeats none. Differences
are paired: same backbone, data and seed.
"""

import argparse
import csv
import hashlib
import json
import logging
import statistics
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from scipy import stats

from lingo_ds.config.run_config import RunConfig
from lingo_ds.utils.errors import UserError
from lingo_ds.utils.files import atomic_write

METRICS = {"mcc": "MCC", "auroc": "AUROC"}
CHANCE = {"mcc": 0.0, "auroc": 0.5}


class Run(NamedTuple):
    """One training run: what it is called in the table, and its whole config."""

    backbone: str
    data: str
    method: str
    learning_rate: float
    seed: int
    config: dict[str, Any]

    @property
    def key(self) -> str:
        """Names the run by its whole config, defaults included, wherever its files lie."""
        config = RunConfig(**self.config).model_dump(mode="json")
        for section in ("backbone", "data"):
            config[section]["path"] = Path(config[section]["path"]).name
        return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:16]


def add_arguments(given: argparse.ArgumentParser, *, backbone: str, runs: str, steps: int = 800) -> None:
    """What every benchmark of trained runs takes, with its own defaults."""
    given.add_argument("--gue", type=Path, help="folder of the data sets, flat or as GUE has them")
    given.add_argument("--sets", nargs="+", default=["builtin:promoters"], help="the first one is searched")
    given.add_argument("--backbones", nargs="+", default=[backbone])
    given.add_argument("--seeds", type=int, default=3)
    given.add_argument("--rows", type=int, help="training rows, drawn once with seed 0; default: all")
    given.add_argument("--eval-rows", type=int, help="rows of dev and of test, likewise")
    given.add_argument("--steps", type=int, default=steps)
    given.add_argument("--batch", type=int, default=8)
    given.add_argument("--runs", type=Path, default=Path("runs") / runs)
    given.add_argument("--jobs", type=int, default=2, help="runs at a time, one thread each")


def parse(given: argparse.ArgumentParser) -> argparse.Namespace:
    """The arguments; `--quick` is one seed of 80 steps at most."""
    args = given.parse_args()
    if args.quick:
        args.steps, args.seeds = min(args.steps, 80), 1
    if args.gue is None and not all(name.startswith("builtin:") for name in args.sets):
        given.error("--sets: --gue must say in which folder they lie")
    return args


def run_config(
    args: argparse.Namespace, name: str, seed: int, backbone: str, rate: float, **sections: Any
) -> dict[str, Any]:
    """A run's config, in fp32 on a whole copy of the backbone unless `sections` say otherwise."""
    return {
        "name": name,
        "seed": seed,
        "backbone": {"path": backbone, "dtype": "fp32"},
        "train": {
            "max_steps": args.steps,
            "global_batch_size": args.batch,
            "learning_rate": rate,
            "eval_steps": max(1, args.steps // 4),
        },
        "zero": {"stage": 0},
        **sections,
    }


def data_path(args: argparse.Namespace, data: str) -> str:
    """Of a data set of `--gue`, or what the package embeds."""
    if data.startswith("builtin:"):
        return data
    return str(subset(args.runs, data, args.gue / data, rows=args.rows, eval_rows=args.eval_rows))


def subset(
    runs: Path, data: str, source: Path, *, rows: int | None = None, eval_rows: int | None = None
) -> Path:
    """A folder below `runs` with at most so many rows of each split of a data set, drawn by seed 0."""
    target = runs / "data" / f"{data}-{rows}-{eval_rows}"
    if not target.exists():
        most = {"train": rows, "dev": eval_rows, "test": eval_rows}
        atomic_write(target, lambda aside: _write_subset(source, aside, most))
    return target


def _write_subset(source: Path, target: Path, most: Mapping[str, int | None]) -> None:
    target.mkdir()
    for split, rows in most.items():
        with (source / f"{split}.csv").open(newline="") as opened:
            header, *lines = csv.reader(opened)
        order = np.random.default_rng(0).permutation(len(lines))[:rows]
        with (target / f"{split}.csv").open("w", newline="") as opened:
            csv.writer(opened).writerows([header, *(lines[i] for i in sorted(order))])


def run_all(runs: Sequence[Run], args: argparse.Namespace, title: str) -> dict[str, dict[str, Any]]:
    """Results by key, from disk or from a run made now; several processes, each one run at a time."""
    console = Console(stderr=True)
    done = {
        run.key: json.loads(_result(args, run).read_text()) for run in runs if _result(args, run).exists()
    }
    todo = {run.key: run for run in runs if run.key not in done}
    console.print(f"{title}: {len(todo)} to do, {len(done)} known")
    with ProcessPoolExecutor(args.jobs, mp_context=get_context("spawn")) as pool:
        futures = {pool.submit(_train, run.config, args.runs / run.key): run for run in todo.values()}
        for number, future in enumerate(as_completed(futures), 1):
            run, result = futures[future], future.result()
            result |= {name: getattr(run, name) for name in Run._fields}
            _result(args, run).write_text(json.dumps(result, indent=2))
            done[run.key] = result
            console.print(
                f"{number}/{len(todo)} {run.backbone} {run.data} {run.method}, lr {run.learning_rate:g}, "
                f"seed {run.seed}: dev MCC {result['dev']:.3f}, {result['seconds']:.0f} s",
                highlight=False,
                soft_wrap=True,
            )
    return done


def _result(args: argparse.Namespace, run: Run) -> Path:
    return args.runs / f"{run.key}.json"


def be_a_worker() -> None:
    """One thread, and nothing said."""
    import torch

    from lingo_ds.utils import logging as logs

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.getLogger("lingo_ds").setLevel(logging.ERROR)
    logs.results.quiet = logs.console.quiet = True


def _train(config: dict[str, Any], folder: Path) -> dict[str, Any]:
    """In a worker: one run of the whole path, and the numbers that count."""
    from lingo_ds.commands.train import train
    from lingo_ds.distributed import process_group

    be_a_worker()
    try:
        report = train(RunConfig(**config, output_dir=folder), process_group.detect())
    except UserError as error:
        if any(mistake.where != "train.learning_rate" for mistake in error.mistakes):
            raise RuntimeError(str(error)) from None  # a UserError does not survive the way between processes
        # a rate at which training diverges is worth as much as a coin
        return {"dev": 0.0, "test": CHANCE, "saved": 0, "kept": 0, "seconds": 0.0, "error": str(error)}
    return {
        "dev": report["metrics"]["dev"]["mcc"],
        "test": {metric: report["metrics"]["test"][metric] for metric in METRICS},
        "saved": report["parameters"]["saved"],
        "kept": report["rank_sampling"]["kept_triplets"],
        "seconds": report["throughput"]["seconds"],
    }


def seed_spread(values: dict[tuple, float]) -> float | None:
    """Standard deviation over the seeds of one cell (backbone, data), pooled over the cells."""
    cells: dict[tuple, list[float]] = {}
    for (*cell, _seed), value in values.items():
        cells.setdefault(tuple(cell), []).append(value)
    several = [statistics.variance(cell) for cell in cells.values() if len(cell) > 1]
    return statistics.mean(several) ** 0.5 if several else None


def paired(ours: dict[tuple, float], theirs: dict[tuple, float]) -> str:
    """Mean difference over pairs of equal backbone, data and seed, with Student's 95 % interval."""
    differences = np.array([ours[cell] - theirs[cell] for cell in ours])
    if len(differences) < 2 or not differences.any():
        return f"{differences.mean():+.3f}"
    half = stats.t.ppf(0.975, len(differences) - 1) * stats.sem(differences)
    return f"{differences.mean():+.3f} [{differences.mean() - half:+.3f}, {differences.mean() + half:+.3f}]"
