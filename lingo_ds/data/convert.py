"""From a source to Arrow files in the cache, once: examples checked, classes numbered, splits drawn."""

import hashlib
import json
import logging
import time
from array import array
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lingo_ds.config.data_config import DataConfig
from lingo_ds.data.dna import sequence_mistake
from lingo_ds.data.examples import FACTS, NUMBERS, SPLITS, Example
from lingo_ds.data.labels import BadTarget, Target, TargetReader, label_mistakes
from lingo_ds.data.mistakes import MistakeLog, raise_if_any
from lingo_ds.data.remarks import remark_on_contradictions, remark_on_overlaps
from lingo_ds.data.sources.base import Source, in_own_split
from lingo_ds.data.sources.open import open_source
from lingo_ds.data.split_writer import SplitWriter, examples_schema
from lingo_ds.data.splits import SplitSummary, count_duplicates, draw_splits, groups_of
from lingo_ds.utils.errors import Mistake, UserError
from lingo_ds.utils.files import write_once

logger = logging.getLogger(__name__)

CONVERT_VERSION = 3
"""Part of every cache key; increased with every change of what is written."""

UNREAD = dict.fromkeys(
    (
        "path",
        "task",
        "root",
        "hyperparameters",
        "prefix",
        "domain",
        "pair_separator",
        "max_length",
        "packing",
        "cache_dir",
        "reverse_complement",
        "strand_specific",
    ),
    True,
)
"""Settings of `data` that examples do not depend on; files are identified by their content."""

CONVERT_LOG_SECONDS = 10.0
"""Seconds between two log lines of progress."""


class SplitFractions(NamedTuple):
    """Fractions of the training rows for the splits that the data lacks, and the seed of the draw."""

    dev: float
    test: float
    seed: int


def convert_once(config: DataConfig, path: Path, *, kind: str, cache: Path) -> Path:
    """The cache entry of the examples at a path, made where the cache lacks it.

    Raises:
        UserError: for mistakes in the data or in how it is to be read.
    """
    source = open_source(config, path, kind=kind, cache=cache)
    settings = config.model_dump(mode="json", exclude=UNREAD | {"intervals": {"genome"}})
    parts = [CONVERT_VERSION, source.fingerprint(), kind, settings, config.prompt_columns]
    key = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]
    folder = cache / "examples" / key
    shares = SplitFractions(config.dev_fraction, config.test_fraction, config.split_seed)
    write_examples(
        folder,
        source,
        kind=kind,
        class_names=config.class_names,
        shares=shares,
        columns=config.prompt_columns,
    )
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
    """Converts a source into a cache entry, unless it is there; memory does not grow with the sequences.

    Args:
        folder: the cache entry, which appears whole or not at all.
        source: the examples.
        kind: `task.kind`, see `TargetReader`.
        class_names: names in the order of the classes; None: see `ClassNames`.
        shares: sizes of the splits that the source lacks.
        columns: columns whose cells the prompt reads.

    Raises:
        UserError: with all mistakes of all files, one for those of a kind.
    """

    def write(aside: Path) -> None:
        aside.mkdir()
        _Conversion(aside, targets=TargetReader(kind, class_names), columns=columns).run(source, shares)

    write_once(folder, write)


class _Progress:
    """Logs now and then how many rows are converted."""

    def __init__(self) -> None:
        self._began = self._logged = time.monotonic()

    def log(self, rows: int) -> None:
        now = time.monotonic()
        if now - self._logged > CONVERT_LOG_SECONDS:
            self._logged = now
            logger.info("converted %s rows, %s rows/s", f"{rows:,}", f"{rows / (now - self._began):,.0f}")


