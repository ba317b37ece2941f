"""Every scalar of a run as JSON lines, `metrics.jsonl`: what TensorBoard shows, for scripts and the report.

Event files hold the same, but reading those of a long run takes minutes, and a line needs no library.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, TextIO

from lingo_ds.utils.files import atomic_write


class Curve(NamedTuple):
    """The values of one tag by step, in increasing order of the steps."""

    steps: list[int]
    values: list[float]


class MetricsLog:
    """Appends lines such as `{"step": 3, "train/loss": 0.69}` to a file; a number that is not finite is null.

    Raises:
        OSError: by every method, where the file cannot be written.
    """

    def __init__(self, path: Path, *, first_step: int):
        """Opens the file of a run that records from `first_step` on; what it will repeat is removed."""
        kept = [line for step, line in _lines(path) if step < first_step]
        atomic_write(path, lambda aside: aside.write_text("".join(kept), encoding="utf-8"))
        self._file: TextIO = path.open("a", encoding="utf-8")

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Appends the values of a step by their tags; several lines may belong to one step."""
        numbers = {tag: float(value) if math.isfinite(value) else None for tag, value in values.items()}
        self._file.write(json.dumps({"step": step, **numbers}) + "\n")

    def close(self) -> None:
        self._file.close()


def read_metrics(path: Path) -> dict[str, Curve]:
    """The curves of a run by their tags; empty where it has recorded none. Lines cut short are left out."""
    curves: dict[str, dict[int, float]] = {}
    for step, line in _lines(path):
        for tag, value in json.loads(line).items():
            if tag != "step" and isinstance(value, int | float):
                curves.setdefault(tag, {})[step] = value
    return {tag: Curve(sorted(points), [points[k] for k in sorted(points)]) for tag, points in curves.items()}


def _lines(path: Path) -> list[tuple[int, str]]:
    """The whole lines of the file, each with its step; a killed process may have left half of one."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return []
    found = []
    for line in text.splitlines(keepends=True):
        try:
            step = json.loads(line)["step"]
        except (ValueError, TypeError, LookupError, RecursionError):
            continue
        if isinstance(step, int) and line.endswith("\n"):
            found.append((step, line))
    return found
