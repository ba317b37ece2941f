"""From a source to Arrow in the cache, once: checked, numbered and split, as a stream of batches."""

import hashlib
import json
import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from lingo_ds.config.data_config import DataConfig
from lingo_ds.data.dna import MAX_MISTAKES_PER_FILE, file_of, raise_if_any, sequence_mistake
from lingo_ds.data.examples import FACTS, NUMBERS, SPLITS, Example
from lingo_ds.data.labels import VALUE_KINDS, BadTarget, ClassNames, label_mistakes, read_target
from lingo_ds.data.sources.base import Source
from lingo_ds.data.sources.open import open_source
from lingo_ds.data.splits import SplitSummary, count_duplicates, draw_splits, groups_of, overlaps
from lingo_ds.utils.errors import Mistake, UserError
from lingo_ds.utils.files import write_once

logger = logging.getLogger(__name__)

CONVERT_VERSION = 2
"""Raised with every change of what is written, so that no cache holds an older version."""

UNREAD = dict.fromkeys(
    (
        "path", "task", "root", "hyperparameters", "prefix", "domain", "pair_separator", "max_length",
        "packing", "cache_dir", "reverse_complement", "strand_specific",
    ),
    True,
)  # fmt: skip
"""Settings of `data` that examples do not depend on; files are known by their content."""

WINDOW = {"chromosome", "start", "end"}
"""Fields of an example that is a window of a genome."""

BATCH_ROWS, BATCH_BASES = 8192, 1 << 24
"""A batch ends with so many rows or by so many bases."""

CONVERT_LOG_SECONDS = 10.0
"""Seconds between two log lines of progress."""


class SplitFractions(NamedTuple):
    """Shares of the training rows for splits that the data lacks, and the seed of their draw."""

    dev: float
    test: float
    seed: int


def convert_once(config: DataConfig, path: Path, *, kind: str, cache: Path) -> Path:
    """The cache entry of the examples at a path, made if it is not there; see `open_source` and `Examples`.

    Raises:
        UserError: for mistakes in the data or in how it is to be read.
    """
    source = open_source(config, path, cache=cache)
    settings = config.model_dump(mode="json", exclude=UNREAD | {"intervals": {"genome"}})
    parts = [CONVERT_VERSION, source.fingerprint(), kind, settings, config.prompt_columns]
    key = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]
    folder = cache / "examples" / key
    if not folder.exists():
        shares = SplitFractions(config.dev_fraction, config.test_fraction, config.split_seed)
        write_examples(
            folder, source, kind=kind, class_names=config.class_names, shares=shares,
            columns=config.prompt_columns,
        )  # fmt: skip
    return folder


def write_examples(
    folder: Path,
    source: Source,
    *,
    kind: str,
    class_names: tuple[str, ...] | None,
    shares: SplitFractions,
    columns: tuple[str, ...] = (),
) -> None:
    """Converts a source into `folder`, written aside and renamed; what is held does not grow with sequences.

    Args:
        folder: where the cache entry goes; it appears whole or not at all.
        source: the examples.
        kind: of the task, see `read_target`.
        class_names: in the order of the classes; None: see `ClassNames`.
        shares: of splits that the source lacks.
        columns: whose cells the prompt reads.

    Raises:
        UserError: with all mistakes of all files, up to `MAX_MISTAKES_PER_FILE` of each split.
    """

    def write(aside: Path) -> None:
        aside.mkdir()
        _Conversion(aside, kind=kind, class_names=class_names, columns=columns).run(source, shares)

    write_once(folder, write)


@dataclass
class _Split:
    """One split while it is written.

    Attributes:
        seen: what is remembered of its rows.
        labels: class of each row, where there are classes.
        first: place of each class's first row.
        sequences, pairs, targets, fields: of the batch to be written next.
        windows: fields of those of them that are windows.
        bases: of its sequences.
    """

    writer: pa.ipc.RecordBatchStreamWriter
    seen: SplitSummary
    labels: list[np.ndarray] = field(default_factory=list)
    first: dict[int, str] = field(default_factory=dict)
    sequences: list[str] = field(default_factory=list)
    pairs: list[str | None] = field(default_factory=list)
    targets: list = field(default_factory=list)
    fields: list[list[str]] = field(default_factory=list)
    windows: list[Mapping[str, str]] = field(default_factory=list)
    bases: int = 0


