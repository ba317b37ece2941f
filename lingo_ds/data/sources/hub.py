"""Data sets of the `datasets` library, saved on disk or on the hub."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lingo_ds.data.readers.table import Table, TableRow
from lingo_ds.data.sources.base import SPLIT_NAMES, Found
from lingo_ds.data.sources.tables import Columns, table_examples
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
        self._path = path
        try:
            if Path(path).is_dir():
                found = datasets.load_from_disk(path)
            else:
                found = datasets.load_dataset(path, subset, revision=revision)
        except Exception as error:  # a library may raise anything on files of strangers
            rule = f"is no data set that can be read ({reason_of(error)})"
            fix = "give a folder of save_to_disk or a hub id (with data.subset where it has several)"
            raise UserError(Mistake("data.path", path, rule, fix)) from None
        if not isinstance(found, Mapping):
            found = {"train": found}
        self._splits: dict[str, datasets.Dataset] = {}
        for name, split in found.items():
            if (usual := SPLIT_NAMES.get(name.lower())) in self._splits:
                rule = f"has two splits that mean {usual}, of which {name} is one"
                raise UserError(Mistake("data.path", path, rule, "keep one of them"))
            if usual:
                self._splits[usual] = split
        if not self._splits:
            rule = "none of its splits is called train, dev or test"
            raise UserError(Mistake("data.path", ", ".join(found), rule, "rename the splits"))
        if columns.open_ended:
            columns = columns.found_in(self._table(next(iter(self._splits))))
        self._columns, self.label_columns = columns, columns.labels or ()

    def fingerprint(self) -> str:
        return repr([(name, split._fingerprint) for name, split in self._splits.items()])

    def examples(self) -> Iterator[Found]:
        alone = len(self._splits) == 1
        for name in self._splits:
            for item in table_examples(self._table(name), self._columns, names_splits=alone):
                yield name, item

    def _table(self, split: str) -> "_HubTable":
        return _HubTable(self._splits[split], f"{self._path}, split {split}")


class _HubTable(Table):
    """A split as a table."""

    def __init__(self, split: "datasets.Dataset", where: str):
        super().__init__(split.column_names, where)
        self._split = split

    def rows(self, columns: Sequence[str]) -> Iterator[TableRow]:
        number = 0
        for batch in self._split.iter(HUB_ROWS):
            for cells in zip(*(batch[name] for name in columns), strict=True):
                yield TableRow(f"{self.where}, row {number}", cells)
                number += 1
