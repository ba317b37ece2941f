"""Labelled sequences converted by a source, and what is said of those that are refused."""

from pathlib import Path
from typing import Any, NamedTuple

import pytest

from lingo_ds.config.data_config import DataConfig
from lingo_ds.data.convert import convert_once
from lingo_ds.data.examples import Examples, read_examples
from lingo_ds.utils.errors import Mistake, UserError

COLUMNS = ("sequence", "pair", "label")


class Read(NamedTuple):
    """What a conversion left: its facts, and all columns by split."""

    examples: Examples
    sequences: dict[str, list[str]]
    pairs: dict[str, list[str | None]]
    labels: dict[str, list]

    def rows(self, split: str = "train") -> list[tuple[str, Any]]:
        return list(zip(self.sequences[split], self.labels[split], strict=True))


def read(path: Path, cache: Path, *, kind: str = "multiclass", **settings: Any) -> Read:
    """Converts the data at a path with settings of `data`."""
    config = DataConfig.model_validate({"path": str(path), **settings})
    examples = read_examples(convert_once(config, path, kind=kind, cache=cache))

    def column(split: str, name: str) -> list:
        return [one for batch in examples.batches(split, most=3) for one in batch.column(name).to_pylist()]

    columns = ({split: column(split, name) for split in examples.rows} for name in COLUMNS)
    return Read(examples, *columns)


def refused(path: Path, cache: Path, **settings: Any) -> list[Mistake]:
    """What is wrong with the data at a path."""
    with pytest.raises(UserError) as caught:
        read(path, cache, **settings)
    return caught.value.mistakes