class _Conversion:
    """The state of one conversion."""

    def __init__(
        self, folder: Path, *, kind: str, class_names: tuple[str, ...] | None, columns: tuple[str, ...]
    ):
        self._folder, self._kind, self._columns = folder, kind, columns
        self._names = ClassNames(class_names)
        self._has_classes = kind not in VALUE_KINDS
        target = pa.int64() if self._has_classes else pa.list_(pa.float32())
        self._schema = pa.schema(
            [
                ("sequence", pa.string()), ("pair", pa.string()), ("label", target),
                ("fields", pa.list_(pa.string())),
            ]
        )  # fmt: skip
        self._splits: dict[str, _Split] = {}
        self._chromosomes: dict[str, int] = {}
        self._known: dict[tuple, int] = {}  # classes of labels that were read before
        self._width: int | None = None  # classes, or values of each target
        self._pairs = False
        self._mistakes: dict[str, list[Mistake]] = {}
        self._unsaid: dict[str, int] = {}
        self._began = self._said = time.monotonic()

    def run(self, source: Source, shares: SplitFractions) -> None:
        """Writes everything.

        Raises:
            UserError: see `write_examples`.
        """
        with ExitStack() as held:
            try:
                for split, item in source.examples():
                    self._take(split, item, held)
            except UserError as error:
                for mistake in error.mistakes:
                    self._take("train", mistake, held)
            for split in self._splits.values():
                self._write_batch(split)
        self._raise_mistakes()
        if "train" not in self._splits:
            raise UserError(Mistake("data.path", "0 rows", "holds no examples to train on", "add some"))
        rows = self._carve(shares)
        if self._has_classes:
            labels = {name: self._labels_of(name, rows) for name in SPLITS}
            raise_if_any(label_mistakes(labels, self._names.names, first=self._first), Path("data.path"))
            self._width = int(labels["train"].max()) + 1
        self._write_facts(rows)

    def _take(self, name: str, item: Example | Mistake, held: ExitStack) -> None:
        for mistake in (item,) if isinstance(item, Mistake) else self._add(name, item, held):
            known = self._mistakes.setdefault(name, [])
            if len(known) < MAX_MISTAKES_PER_FILE:
                known.append(mistake)
            else:
                self._unsaid[name] = self._unsaid.get(name, 0) + 1

    def _add(self, name: str, example: Example, held: ExitStack) -> Sequence[Mistake]:
        """Adds a good example to its split; returns what is wrong with a bad one."""
        sequence, cells, where, pair, fields = example
        mistakes = [wrong] if (wrong := sequence_mistake(sequence, where)) else []
        if pair is not None and (wrong := sequence_mistake(pair, where)):
            mistakes.append(wrong)
        try:
            target = self._class_of(cells) if self._has_classes else self._values_of(cells)
        except BadTarget as error:
            mistakes.append(Mistake(where, error.value, error.rule, error.fix))
        if absent := [name for name in self._columns if name not in fields]:
            fix = "take it out of data.prefix"
            mistakes.append(Mistake(where, f"{{{absent[0]}}}", "is no column of this data", fix))
        if mistakes or self._mistakes:
            return mistakes
        if (split := self._splits.get(name)) is None:
            split = self._splits[name] = self._begin(name, held)
        split.sequences.append(sequence.upper())
        split.pairs.append(pair and pair.upper())
        split.targets.append(target)
        split.fields.append([fields[name] for name in self._columns])
        if fields.keys() >= WINDOW:
            split.windows.append(fields)
        split.bases += len(sequence)
        if self._has_classes and target not in split.first:
            split.first[target] = where
        if len(split.sequences) >= BATCH_ROWS or split.bases >= BATCH_BASES:
            self._write_batch(split)
        return ()

    def _class_of(self, cells: tuple) -> int:
        """The class's number; of a class that has a name, for now."""
        if (known := self._known.get(cells)) is not None:
            return known
        if len(cells) != 1:
            raise BadTarget(len(cells), "values are no single class", "name one label column")
        number = read_target((self._names.number(cells[0]),), kind=self._kind)
        return self._known.setdefault(cells, number)

    def _values_of(self, cells: tuple) -> list[float]:
        values = read_target(cells, kind=self._kind)
        if self._width is None:
            self._width = len(values)
        if len(values) != self._width:
            rule = f"are not as many as in the first row, which has {self._width}"
            raise BadTarget(f"{len(values)} values", rule, "give each row a value for each label")
        return values

    def _begin(self, name: str, held: ExitStack) -> _Split:
        file = held.enter_context(pa.OSFile(str(self._folder / f"{name}.arrow"), "wb"))
        writer = held.enter_context(pa.ipc.new_stream(file, self._schema))
        return _Split(writer, SplitSummary(self._chromosomes))

    def _write_batch(self, split: _Split) -> None:
        columns = [
            pa.array(values, column.type)
            for values, column in zip(
                (split.sequences, split.pairs, split.targets, split.fields), self._schema, strict=True
            )
        ]
        split.writer.write_batch(pa.record_batch(columns, schema=self._schema))
        if self._has_classes:
            split.labels.append(columns[2].to_numpy())
        self._pairs |= any(split.pairs)
        split.seen.add(split.sequences, split.pairs, split.windows)
        split.sequences, split.pairs, split.targets, split.fields = [], [], [], []
        split.windows, split.bases = [], 0
        if time.monotonic() - self._said > CONVERT_LOG_SECONDS:
            self._said = time.monotonic()
            rows = sum(len(split.seen) for split in self._splits.values())
            logger.info("converted %s rows, %s rows/s", f"{rows:,}",
                        f"{rows / (self._said - self._began):,.0f}")  # fmt: skip

    def _raise_mistakes(self) -> None:
        """Raises what was found in all splits, with a count of what of each is not told."""
        told: list[Mistake] = []
        for name, mistakes in self._mistakes.items():
            told += mistakes
            if more := self._unsaid.get(name):
                where, fix = file_of(mistakes[-1].where), "mend those above first"
                told.append(Mistake(where, f"{more} more rows", "have mistakes too", fix))
        if told:
            raise UserError(told)

    def _carve(self, shares: SplitFractions) -> dict[str, np.ndarray]:
        """Rows of the splits that are drawn from train, and those that train is left with."""
        missing = {name: getattr(shares, name) for name in ("dev", "test") if name not in self._splits}
        if not missing:
            return {}
        rows = draw_splits(groups_of(self._splits["train"].seen), missing, seed=shares.seed)
        for name in missing:
            logger.info("no %s split in the data: %d of %d rows drawn for it, equal or overlapping ones "
                        "together (data.%s_fraction, data.split_seed)",
                        name, len(rows[name]), len(self._splits["train"].seen), name)  # fmt: skip
        return rows

    def _labels_of(self, name: str, rows: Mapping[str, np.ndarray]) -> np.ndarray:
        labels = np.concatenate(self._splits[name if name in self._splits else "train"].labels)
        numbers = self._names.final_numbers()
        labels = labels if numbers is None else numbers[labels]
        return labels[rows[name]] if name in rows else labels

    def _first(self, name: str, label: int) -> str:
        """Where the first row of a class stands that a split has."""
        split = self._splits[name if name in self._splits else "train"]
        numbers = self._names.final_numbers()
        return split.first[label if numbers is None else int(np.flatnonzero(numbers == label)[0])]

    def _write_facts(self, rows: dict[str, np.ndarray]) -> None:
        hashes, windows = {}, {}
        for name in SPLITS:
            seen = self._splits[name if name in self._splits else "train"].seen
            chosen = rows.get(name, slice(None))
            hashes[name] = np.asarray(seen.hashes)[chosen]
            if (of_split := seen.windows()) is not None:
                windows[name] = of_split[:, chosen]
            if name in rows:
                np.save(self._folder / f"{name}.npy", chosen)
        if common := overlaps(windows, list(self._chromosomes)):
            logger.warning("splits are not independent: %s; whole chromosomes are, see "
                           "data.intervals.dev_chromosomes and test_chromosomes", common)  # fmt: skip
        if (numbers := self._names.final_numbers()) is not None:
            np.save(self._folder / NUMBERS, numbers)
        lengths = np.asarray(self._splits["train"].seen.lengths)[rows.get("train", slice(None))]
        facts = {
            "rows": {name: len(values) for name, values in hashes.items()},
            "classes": self._width,
            "class_names": self._names.names,
            "duplicates": count_duplicates(hashes),
            "bases": int(np.median(lengths)),
            "pairs": self._pairs,
        }
        (self._folder / FACTS).write_text(json.dumps(facts))
