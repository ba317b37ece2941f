"""Data sets of the `datasets` library: saved on disk, or on the hub."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from lingo_ds.data.examples import Example
from lingo_ds.data.sources.base import SPLIT_NAMES, Found
from lingo_ds.data.sources.tables import Columns, cell_text, cells_of, text_of
from lingo_ds.utils.errors import Mistake, UserError, reason_of

if TYPE_CHECKING:
    import datasets

HUB_ROWS = 1024
"""Rows decoded at a time; the rest stays on disk, by memory map."""


class HubDataset:
    """A data set whose columns are those of a table; a split has any of the usual names."""

    def __init__(self, path: str, columns: Columns, *, subset: str | None, revision: str | None):
        """Opens a folder that `save_to_disk` wrote, or else downloads a hub id; no code in it is run.

        Raises:
            UserError: where it is neither, or has no split of a usual name.
        """
        import datasets  # pandas with it: slow to import, and only here in use

        datasets.disable_progress_bars()
        self._path, self._columns = path, columns
        try:
            if Path(path).is_dir():
                found = datasets.load_from_disk(path)
            else:
                found = datasets.load_dataset(path, subset, revision=revision)
        except Exception as error:  # whatever files of strangers make a library raise
            rule = f"is no data set that can be read ({reason_of(error)})"
            fix = "give a folder of save_to_disk or a hub id (with data.subset where it has several)"
            raise UserError(Mistake("data.path", path, rule, fix)) from None
        if not isinstance(found, Mapping):
            found = {"train": found}
        named = {SPLIT_NAMES.get(name.lower()): split for name, split in found.items()}
        self._splits = {name: split for name, split in named.items() if name}
        if not self._splits:
            rule = "none of its splits is called train, dev or test"
            raise UserError(Mistake("data.path", ", ".join(found), rule, "rename the splits"))

    def fingerprint(self) -> str:
        return repr([(name, split._fingerprint) for name, split in self._splits.items()])

    def examples(self) -> Iterator[Found]:
        for name, split in self._splits.items():
            for item in self._read(name, split):
                yield name, item

    def _read(self, name: str, split: "datasets.Dataset") -> Iterator[Example | Mistake]:
        title, columns = f"{self._path}, split {name}", self._columns
        places = columns.places(split.column_names, title)
        names = [split.column_names[k] for k in (places.sequence, *places.labels)]
        pair = None if places.pair is None else split.column_names[places.pair]
        number = 0
        for batch in split.iter(HUB_ROWS):
            for k in range(len(batch[names[0]])):
                where = f"{title}, row {number}"
                number += 1
                if places.task is None or batch["task"][k] == columns.only_task:
                    sequence, *labels = (batch[column][k] for column in names)
                    cells = tuple(labels) if len(labels) > 1 else cells_of(labels[0])
                    fields = {column: cell_text(batch[column][k]) for column in columns.fields}
                    yield Example(text_of(sequence), cells, where, pair and text_of(batch[pair][k]), fields)
