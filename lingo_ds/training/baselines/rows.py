"""The rows of a run as one-hot bases: as many as a minute on one core allows."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from lingo_ds.config.known_tasks import require_folder
from lingo_ds.config.run_config import RunConfig
from lingo_ds.data.builtin import make_builtin_data
from lingo_ds.data.dna import reverse_complement
from lingo_ds.data.examples import SPLITS, Examples
from lingo_ds.data.one_hot import one_hot
from lingo_ds.data.pipeline import labelled_examples
from lingo_ds.data.task import Task, task_of
from lingo_ds.training.baselines.fitting import OneHotSplit

MOST_ROWS = 10_000
"""Rows of a split that are read; of more, so many are drawn."""

MOST_POSITIONS = 1024
"""Positions of a sequence or pair at most; of a longer one each stands for several bases."""

_ROWS_AT_ONCE = 1024
_LETTERS_AT_ONCE = 1 << 24


@dataclass(frozen=True)
class BaselineData:
    """The rows of a run, not yet read.

    Attributes:
        config: the run's settings.
        examples: all of its rows.
        rows: by split those that are used, ascending.
        labels: by split those of the used rows, see `OneHotSplit`.
        task: the run's task.
        widths: bases of the longest sequence that is used, and for pairs of the longest second one.
    """

    config: RunConfig
    examples: Examples
    rows: dict[str, np.ndarray]
    labels: dict[str, np.ndarray]
    task: Task
    widths: tuple[int, ...]

    def bin(self, positions: int) -> int:
        """Bases that one of at most so many positions stands for."""
        return -(-sum(self.widths) // positions)

    def with_train_rows(self, most: int) -> "BaselineData":
        """The same data with at most so many training rows, drawn by the run's seed."""
        labels = self.labels["train"]
        kept = _drawn(len(labels), self.config.seed, most=most)
        return replace(
            self,
            rows=self.rows | {"train": self.rows["train"][kept]},
            labels=self.labels | {"train": labels[kept]},
        )

    def read(self, split: str, *, bin: int) -> OneHotSplit:
        """A split's rows, on both strands where evaluation reads both."""
        bases, averages = self._encode(split, bin, str), self.config.data.averages
        reverse = self._encode(split, bin, other_strand) if averages else None
        return OneHotSplit(bases, self.labels[split], reverse)

    def read_train(self, *, bin: int) -> OneHotSplit:
        """The training rows; where training reads both strands, each row is there on both."""
        given, labels = self._encode("train", bin, str), self.labels["train"]
        if not self.config.data.augments:
            return OneHotSplit(given, labels)
        other = self._encode("train", bin, other_strand)
        return OneHotSplit(torch.cat([given, other]), np.concatenate([labels, labels]))

    def _encode(self, split: str, bin: int, strand: Callable[[str], str]) -> torch.Tensor:
        """(rows, 4, positions); of a pair the first sequence's positions, then the second one's."""
        most = min(_ROWS_AT_ONCE, max(1, _LETTERS_AT_ONCE // sum(self.widths)))
        parts = []
        for batch in _batches(self.examples, split, self.rows[split], most):
            columns = ("sequence", "pair")[: len(self.widths)]
            encoded = [
                one_hot([strand(text) for text in batch.column(name).to_pylist()], width=width, bin=bin)
                for name, width in zip(columns, self.widths, strict=True)
            ]
            parts.append(torch.cat(encoded, dim=2))
        return torch.cat(parts)


def find_rows(config: RunConfig, *, cache: Path) -> BaselineData:
    """Converts a run's data where the cache lacks it, and draws the rows by the run's seed; one process.

    Raises:
        UserError: for mistakes in the data.
    """
    make_builtin_data(config.data.path, cache)
    require_folder(config.data.task, path=config.data.path, root=config.data.root)
    examples = labelled_examples(config, cache=cache)
    every = {split: examples.labels(split) for split in SPLITS}
    rows = {split: _drawn(len(labels), config.seed, most=MOST_ROWS) for split, labels in every.items()}
    widths = _widths(examples, rows)
    task = task_of(config, examples, max_length=sum(widths))
    labels = {split: every[split][rows[split]] for split in SPLITS}
    return BaselineData(config, examples, rows, labels, task, widths)


def _drawn(rows: int, seed: int, *, most: int) -> np.ndarray:
    if rows <= most:
        return np.arange(rows)
    return np.sort(np.random.default_rng(seed).choice(rows, most, replace=False))


def _batches(examples: Examples, split: str, rows: np.ndarray, most: int) -> "list[pa.RecordBatch]":
    """Some rows of a split, in order, `most` or fewer at a time."""
    begin, found = 0, []
    for batch in examples.batches(split, most=most):
        first, last = np.searchsorted(rows, [begin, begin + len(batch)])
        if last > first:
            found.append(batch.take(pa.array(rows[first:last] - begin)))
        begin += len(batch)
    return found


def _widths(examples: Examples, rows: dict[str, np.ndarray]) -> tuple[int, ...]:
    """The longest sequence that is used of any split, and for pairs the longest second one."""
    columns = ("sequence", "pair") if examples.pairs else ("sequence",)
    longest = dict.fromkeys(columns, 1)
    for split in SPLITS:
        for batch in _batches(examples, split, rows[split], 1 << 16):
            for name in columns:
                longest[name] = max(longest[name], pc.max(pc.binary_length(batch.column(name))).as_py() or 1)
    return tuple(longest.values())


def other_strand(sequence: str) -> str:
    """The reverse complement of a sequence in any case."""
    return reverse_complement(sequence.upper())
