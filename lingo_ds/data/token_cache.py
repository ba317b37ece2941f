"""The cache of token ids: examples are tokenised once, to Arrow tables that are read by memory map."""

import hashlib
import json
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from lingo_ds.data.dna import reverse_complement
from lingo_ds.data.examples import SPLITS, Examples, with_tuples
from lingo_ds.data.labels import Target
from lingo_ds.data.prompt import Prompt
from lingo_ds.data.token_losses import TokenLosses
from lingo_ds.data.tokenization import ExampleText, Tokenize, Tokens
from lingo_ds.data.tokenized import IDS, SCHEMA, VALUES, TokenizedData, TokenizedSplit
from lingo_ds.utils.files import write_once

logger = logging.getLogger(__name__)

CACHE_VERSION = 4
"""Part of every cache key; increased with every change of what is written."""

TEXTS_PER_BATCH = 1000
"""Texts tokenised at a time."""

TOKENIZE_LOG_SECONDS = 10.0
"""Seconds between two log lines of progress."""


def tokenized_fingerprint(examples: Path, *, tokenizer: str, settings: Mapping[str, Any]) -> str:
    """The name of a cache entry: 32 hex digits of the examples, the tokenizer and all settings."""
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
    """Tokenises all splits into a cache entry, batch by batch, unless it is there.

    Args:
        folder: the cache entry, which appears whole or not at all.
        examples: the rows.
        tokenize: turns rows into token ids, see `make_tokenize`.
        prompt: text around each sequence.
        max_length: tokens of the longest example.
        both_strands: whether each sequence's reverse complement is tokenised, too.

    Raises:
        UserError: where not even one base fits between prefix and suffix.
    """

    def tokenized(batch: pa.RecordBatch) -> TokenizedSplit:
        sequences, pairs, labels, fields = (column.to_pylist() for column in batch.columns)
        return tokenized_split(
            sequences,
            labels,
            pairs=pairs,
            fields=fields,
            tokenize=tokenize,
            prompt=prompt,
            max_length=max_length,
            both_strands=both_strands,
        )

    losses: dict[str, TokenLosses] = {}

    def checked(split: str) -> Iterator[pa.Table]:
        """The tables of a split; an entry that would lose its DNA is not written."""
        losses[split] = TokenLosses()
        for batch in examples.batches(split, most=TEXTS_PER_BATCH):
            found = tokenized(batch)
            losses[split] += found.losses
            losses[split].require_few()
            yield found.table

    def write(aside: Path) -> None:
        aside.mkdir()
        for name in SPLITS:
            logger.info("tokenising %s: %d rows", name, examples.rows[name])
            _write_stream(aside / f"{name}.arrow", checked(name), rows=examples.rows[name])
        facts = {
            "classes": examples.classes,
            "class_names": examples.class_names,
            "duplicates": examples.duplicates,
            "bases": examples.bases,
            "pairs": examples.pairs,
            "losses": {name: asdict(lost) for name, lost in losses.items()},
            "label_columns": examples.label_columns,
            "remarks": examples.remarks,
        }
        (aside / "facts.json").write_text(json.dumps(facts))

    write_once(folder, write)


def _write_stream(path: Path, tables: Iterator[pa.Table], *, rows: int) -> None:
    """Writes tables of one schema one after the other; logs now and then how many rows are done."""
    first = next(tables)
    logged, done = time.monotonic(), 0
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, first.schema) as stream:
        for table in chain([first], tables):
            stream.write_table(table)
            done += len(table)
            if time.monotonic() - logged > TOKENIZE_LOG_SECONDS:
                logged = time.monotonic()
                logger.info("tokenised %s of %s rows", f"{done:,}", f"{rows:,}")


def _read_stream(path: Path) -> pa.Table:
    with pa.memory_map(str(path)) as file, pa.ipc.open_stream(file) as stream:
        return stream.read_all()  # the table holds the map


def read_tokenized(folder: Path) -> TokenizedData:
    """The cache entry that `write_tokenized` made, read by memory map."""
    facts = json.loads((folder / "facts.json").read_text())
    splits = {name: TokenizedSplit(_read_stream(folder / f"{name}.arrow")) for name in SPLITS}
    facts["losses"] = {name: TokenLosses(**lost) for name, lost in facts["losses"].items()}
    return TokenizedData(splits=splits, fingerprint=folder.name, **with_tuples(facts))


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
    """Tokenises labelled sequences in memory.

    Args:
        sequences, labels: of the rows.
        pairs: the second sequence of each row, or None; None: no row has one.
        fields: each row's cells of the columns that the prompt reads; None: it reads none.
        tokenize, prompt, max_length, both_strands: as in `write_tokenized`.

    Raises:
        UserError: where not even one base fits between prefix and suffix.
    """
    count = len(sequences)
    rows = list(map(ExampleText, sequences, pairs or [None] * count, fields or [()] * count))

    def strand(rows: Sequence[ExampleText]) -> list[Tokens]:
        batches = (rows[start : start + TEXTS_PER_BATCH] for start in range(0, count, TEXTS_PER_BATCH))
        return [tokens for batch in batches for tokens in tokenize(batch, prompt, max_length)]

    forward = strand(rows)
    lost = [(tokens.cut, tokens.unknown) for tokens in forward]
    columns: dict[str, Any] = {"input_ids": [tokens.ids for tokens in forward], "label": labels}
    schema = SCHEMA
    if isinstance(labels[0], list):
        schema = schema.set(schema.get_field_index("label"), pa.field("label", VALUES))
    if both_strands:
        reverse = strand([row._replace(sequence=reverse_complement(row.sequence)) for row in rows])
        columns["reverse_ids"] = [tokens.ids for tokens in reverse]
        lost = [
            (max(one.cut, other.cut), max(one.unknown, other.unknown))
            for one, other in zip(forward, reverse, strict=True)
        ]
        schema = schema.append(pa.field("reverse_ids", IDS))
    cut, unknown = zip(*lost, strict=True)
    columns |= {"bases": [row.bases for row in rows], "cut": cut, "unknown": unknown}
    return TokenizedSplit(pa.table(columns, schema=schema), equal=_count_equal(rows, forward))


def _count_equal(rows: Sequence[ExampleText], tokens: Sequence[Tokens]) -> int:
    """How many different whole texts of A, C, G and T there are more than different tokens of them."""
    whole = [
        ((row.sequence, row.pair, *row.cells), np.asarray(one.ids, np.int32).tobytes())
        for row, one in zip(rows, tokens, strict=True)
        if not (one.cut or row.sequence.strip("ACGT"))
    ]
    return len({text for text, _ in whole}) - len({ids for _, ids in whole})
