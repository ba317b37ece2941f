"""Writes report.json, and shows its main numbers and the files to open."""

import json
import math
import shlex
from collections.abc import Iterator
from pathlib import Path

from rich.table import Table

from lingo_ds.utils.files import atomic_write

_CLASS_ROWS = {"mcc": "MCC", "auroc": "AUROC", "accuracy": "accuracy", "macro_f1": "macro F1"}
_ROWS = {
    "multilabel": {
        "macro_auroc": "macro AUROC",
        "macro_auprc": "macro AUPRC",
        "micro_f1": "micro F1",
        "micro_mcc": "micro MCC",
    },
    "regression": {
        "pearson": "Pearson",
        "spearman": "Spearman",
        "r2": "R2",
        "rmse": "RMSE",
        "mae": "MAE",
    },
}
"""Metrics in the table by kind of task, and their names there."""


def metric_names(kind: str | None) -> dict[str, str]:
    """The main metrics of a kind of task, as `report.json` and as tables call them."""
    return _ROWS.get(kind or "", _CLASS_ROWS)


def write_report(path: Path, report: dict) -> None:
    """Writes a report as JSON; a reader sees the old file or the whole new one, never a part.

    Raises:
        ValueError: a number in it is not finite; the message names the key. Nothing is written.
    """
    for key, number in _not_finite(report):
        raise ValueError(f"report: {key}: {number}: must be finite: use None for an undefined number")
    text = json.dumps(report, indent=2, allow_nan=False) + "\n"
    atomic_write(path, lambda aside: aside.write_text(text, encoding="utf-8"))


def summary_table(report: dict) -> Table:
    """The short table shown when a run ends, with a dash for what the report does not hold."""
    table = Table(
        title=f"task {report.get('task', {}).get('name', '-')}", title_justify="left", show_header=False
    )
    table.add_column("what")
    table.add_column("value", justify="right")
    kind = report.get("task", {}).get("kind")
    for key, words in metric_names(kind).items():
        test, dev = (_show(report, f"metrics.{split}.{key}", ".4f") for split in ("test", "dev"))
        table.add_row(f"{words}, test / dev", f"{test} / {dev}")
    table.add_section()
    selected, steps = _show(report, "selected_step", ","), _show(report, "steps", ",")
    kept, target = (_show(report, f"rank_sampling.{one}_triplets", ",") for one in ("kept", "target"))
    for words, value in (
        ("selected step / steps", f"{selected} / {steps}"),
        ("trainable parameters", _show(report, "parameters.trainable", ",")),
        ("share of all parameters", _show(report, "parameters.fraction", ".3%")),
        ("kept / target triplets", f"{kept} / {target}"),
        ("mask events", _show(report, "rank_sampling.mask_events", ",")),
        ("returned triplets", _show(report, "rank_sampling.returned_triplets", ",")),
        ("divergences between processes", _show(report, "sync.divergences", ",")),
        ("tokens/s", _show(report, "throughput.tokens_per_second", ",.0f")),
        ("seconds of training", _show(report, "throughput.seconds", ",.1f")),
    ):
        table.add_row(words, value)
    return table


def what_to_open(output_dir: Path) -> str:
    """One line per existing result of a run, with the command or path to open it."""
    lines = {
        "report.html": "the report, in a browser: {}",
        "tensorboard": "curves and rank maps:  tensorboard --logdir {}",
        "pictures": "pictures of the ranks: {}",
        "report.json": "every number:          {}",
        "predictions/test.parquet": "test predictions:      {}",
        "adapter": "adapter (PEFT format): {}",
    }
    paths = {name: output_dir / name for name in lines}
    return "\n".join(
        lines[name].format(shlex.quote(str(path))) for name, path in paths.items() if path.exists()
    )


def _not_finite(value: object, key: str = "") -> Iterator[tuple[str, float]]:
    """Every number in nested dicts and lists that JSON cannot hold, with its dotted key."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _not_finite(inner, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list | tuple):
        for index, inner in enumerate(value):
            yield from _not_finite(inner, f"{key}[{index}]")
    elif isinstance(value, float) and not math.isfinite(value):
        yield key, value


def _show(report: dict, key: str, form: str) -> str:
    """The number under a dotted key in a format, or a dash."""
    value: object = report
    for name in key.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return "-" if value is None else format(value, form)
