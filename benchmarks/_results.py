"""One JSON file per run, of which docs/results.md is made: its name, and the runs that have none yet."""

import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console

from lingo_ds.utils.files import atomic_write


class Run(NamedTuple):
    """One training run and the arguments that it follows from.

    Attributes:
        backbone: the model's short name.
        data: the data set's.
        rows: of training, drawn by seed 0; None: all.
        setting: what distinguishes it from the other runs of the model.
        epochs: None: as many as it takes.
        batch: examples of a step; None: all.
        rate: learning rate; None: chosen by the run.
        seed: of everything but the rows.
        search: whether it is for the choice of a rate: its result has dev alone.
    """

    backbone: str
    data: str
    rows: int | None
    setting: str
    epochs: float | None
    batch: int | None
    rate: float | None
    seed: int
    search: bool

    @property
    def name(self) -> str:
        """Of its folder and its file."""
        rows, batch = ("all" if number is None else number for number in (self.rows, self.batch))
        epochs, rate = ("auto" if number is None else f"{number:g}" for number in (self.epochs, self.rate))
        parts = (self.backbone, self.data, rows, self.setting)
        parts += f"{epochs}ep", f"b{batch}", f"lr{rate}", f"seed{self.seed}"
        return re.sub(r"[^\w.-]+", "_", "-".join(map(str, parts))) + "-search" * self.search


def complete(
    runs: Iterable[Run], folder: Path, train: Callable[[Run], dict[str, Any]]
) -> list[dict[str, Any]]:
    """Results of runs, in their order: from the folder, or trained now, each kept as soon as it is known."""
    folder.mkdir(parents=True, exist_ok=True)
    console = Console(stderr=True)
    files = {run: folder / f"{run.name}.json" for run in runs}
    todo = [run for run, file in files.items() if not file.exists()]
    console.print(f"{len(todo)} runs to do, {len(files) - len(todo)} known")
    for number, run in enumerate(todo, 1):
        console.print(f"{number}/{len(todo)} {run.name}", highlight=False)
        result = train(run)
        text = json.dumps(result, indent=1) + "\n"
        atomic_write(files[run], lambda aside, text=text: aside.write_text(text))
        shown = {split: scores["mcc"] for split, scores in result["metrics"].items()}
        console.print(f"    {shown}, {result['seconds']:.0f} s", highlight=False)
    return [json.loads(file.read_text()) for file in files.values()]
