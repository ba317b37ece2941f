"""What the text around the DNA is worth: the templates of the registry on known tasks, everything else alike.

Every backbone, task and seed is trained with every template at one learning rate; test is evaluated once, at
the step that dev chose. Differences are paired: same backbone, task, seed. Runs are kept in `--runs`.

`python -m benchmarks.prompts --gue DIR --sets prom_core_tata --backbones DIR --json FILE`; without arguments
the embedded data, as prom_core_tata, and the embedded backbone.
"""

import argparse
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks._common import parser, show
from benchmarks._paired_runs import (
    Run,
    add_arguments,
    paired,
    parse,
    run_all,
    run_config,
    seed_spread,
    subset,
)
from benchmarks.methods import METHODS
from lingo_ds.config.known_tasks import lookup, registry, with_registry

BASELINE = "none"
EMBEDDED, STANDS_FOR = "builtin:promoters", "prom_core_tata"
"""The embedded data are core promoters with TATA box: texts of that task describe them."""


def main() -> None:
    args = _arguments()
    args.runs.mkdir(parents=True, exist_ok=True)
    runs = [
        make_run(args, backbone, data, template, seed)
        for seed in range(args.seeds)
        for data in args.sets
        for backbone in args.backbones
        for template in args.templates
    ]
    show({"templates, MCC": summarize(runs, run_all(runs, args, "runs"))}, json_path=args.json)


def _arguments() -> argparse.Namespace:
    given = parser(__doc__)
    add_arguments(given, backbone="builtin:tiny", runs="prompts")
    given.add_argument(
        "--templates", nargs="+", default=list(registry().templates), choices=registry().templates
    )
    given.add_argument("--rate", type=float, default=2e-3)
    return parse(given)


def make_run(args: argparse.Namespace, backbone: str, data: str, template: str, seed: int) -> Run:
    """A run whose prefix is the template, with the texts of its task; `method` is the template's name."""
    task = lookup(STANDS_FOR if data == EMBEDDED else data)
    path = data
    if data != EMBEDDED:
        folder = task.folder(args.gue)
        path = str(subset(args.runs, data, folder, rows=args.rows, eval_rows=args.eval_rows))
    values = with_registry({"data": {"task": task.name, "path": path, "prefix": template}})
    sections = METHODS["exact"] | {"data": values["data"]}
    config = run_config(args, "prompts", seed, backbone, args.rate, **sections)
    return Run(Path(backbone).name, data, template, args.rate, seed, config)


def summarize(runs: Sequence[Run], done: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row per backbone, task and template: dev and test MCC, spread over seeds, paired differences."""
    cells: dict[tuple[str, str, str], list[Run]] = {}
    for run in runs:
        cells.setdefault((run.backbone, run.data, run.method), []).append(run)
    rows = []
    for (backbone, data, template), mine in cells.items():
        dev = {("", run.seed): done[run.key]["dev"] for run in mine}
        test = {("", run.seed): done[run.key]["test"]["mcc"] for run in mine}
        row = {
            "backbone": backbone,
            "task": data,
            "template": template,
            "seeds": len(mine),
            "dev MCC": statistics.mean(dev.values()),
            "dev sd": seed_spread(dev),
            "test MCC": statistics.mean(test.values()),
            "test sd": seed_spread(test),
        }
        if plain := cells.get((backbone, data, BASELINE)):
            theirs = {("", run.seed): done[run.key]["test"]["mcc"] for run in plain}
            row[f"test - {BASELINE} [95 %]"] = paired(test, theirs)
        rows.append(row)
    return rows


if __name__ == "__main__":
    main()
