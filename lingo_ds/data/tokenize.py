"""Tokenising once: Arrow tables in a cache, read back by memory map."""

import hashlib
import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import datasets
import numpy as np

from lingo_ds.data.prompt import Prompt
from lingo_ds.data.sources import SPLITS, Split, count_duplicates
from lingo_ds.data.tokens import Tokenize
from lingo_ds.files import write_aside

logger = logging.getLogger(__name__)

CACHE_VERSION = 1
BATCH = 1000
"""Texts tokenised at a time."""

FEATURES = datasets.Features(
    {
        "input_ids": datasets.List(datasets.Value("int32")),
        "label": datasets.Value("int64"),
        "truncated": datasets.Value("bool"),
    }
)


@dataclass(frozen=True)
class TokenizedSplit:
    """One split's token ids, read where the table has them: on disk by memory map, whatever it is cut into.

    Attributes:
        table: columns input_ids (list of int32), label (int64), truncated (bool).
    """

    table: datasets.Dataset

    def __len__(self) -> int:
        return len(self.table)

    @cached_property
    def _chunks(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Ids and offsets of the pieces that Arrow keeps the column in; none is copied."""
        chunks = self.table.data.column("input_ids").chunks
        return [(chunk.values.to_numpy(), chunk.offsets.to_numpy()) for chunk in chunks]

    @cached_property
    def _begins(self) -> np.ndarray:
        """The first row of each piece."""
        return np.cumsum([0, *(len(offsets) - 1 for _, offsets in self._chunks)])

    def _chunk_of(self, rows: np.ndarray | int) -> np.ndarray:
        return np.searchsorted(self._begins, rows, side="right") - 1

    @cached_property
    def labels(self) -> np.ndarray:
        """(rows,) classes."""
        return self.table.data.column("label").to_numpy()

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
        """Examples whose sequence was cut."""
        return int(np.sum(self.table.data.column("truncated").to_numpy()))

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
        classes: number of labels.
        duplicates: rows that occur twice, see `count_duplicates`.
        fingerprint: of files, tokenizer, prompt and length together.
    """

    splits: Mapping[str, TokenizedSplit]
    classes: int
    duplicates: dict[str, int]
    fingerprint: str

    @property
    def longest(self) -> int:
        """Tokens of the longest example."""
        return int(max(split.lengths.max() for split in self.splits.values()))

    @property
    def shortest(self) -> int:
        """Tokens of the shortest example."""
        return int(min(split.lengths.min() for split in self.splits.values()))

    @property
    def largest_id(self) -> int:
        """Of all tokens."""
        return max(split.largest_id for split in self.splits.values())

    def facts(self) -> dict[str, Any]:
        """Counts for the report."""
        return {
            "rows": {name: len(split) for name, split in self.splits.items()},
            "truncated": {name: split.truncated for name, split in self.splits.items()},
            "duplicates": self.duplicates,
            "fingerprint": self.fingerprint,
        }


def default_cache() -> Path:
    """$LINGO_DS_CACHE, else ~/.cache/lingo_ds."""
    return Path(os.environ.get("LINGO_DS_CACHE") or Path.home() / ".cache" / "lingo_ds")


def data_fingerprint(folder: Path, *, tokenizer: str, settings: Mapping[str, Any]) -> str:
    """32 hex digits that change with the files, the tokenizer's definition or any setting."""
    digest = hashlib.sha256(json.dumps([CACHE_VERSION, tokenizer, dict(settings)], sort_keys=True).encode())
    for name in SPLITS:
        path = folder / f"{name}.csv"
        digest.update(hashlib.sha256(path.read_bytes()).digest() if os.path.isfile(path) else b"absent")
    return digest.hexdigest()[:32]


def write_tokenized(
    folder: Path, splits: Mapping[str, Split], *, tokenize: Tokenize, prompt: Prompt, max_length: int
) -> None:
    """Tokenises all splits into `folder`, written aside and renamed.

    Args:
        folder: where the cache entry goes; it appears whole or not at all.
        splits: the rows.
        tokenize: what makes tokens of sequences: `TextTokens`, or `NucleotideTokens`.
        prompt: text around each sequence.
        max_length: longest example in tokens.

    Raises:
        UserError: where not even one base fits between prefix and suffix.
    """

    def write(aside: Path) -> None:
        for name, split in splits.items():
            logger.info("tokenising %s: %d rows", name, len(split))
            tokenized = tokenized_split(
                split.sequences, split.labels, tokenize=tokenize, prompt=prompt, max_length=max_length
            )
            tokenized.table.save_to_disk(aside / name)
        facts = {"classes": max(splits["train"].labels) + 1, "duplicates": count_duplicates(splits)}
        (aside / "facts.json").write_text(json.dumps(facts))

    try:
        write_aside(folder, write)
    except OSError:
        if not folder.is_dir():  # else another host finished the same entry first
            raise


def read_tokenized(folder: Path) -> TokenizedData:
    """The cache entry that `write_tokenized` made, by memory map."""
    facts = json.loads((folder / "facts.json").read_text())
    splits = {name: TokenizedSplit(datasets.load_from_disk(str(folder / name))) for name in SPLITS}
    return TokenizedData(splits, facts["classes"], facts["duplicates"], folder.name)


def tokenized_split(
    sequences: Sequence[str],
    labels: Sequence[int],
    *,
    tokenize: Tokenize,
    prompt: Prompt,
    max_length: int,
) -> TokenizedSplit:
    """Tokenises labelled sequences, in memory; the arguments are those of `write_tokenized`.

    Raises:
        UserError: where not even one base fits between prefix and suffix.
    """
    input_ids, truncated = [], []
    for start in range(0, len(sequences), BATCH):
        for ids, cut in tokenize(sequences[start : start + BATCH], prompt, max_length):
            input_ids.append(ids)
            truncated.append(cut)
    columns = {"input_ids": input_ids, "label": labels, "truncated": truncated}
    return TokenizedSplit(datasets.Dataset.from_dict(columns, features=FEATURES))
