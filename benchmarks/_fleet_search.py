"""A search over settings: every setting trained to its end, beside successive halving, on the same runs."""

import csv
import json
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks._fleet_jobs import seconds_of_suite

GRID = {"train.learning_rate": [5e-4, 2e-3, 8e-3], "adapter.rank": [2, 4, 8]}
KEEP = 0.33
"""Share of the settings that go on: of 9 settings 3, of these 1."""


class Search(NamedTuple):
    """A search on one data set.

    Attributes:
        backbone: as in a recipe.
        data: path of the data, as in a recipe.
        seeds: number of seeds with which each setting is trained.
        steps: of a run that is trained to its end.
        at: fractions of the steps at which settings are dropped; empty: none is.
    """

    backbone: str
    data: str
    seeds: int
    steps: int
    at: tuple[float, ...] = ()

    @property
    def what(self) -> dict[str, Any]:
        """All that decides what is found, wherever the files lie."""
        names = {"backbone": Path(self.backbone).name, "data": Path(self.data).name}
        return {"search": self._asdict() | names | {"at": list(self.at)}, "grid": GRID, "keep": KEEP}

    def recipe(self, folder: Path) -> dict[str, Any]:
        """Dev is evaluated at the first comparison, and as often from then on."""
        method = {"method": "halving", "keep": KEEP, "at": list(self.at)} if self.at else {"method": "all"}
        return {
            "name": "fleet_search",
            "output_dir": str(folder / "suite"),
            "seeds": list(range(self.seeds)),
            "backbone": {"path": self.backbone, "dtype": "fp32"},
            "data": {"path": self.data},
            "rank_sampling": {"mode": "off"},
            "train": {
                "global_batch_size": 8,
                "max_steps": self.steps,
                "eval_steps": max(1, round(self.steps * 0.1)),
            },
            "zero": {"stage": 0},
            "grid": GRID,
            "search": method,
        }


def search(what: Search, folder: Path) -> dict[str, Any]:
    """Searches in an empty folder, in one process.

    Returns:
        `seconds` to the chosen setting and its test numbers, `trainings`: how much was trained, in whole
        trainings of one run, `chosen`: the label of the setting, and `dev`: 100 x the mean of the metric on
        dev of each setting that was trained to its end.
    """
    recipe = what.recipe(folder)
    seconds = seconds_of_suite(recipe, folder, 1)
    suite = Path(recipe["output_dir"])
    reports = [json.loads(path.read_text()) for path in suite.glob("*/seed-*/report.json")]
    (result,) = _rows(suite / "results.csv")
    at_end = {row["setting"]: row["dev at 1"] for row in _rows(suite / "settings.csv") if row["dev at 1"]}
    return {
        "seconds": seconds,
        "trainings": sum(report["steps"] for report in reports) / what.steps,
        "chosen": result["setting"],
        "dev": {setting: float(dev) for setting, dev in at_end.items()},
    }


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as opened:
        return list(csv.DictReader(opened))


def compare_work(halving: Search, found: dict[str, Any], whole: dict[str, Any]) -> list[dict[str, Any]]:
    """A row for what is trained and one for the time; `whole` is what all settings to their end gave."""
    return [
        {
            "backbone": Path(halving.backbone).name,
            "settings": len(whole["dev"]),
            "seeds": halving.seeds,
            "steps": halving.steps,
            "dropped at": " ".join(f"{at:g}" for at in halving.at),
            "unit": unit,
            "ours": found[name],
            "rival": whole[name],
            "ratio": whole[name] / found[name],
        }
        for name, unit in (("trainings", "whole trainings"), ("seconds", "s to the finished search"))
    ]


def compare_choices(halving: Search, found: dict[str, Any], whole: dict[str, Any]) -> dict[str, Any]:
    """A row: which setting each chose; how far apart they are is told by `whole`, which trained both."""
    return {
        "backbone": Path(halving.backbone).name,
        "data": Path(halving.data).name,
        "by halving": found["chosen"],
        "of all": whole["chosen"],
        "same choice": found["chosen"] == whole["chosen"],
        "100 x dev behind": whole["dev"][whole["chosen"]] - whole["dev"][found["chosen"]],
    }
