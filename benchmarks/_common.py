"""What every benchmark shares: arguments, the machine, the table, the JSON file, results that are kept."""

import argparse
import hashlib
import json
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
import torch
from rich.console import Console
from rich.table import Table

from lingo_ds.utils.files import atomic_write
from lingo_ds.utils.versions import versions


def parser(description: str) -> argparse.ArgumentParser:
    """`--json FILE` and `--quick`, as every benchmark takes them."""
    made = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--json", type=Path, help="write the rows there")
    made.add_argument("--quick", action="store_true", help="fewer repetitions and sizes")
    made.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)
    return made


def machine() -> dict[str, Any]:
    """Where the numbers come from."""
    device = (
        torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else platform.processor() or platform.machine()
    )
    return {
        "device": device,
        "cores": psutil.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 1024**3, 1),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def circumstances() -> dict[str, Any]:
    """What a result that is kept says of its making: machine, versions of libraries, day."""
    return {"machine": machine(), "versions": versions(), "date": time.strftime("%Y-%m-%d")}


def alternate(runs: dict[str, Callable[[], None]], *, repeats: int, warmup: int = 3) -> dict[str, float]:
    """Median seconds of each callable; they take turns, so that a drift of the machine meets all alike."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(warmup + repeats):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if turn >= warmup:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def show(tables: Mapping[str, Sequence[dict[str, Any]]], *, json_path: Path | None) -> None:
    """Prints each table of rows under its title, and writes all of them where `--json` says."""
    for title, rows in tables.items():
        table = Table(title=title)
        for column in rows[0]:
            table.add_column(column)
        for row in rows:
            cells = (f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in row.values())
            table.add_row(*cells)
        Console(width=160).print(table)
    if json_path:
        rows = [{"table": title, **row} for title, table in tables.items() for row in table]
        json_path.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=2, allow_nan=False))


class Kept:
    """What was measured, each in a file of its own, so that a later call repeats none of it."""

    def __init__(self, folder: Path, *, minutes: float | None = None):
        """Takes the folder of these files; with `minutes` nothing more is begun after so many."""
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._end = folder, None if minutes is None else time.monotonic() + 60 * minutes

    def get(self, what: Mapping[str, Any], measure: Callable[[], dict[str, Any]]) -> dict[str, Any] | None:
        """What was found for `what` before, or is found now; None where the time is up.

        Args:
            what: all that decides the result, plain JSON values.
            measure: finds it, plain JSON values as well.
        """
        name = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:16]
        file = self._folder / f"{name}.json"
        if not file.exists():
            if self._end is not None and time.monotonic() > self._end:
                return None
            text = json.dumps({"what": what, "found": measure(), **circumstances()}, indent=1)
            atomic_write(file, lambda aside: aside.write_text(text))
        found: dict[str, Any] = json.loads(file.read_text())["found"]
        return found


def say(line: str) -> None:
    """Shows how far a benchmark is."""
    Console(stderr=True).print(line, highlight=False, soft_wrap=True)