class _Conversion:
    """The state of one conversion."""

    def __init__(self, folder: Path, *, targets: TargetReader, columns: tuple[str, ...]):
        self._folder, self._targets, self._columns = folder, targets, columns
        self._splits: dict[str, SplitWriter] = {}
        self._chromosomes: dict[str, int] = {}
        self._label_columns: tuple[str, ...] = ()
        self._mistakes, self._progress = MistakeLog(), _Progress()

    def run(self, source: Source, shares: SplitFractions) -> None:
        """Writes everything.

        Raises:
            UserError: see `write_examples`.
        """
        self._label_columns = source.label_columns
        self._write_splits(source)
        self._mistakes.raise_if_any()
        if "train" not in self._splits:
            raise UserError(Mistake("data.path", "0 rows", "holds no examples to train on", "add some"))
        rows = self._draw_missing(shares)
        classes = self._count_classes(rows) if self._targets.has_classes else self._targets.width
        self._write_facts(rows, classes, source)

    def _write_splits(self, source: Source) -> None:
        with ExitStack() as held:
            with self._mistakes.of_what_ends_early():
                for split, item in in_own_split(source.examples()):
                    for mistake in (item,) if isinstance(item, Mistake) else self._add(split, item, held):
                        self._mistakes.add(mistake)
            for writer in self._splits.values():
                writer.flush()

    def _add(self, split: str, example: Example, held: ExitStack) -> Sequence[Mistake]:
        """Adds a good example to its split; returns what is wrong with a bad one."""
        target, mistakes = self._checked(example)
        if target is None or mistakes or self._mistakes:
            return mistakes
        if (writer := self._splits.get(split)) is None:
            path = self._folder / f"{split}.arrow"
            schema = examples_schema(has_classes=self._targets.has_classes)
            writer = SplitWriter(path, schema, SplitSummary(self._chromosomes), held=held)
            self._splits[split] = writer
        if writer.add(example, target, self._columns):
            writer.flush()
            self._progress.log(sum(len(writer.summary) for writer in self._splits.values()))
        return ()

    def _checked(self, example: Example) -> tuple[Target | None, list[Mistake]]:
        """The target of an example, and all that is wrong with it."""
        sequence, cells, where, pair, fields, _ = example
        mistakes = [wrong] if (wrong := sequence_mistake(sequence, where)) else []
        if pair is not None and (wrong := sequence_mistake(pair, where)):
            mistakes.append(wrong)
        target = None
        try:
            target = self._targets.read(cells)
        except BadTarget as error:
            value, columns = error.value, self._label_columns
            if error.place is not None and len(columns) > 1:
                value = f"{columns[error.place]}: {value}"
            mistakes.append(Mistake(where, value, error.rule, error.fix))
        if absent := [name for name in self._columns if name not in fields]:
            fix = "take it out of data.prefix"
            mistakes.append(Mistake(where, f"{{{absent[0]}}}", "is no column of this data", fix))
        return target, mistakes

    def _draw_missing(self, shares: SplitFractions) -> dict[str, np.ndarray]:
        """Rows of the splits that are drawn from train, and those that train is left with."""
        missing = {name: getattr(shares, name) for name in ("dev", "test") if name not in self._splits}
        if not missing:
            return {}
        summary = self._splits["train"].summary
        rows = draw_splits(groups_of(summary), missing, seed=shares.seed)
        for name in missing:
            logger.info(
                "no %s split in the data: %d of %d rows drawn for it, equal or overlapping ones together "
                "(data.%s_fraction, data.split_seed)",
                name,
                len(rows[name]),
                len(summary),
                name,
            )
        return rows

    def _count_classes(self, rows: Mapping[str, np.ndarray]) -> int:
        """The number of classes.

        Raises:
            UserError: for classes that cannot be learned.
        """
        labels = {name: self._labels_of(name, rows) for name in SPLITS}
        mistakes = label_mistakes(labels, self._targets.names.names, first=self._first_row)
        raise_if_any(mistakes)
        return int(labels["train"].max()) + 1

    def _stored(self, name: str) -> SplitWriter:
        """The split itself, or train, which it is drawn from."""
        return self._splits[name if name in self._splits else "train"]

    def _labels_of(self, name: str, rows: Mapping[str, np.ndarray]) -> np.ndarray:
        labels = np.concatenate(self._stored(name).labels)
        numbers = self._targets.names.final_numbers()
        labels = labels if numbers is None else numbers[labels]
        return labels[rows[name]] if name in rows else labels

    def _first_row(self, name: str, label: int) -> str:
        """The place of a split's first row of a class."""
        numbers = self._targets.names.final_numbers()
        number = label if numbers is None else int(np.flatnonzero(numbers == label)[0])
        return self._stored(name).first[number]

    def _write_facts(self, rows: Mapping[str, np.ndarray], classes: int | None, source: Source) -> None:
        hashes = {name: _chosen(self._stored(name).summary.hashes, rows.get(name)) for name in SPLITS}
        for name, chosen in rows.items():
            np.save(self._folder / f"{name}.npy", chosen)
        if (numbers := self._targets.names.final_numbers()) is not None:
            np.save(self._folder / NUMBERS, numbers)
        lengths = _chosen(self._splits["train"].summary.lengths, rows.get("train"))
        facts = {
            "rows": {name: len(values) for name, values in hashes.items()},
            "classes": classes,
            "class_names": self._targets.names.names,
            "duplicates": count_duplicates(hashes),
            "bases": int(np.median(lengths)),
            "pairs": any(writer.has_pairs for writer in self._splits.values()),
            "label_columns": source.label_columns,
            "remarks": [*self._remarks(rows, source)],
        }
        (self._folder / FACTS).write_text(json.dumps(facts))

    def _remarks(self, rows: Mapping[str, np.ndarray], source: Source) -> Iterator[str]:
        windows = {}
        for name in SPLITS:
            if (of_split := self._stored(name).summary.windows()) is not None:
                windows[name] = of_split[:, rows[name]] if name in rows else of_split
        yield from remark_on_overlaps(windows, list(self._chromosomes))
        if self._targets.compares:
            yield from remark_on_contradictions({k: one.summary for k, one in self._splits.items()}, source)


def _chosen(values: array, rows: np.ndarray | None) -> np.ndarray:
    """The values of some rows; None: of all."""
    return np.asarray(values) if rows is None else np.asarray(values)[rows]
