"""Small data sets for each kind of task, whose labels follow from the sequences, and runs on them."""

from pathlib import Path
from typing import Any

import numpy as np

from lingo_ds.config.run_config import RunConfig

ROWS = {"train": 320, "dev": 80, "test": 80}
LABELS = ["gc", "purine", "never"]
VALUES = ["percent_gc", "purine_excess"]

TASKS: dict[str, dict[str, Any]] = {
    "binary": {"task": {"threshold": "dev", "class_weights": "balanced", "labels": ["rest", "rich"]}},
    "multiclass": {"task": {"focal_gamma": 1.0}},
    "multilabel": {"task": {"kind": "multilabel", "threshold": "dev"}, "data": {"label_column": LABELS}},
    "regression": {"task": {"kind": "regression"}, "data": {"label_column": VALUES}},
}
"""Sections of the config, by kind."""


def write_data(folder: Path, kind: str) -> Path:
    """Sequences of 20 to 50 bases of varying composition; a fifth of labels and values is unknown.

    Binary: is C + G above 70 %, a minority. Three classes: C + G below 35 %, to 65 %, above. Labels: C + G
    above one half, A + G above one half, and one that is never true. Values: C + G in percent, and 1000 plus
    a hundredth of A + G less one half, whose spread is small beside its mean.
    """
    draw = np.random.default_rng(0)
    folder.mkdir()
    for split, rows in ROWS.items():
        header = {"multilabel": LABELS, "regression": VALUES}.get(kind, ["label"])
        lines = [",".join(["sequence", *header])]
        for _ in range(rows):
            gc, purine, length = draw.random(), draw.random(), draw.integers(20, 50)
            strong = draw.random(length) < gc
            first = draw.random(length) < purine
            bases = np.where(strong, np.where(first, "G", "C"), np.where(first, "A", "T"))
            cells = _cells(kind, float(strong.mean()), float(first.mean()))
            hidden = draw.random(len(cells)) < (0.2 if len(cells) > 1 else 0)
            shown = ["NA" if hide else str(cell) for cell, hide in zip(cells, hidden, strict=True)]
            lines.append(",".join(["".join(bases), *shown]))
        (folder / f"{split}.csv").write_text("\n".join(lines) + "\n")
    return folder


def _cells(kind: str, gc: float, purine: float) -> list[float]:
    return {
        "binary": [int(gc > 0.7)],
        "multiclass": [int(gc > 0.35) + int(gc > 0.65)],
        "multilabel": [int(gc > 0.5), int(purine > 0.5), 0],
        "regression": [100 * gc, 1000 + (purine - 0.5) / 100],
    }[kind]


def config_of(kind: str, data: Path, out: Path, /, **sections: dict[str, Any]) -> RunConfig:
    """A short run on the embedded backbone; `sections` add to the config's."""
    settings: dict[str, Any] = {
        "name": f"small_{kind}",
        "output_dir": str(out),
        "backbone": {"path": "builtin:tiny", "dtype": "fp32"},
        "data": {"path": str(data), "cache_dir": str(data.parent / "cache")},
        "head": {"pooling": "mean"},
        "adapter": {"rank": 4},
        "rank_sampling": {"mode": "off"},
        "train": {"global_batch_size": 16, "max_steps": 120, "eval_steps": 40, "learning_rate": 5e-3},
        "zero": {"stage": 0},
    }
    for more in (TASKS[kind], sections):
        for name, section in more.items():
            settings[name] = {**settings.get(name, {}), **section}
    return RunConfig.model_validate(settings)
