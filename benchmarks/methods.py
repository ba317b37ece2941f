"""Does adaptive rank sampling help? Every method with the same final rank, steps, data and search.

For every backbone and method the learning rate is the best on dev (a seed of its own, the first data set).
With it every data set is trained with every seed, and test is evaluated once, at the step that dev chose.
Differences are paired: same backbone, data, seed. Runs are kept in `--runs`; a second call repeats none.

`python -m benchmarks.methods --gue DIR --sets prom_core_tata mouse_0 --backbones DIR DIR --json FILE`;
without arguments the embedded data and backbone.
"""

import argparse
import re
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from benchmarks._common import parser, show
from benchmarks._paired_runs import (
    METRICS,
    Run,
    add_arguments,
    data_path,
    paired,
    parse,
    run_all,
    run_config,
    seed_spread,
)

RANK, TARGET, SCALE = 8, 4, 2.0
"""Initial and final average rank of what is pruned; what is not pruned has the final one. alpha / rank."""

PRUNED = {"adapter": {"rank": RANK, "alpha": SCALE * TARGET}}
"""From LoRA's start alpha is LoRA's: a step moves a map by rate times alpha (docs/rank_sampling.md)."""

AWAKENED = {"rank": RANK, "alpha": SCALE * RANK, "init": "adalora"}
"""AdaLoRA's start, which is slower at first, with the papers' scale."""

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
        "adapter": AWAKENED,
    },
    "deterministic": _pruned(mode="deterministic"),
    "exact": _pruned(mode="exact", reintroduction="score"),
    "exact, uniform": _pruned(mode="exact", reintroduction="uniform"),
    "exact, AdaLoRA's start": {
        **_pruned(mode="exact", reintroduction="score"),
        "adapter": AWAKENED,
    },
    "bernoulli": _pruned(mode="bernoulli"),
    "reference": _pruned(mode="reference"),
}
BASELINES = ("LoRA", "AdaLoRA")


def main() -> None:
    args = _arguments()
    args.runs.mkdir(parents=True, exist_ok=True)
    search = [
        _run(args, backbone, args.sets[0], method, rate, SEARCH_SEED)
        for backbone in args.backbones
        for method in args.methods
        for rate in args.rates
    ]
    if len(args.rates) > 1:
        found = run_all(search, args, "learning rates")
        search.sort(key=lambda run: found[run.key]["dev"])
    chosen = {(run.backbone, run.method): run.learning_rate for run in search}
    runs = [
        _run(args, backbone, data, method, chosen[Path(backbone).name, method], seed)
        for seed in range(args.seeds)
        for data in args.sets
        for backbone in args.backbones
        for method in args.methods
    ]
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


def _run(args: argparse.Namespace, backbone: str, data: str, method: str, rate: float, seed: int) -> Run:
    sections = METHODS[method] | {"data": {"path": data_path(args, data)}}
    config = run_config(args, "methods", seed, backbone, rate, **sections)
    for setting in args.set:
        name, _, value = setting.partition("=")
        section, _, field = name.partition(".")
        if section != "rank_sampling" or METHODS[method]["rank_sampling"].get("mode") != "off":
            config[section] = {**config.get(section, {}), field: yaml.safe_load(value)}
    return Run(Path(backbone).name, data, method, rate, seed, config)


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


if __name__ == "__main__":
    main()
