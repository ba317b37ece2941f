"""Tokenising once: Arrow tables in a cache, read back by memory map."""

import hashlib
import json
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from lingo_ds.data.convert import SAY_EVERY
from lingo_ds.data.examples import SPLITS, Examples
from lingo_ds.data.prompt import Prompt
from lingo_ds.data.strands import reverse_complement
from lingo_ds.data.targets import Target
from lingo_ds.data.tokens import Row, Tokenize
from lingo_ds.utils.files import write_aside

logger = logging.getLogger(__name__)

CACHE_VERSION = 3
BATCH = 1000
"""Texts tokenised at a time."""

IDS, CLASS, VALUES = pa.list_(pa.int32()), pa.int64(), pa.list_(pa.float32())
SCHEMA = pa.schema({"input_ids": IDS, "label": CLASS, "truncated": pa.bool_()})
"""Of a table on one strand; `label` is VALUES, NaN where unknown, where the target is a list of values."""


def _numbers(values: pa.Array) -> np.ndarray:
    """A view on them, where none is missing; pyarrow's `to_numpy` would import pandas first."""
    return np.from_dlpack(values)


@dataclass(frozen=True)
class TokenizedSplit:
    """One split's token ids, read where the table has them: on disk by memory map, whatever it is cut into.

    Attributes:
        table: columns input_ids (list of int32), label (int64 or list of float32), truncated (bool), and for
            both strands reverse_ids (list of int32).
        both: whether the rows are 2 n: row n + k is row k of the table on its other strand.
    """

    table: pa.Table
    both: bool = False

    def __len__(self) -> int:
        return len(self.table) * (1 + self.both)

    def both_strands(self) -> "TokenizedSplit":
        """The same table with both strands as rows; it must hold them."""
        return TokenizedSplit(self.table, both=True)

    @property
    def widest(self) -> "TokenizedSplit":
        """All that the table holds."""
        return self.both_strands() if "reverse_ids" in self.table.column_names else self

    @cached_property
    def _chunks(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Ids and offsets of the pieces that Arrow keeps the column in; none is copied."""
        names = ("input_ids", "reverse_ids") if self.both else ("input_ids",)
        chunks = [chunk for name in names for chunk in self.table.column(name).chunks]
        return [(_numbers(chunk.values), _numbers(chunk.offsets)) for chunk in chunks]

    @cached_property
    def _begins(self) -> np.ndarray:
        """The first row of each piece."""
        return np.cumsum([0, *(len(offsets) - 1 for _, offsets in self._chunks)])

    def _chunk_of(self, rows: np.ndarray | int) -> np.ndarray:
        return np.searchsorted(self._begins, rows, side="right") - 1

    @cached_property
    def labels(self) -> np.ndarray:
        """(rows,) int64 classes, or (rows, values) float32 with NaN where unknown."""
        column = self.table.column("label")
        if pa.types.is_integer(column.type):
            labels = np.concatenate([np.zeros(0, np.int64), *map(_numbers, column.chunks)])
        else:
            values = [chunk.flatten().to_numpy(zero_copy_only=False) for chunk in column.chunks]
            labels = np.concatenate(values).reshape(len(column), -1)
        return np.concatenate([labels, labels]) if self.both else labels

    @property
    def unknown(self) -> int:
        """Labels or values that are not known."""
        return int(np.isnan(self.labels).sum())

    @cached_property
    def lengths(self) -> np.ndarray:
        """(rows,) tokens per example."""
        return np.concatenate([np.zeros(0, np.int32), *(np.diff(offsets) for _, offsets in self._chunks)])

    @property
    def largest_id(self) -> int:
        """Of all tokens; -1 where there is none."""
        pieces = (values[offsets[0] : offsets[-1]] for values, offsets in self._chunks)
        return max((int(piece.max(initial=-1)) for piece in pieces), default=-1)

    @property
    def truncated(self) -> int:
        """Examples whose sequence was cut, on one strand at least."""
        column = self.table.column("truncated").cast(pa.uint8())
        return sum(int(_numbers(chunk).sum()) for chunk in column.chunks)

    def tokens(self, row: int) -> np.ndarray:
        """Token ids of one example, (length,)."""
        chunk = int(self._chunk_of(row))
        (values, offsets), place = self._chunks[chunk], row - self._begins[chunk]
        return values[offsets[place] : offsets[place + 1]]

    def heads(self, rows: np.ndarray, length: int) -> np.ndarray:
        """The first `length` token ids of examples that have as many, (rows, length)."""
        out, chunks = np.empty((len(rows), length), np.int32), self._chunk_of(rows)
        for chunk in np.unique(chunks):
            here, (values, offsets) = chunks == chunk, self._chunks[chunk]
            out[here] = values[offsets[rows[here] - self._begins[chunk]][:, None] + np.arange(length)]
        return out


@dataclass(frozen=True)
class TokenizedData:
    """All splits, and what was noticed while reading them.

    Attributes:
        splits: by name.
        classes: outputs that a head needs: classes, labels or values.
        class_names: in the order of the classes; None where they are numbers.
        duplicates: rows that occur twice, see `count_duplicates`.
        fingerprint: of files, tokenizer, prompt and length together.
        bases: of the median training sequence.
        pairs: whether an example has two sequences.
    """

    splits: Mapping[str, TokenizedSplit]
    classes: int
    class_names: tuple[str, ...] | None
    duplicates: dict[str, int]
    fingerprint: str
    bases: int
    pairs: bool

    @property
    def longest(self) -> int:
        """Tokens of the longest example."""
        return int(max(split.widest.lengths.max() for split in self.splits.values()))

    @property
    def shortest(self) -> int:
        """Tokens of the shortest example."""
        return int(min(split.widest.lengths.min() for split in self.splits.values()))

    @property
    def largest_id(self) -> int:
        """Of all tokens."""
        return max(split.widest.largest_id for split in self.splits.values())

    def facts(self) -> dict[str, Any]:
        """Counts for the report."""
        return {
            "rows": {name: len(split) for name, split in self.splits.items()},
            "truncated": {name: split.truncated for name, split in self.splits.items()},
            "unknown": {name: split.unknown for name, split in self.splits.items()},
            "duplicates": self.duplicates,
            "class_names": self.class_names,
            "fingerprint": self.fingerprint,
        }


def tokenized_fingerprint(examples: Path, *, tokenizer: str, settings: Mapping[str, Any]) -> str:
    """32 hex digits that change with the examples, the tokenizer's definition or any setting."""
    parts = [CACHE_VERSION, examples.name, tokenizer, dict(settings)]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def write_tokenized(
    folder: Path,
    examples: Examples,
    *,
    tokenize: Tokenize,
    prompt: Prompt,
    max_length: int,
    both_strands: bool = False,
) -> None:
    """Tokenises all splits into `folder`, batch by batch; written aside and renamed.

    Args:
        folder: where the cache entry goes; it appears whole or not at all.
        examples: the rows.
        tokenize: what makes tokens of them: `TextTokens`, or `NucleotideTokens`.
        prompt: text around each sequence.
        max_length: longest example in tokens.
        both_strands: whether to tokenise each sequence's reverse complement, too.

    Raises:
        UserError: where not even one base fits between prefix and suffix.
    """

    def tokenized(batch: pa.RecordBatch) -> pa.Table:
        sequences, pairs, labels, fields = (column.to_pylist() for column in batch.columns)
        split = tokenized_split(
            sequences,
            labels,
            pairs=pairs,
            fields=fields,
            tokenize=tokenize,
            prompt=prompt,
            max_length=max_length,
            both_strands=both_strands,
        )
        return split.table

    def write(aside: Path) -> None:
        aside.mkdir()
        for name in SPLITS:
            logger.info("tokenising %s: %d rows", name, examples.rows[name])
            tables = map(tokenized, examples.batches(name, most=BATCH))
            _write_stream(aside / f"{name}.arrow", tables, rows=examples.rows[name])
        facts = {
            "classes": examples.classes,
            "class_names": examples.class_names,
            "duplicates": examples.duplicates,
            "bases": examples.bases,
            "pairs": examples.pairs,
        }
        (aside / "facts.json").write_text(json.dumps(facts))

    try:
        write_aside(folder, write)
    except OSError:
        if not folder.is_dir():  # else another host finished the same entry first
            raise


def _write_stream(path: Path, tables: Iterator[pa.Table], *, rows: int) -> None:
    """Writes tables of one schema behind each other; says now and then how many rows are done."""
    first = next(tables)
    said, done = time.monotonic(), 0
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, first.schema) as stream:
        for table in chain([first], tables):
            stream.write_table(table)
            done += len(table)
            if time.monotonic() - said > SAY_EVERY:
                said = time.monotonic()
                logger.info("tokenised %s of %s rows", f"{done:,}", f"{rows:,}")


