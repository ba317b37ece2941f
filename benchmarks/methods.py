"""Does adaptive rank sampling help? Every method with the same final rank, steps, data and search.

For every backbone and method the learning rate is the best on dev (a seed of its own, the first data set).
With it every data set is trained with every seed, and test is evaluated once, at the step that dev chose.
Differences are paired: same backbone, data, seed. Runs are kept in `--runs`; a second call repeats none.

`python -m benchmarks.methods --gue DIR --sets prom_core_tata mouse_0 --backbones DIR DIR --json FILE`;
without arguments the embedded data and backbone.
"""

import argparse
import csv
import hashlib
import json
import logging
import re
import statistics
import warnings
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml
from rich.console import Console
from scipy import stats

from benchmarks._common import parser, show
from lingo_ds.config.run_config import RunConfig
from lingo_ds.utils.errors import UserError
from lingo_ds.utils.files import atomic_write

RANK, TARGET, SCALE = 8, 4, 2.0
"""Initial and final average rank of what is pruned; what is not pruned has the final one. alpha / rank."""

PRUNED = {"adapter": {"rank": RANK, "alpha": SCALE * RANK}}
FIXED = {"rank": TARGET, "alpha": SCALE * TARGET}
SEARCH_SEED = 1000


def _pruned(**sampling: Any) -> dict[str, Any]:
    return PRUNED | {"rank_sampling": {"target_rank": TARGET, **sampling}}


METHODS: dict[str, dict[str, Any]] = {
    "head only": {"adapter": {"method": "none"}, "rank_sampling": {"mode": "off"}},
    "LoRA": {"adapter": {"method": "lora", **FIXED}, "rank_sampling": {"mode": "off"}},
    "SVD, no sampling": {"adapter": FIXED, "rank_sampling": {"mode": "off"}},
    "AdaLoRA": {
        **_pruned(mode="deterministic", pruned_value="zero"),
        "adapter": {**PRUNED["adapter"], "init": "adalora"},
    },
    "deterministic": _pruned(mode="deterministic"),
    "exact": _pruned(mode="exact", reintroduction="score"),
    "exact, uniform": _pruned(mode="exact", reintroduction="uniform"),
    "exact, AdaLoRA's start": {
        **_pruned(mode="exact", reintroduction="score"),
        "adapter": {**PRUNED["adapter"], "init": "adalora"},
    },
    "bernoulli": _pruned(mode="bernoulli"),
    "reference": _pruned(mode="reference"),
}
BASELINES = ("LoRA", "AdaLoRA")
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


def main() -> None:
    args = _arguments()
    args.runs.mkdir(parents=True, exist_ok=True)
    search = [
        _run(args, backbone, args.sets[0], method, rate, SEARCH_SEED)
        for backbone in args.backbones for method in args.methods for rate in args.rates
    ]  # fmt: skip
    if len(args.rates) > 1:
        found = run_all(search, args, "learning rates")
        search.sort(key=lambda run: found[run.key]["dev"])
    chosen = {(run.backbone, run.method): run.learning_rate for run in search}
    runs = [
        _run(args, backbone, data, method, chosen[Path(backbone).name, method], seed)
        for seed in range(args.seeds) for data in args.sets for backbone in args.backbones
        for method in args.methods
    ]  # fmt: skip
    done = run_all(runs, args, "runs")
    tables = {
        f"methods at the same final rank, test {name}": summarize(runs, done, chosen, metric)
        for metric, name in METRICS.items()
    }
    show(tables, json_path=args.json)


def _arguments() -> argparse.Namespace:
    given = parser(__doc__)
    add_arguments(given, backbone="builtin:tiny", runs="methods")
    given.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    given.add_argument("--rates", nargs="+", type=float, default=[2e-3, 4e-3, 8e-3])
    given.add_argument("--set", nargs="*", default=[], metavar="SECTION.FIELD=VALUE", help="for every method")
    args = parse(given)
    if args.quick:
        args.rates = args.rates[:1]
        args.methods = [method for method in args.methods if method in (*BASELINES, "exact")] or args.methods
    if len({Path(backbone).name for backbone in args.backbones}) < len(args.backbones):
        given.error("--backbones: two of one name cannot be told apart")
    if wrong := [setting for setting in args.set if not re.fullmatch(r"\w+\.\w+=.+", setting)]:
        given.error(f"--set {wrong[0]}: write section.field=value")
    return args


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
            "max_steps": args.steps, "global_batch_size": args.batch, "learning_rate": rate,
            "eval_steps": max(1, args.steps // 4),
        },
        "zero": {"stage": 0},
        **sections,
    }  # fmt: skip


def data_path(args: argparse.Namespace, data: str) -> str:
    """Of a data set of `--gue`, or what the package embeds."""
    return data if data.startswith("builtin:") else str(subset(args, data, args.gue / data))


def _run(args: argparse.Namespace, backbone: str, data: str, method: str, rate: float, seed: int) -> Run:
    sections = METHODS[method] | {"data": {"path": data_path(args, data)}}
    config = run_config(args, "methods", seed, backbone, rate, **sections)
    for setting in args.set:
        name, _, value = setting.partition("=")
        section, _, field = name.partition(".")
        if section != "rank_sampling" or METHODS[method]["rank_sampling"].get("mode") != "off":
            config[section] = {**config.get(section, {}), field: yaml.safe_load(value)}
    return Run(Path(backbone).name, data, method, rate, seed, config)


def subset(args: argparse.Namespace, data: str, source: Path) -> Path:
    """A folder with at most so many rows of each split of a data set, drawn without replacement by seed 0."""
    target = args.runs / "data" / f"{data}-{args.rows}-{args.eval_rows}"
    if not target.exists():
        atomic_write(target, lambda aside: _write_subset(args, source, aside))
    return target


def _write_subset(args: argparse.Namespace, source: Path, target: Path) -> None:
    target.mkdir()
    for split, rows in (("train", args.rows), ("dev", args.eval_rows), ("test", args.eval_rows)):
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


def summarize(
    runs: Iterable[Run],
    done: dict[str, dict[str, Any]],
    chosen: dict[tuple[str, str], float],
    metric: str,
) -> list[dict[str, Any]]:
    """One row per backbone (and all together) and method: mean, spread over seeds, paired differences."""
    runs = list(runs)
    backbones = list(dict.fromkeys(run.backbone for run in runs))
    rows = []
    for group in [*([name] for name in backbones), *([backbones] if len(backbones) > 1 else [])]:
        scores: dict[str, dict[tuple, float]] = {}
        for run in (run for run in runs if run.backbone in group):
            value = done[run.key]["test"][metric]
            scores.setdefault(run.method, {})[run.backbone, run.data, run.seed] = value
        for method, values in scores.items():
            mine = [done[run.key] for run in runs if run.method == method and run.backbone in group]
            row = {
                "backbone": " + ".join(group),
                "method": method,
                "lr": ", ".join(f"{chosen[name, method]:g}" for name in group),
                "entries": round(statistics.mean(result["saved"] for result in mine)),
                METRICS[metric]: statistics.mean(values.values()),
                "sd of seeds": seed_spread(values),
            }
            for baseline in (name for name in BASELINES if name in scores):
                row[f"- {baseline} [95 %]"] = paired(values, scores[baseline])
            rows.append(row)
    return rows


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


if __name__ == "__main__":
    main()