def _read_stream(path: Path) -> pa.Table:
    with pa.memory_map(str(path)) as file, pa.ipc.open_stream(file) as stream:
        return stream.read_all()  # the table holds the map


def read_tokenized(folder: Path) -> TokenizedData:
    """The cache entry that `write_tokenized` made, by memory map."""
    facts = json.loads((folder / "facts.json").read_text())
    splits = {name: TokenizedSplit(_read_stream(folder / f"{name}.arrow")) for name in SPLITS}
    names = facts.pop("class_names")
    return TokenizedData(splits=splits, class_names=names and tuple(names), fingerprint=folder.name, **facts)


def tokenized_split(
    sequences: Sequence[str],
    labels: Sequence[Target],
    *,
    pairs: Sequence[str | None] | None = None,
    fields: Sequence[Sequence[str]] | None = None,
    tokenize: Tokenize,
    prompt: Prompt,
    max_length: int,
    both_strands: bool = False,
) -> TokenizedSplit:
    """Tokenises labelled sequences, in memory; the arguments are those of `write_tokenized`.

    `pairs` holds the second sequence of each, or None; None: none has one. `fields` holds each example's
    cells of the columns that the prompt reads; None: it reads none.

    Raises:
        UserError: where not even one base fits between prefix and suffix.
    """
    count = len(sequences)
    rows = list(map(Row, sequences, pairs or [None] * count, fields or [()] * count))

    def strand(rows: Sequence[Row]) -> tuple[list[Sequence[int]], list[bool]]:
        return _tokenized_strand(rows, tokenize=tokenize, prompt=prompt, max_length=max_length)

    input_ids, truncated = strand(rows)
    columns, schema = {"input_ids": input_ids, "label": labels, "truncated": truncated}, SCHEMA
    if isinstance(labels[0], list):
        schema = schema.set(schema.get_field_index("label"), pa.field("label", VALUES))
    if both_strands:
        turned = [row._replace(sequence=reverse_complement(row.sequence)) for row in rows]
        columns["reverse_ids"], also = strand(turned)
        columns["truncated"] = [one or other for one, other in zip(truncated, also, strict=True)]
        schema = schema.append(pa.field("reverse_ids", IDS))
    return TokenizedSplit(pa.table(columns, schema=schema))


def _tokenized_strand(
    rows: Sequence[Row], *, tokenize: Tokenize, prompt: Prompt, max_length: int
) -> tuple[list[Sequence[int]], list[bool]]:
    """Token ids of each example, and whether it was cut."""
    input_ids, truncated = [], []
    for start in range(0, len(rows), BATCH):
        for ids, cut in tokenize(rows[start : start + BATCH], prompt, max_length):
            input_ids.append(ids)
            truncated.append(cut)
    return input_ids, truncated
