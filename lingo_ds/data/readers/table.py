"""A table with named columns, whatever kind of file it is in."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from lingo_ds.data.missing import is_missing
from lingo_ds.data.mistakes import raise_if_any
from lingo_ds.utils.errors import Mistake, UserError


class TableRow(NamedTuple):
    """One row of a table.

    Attributes:
        where: its place, e.g. `train.csv:17` or `train.parquet, row 16`.
        cells: of the chosen columns in their order, or what is wrong with the row.
    """

    where: str
    cells: Sequence[Any] | Mistake


class Table:
    """A table whose header is read.

    Attributes:
        header: names of the columns; empty where the file is.
        where: the place of the header.
        total: rows of the table; None where the file does not say it.
    """

    def __init__(self, header: Sequence[str], where: str, *, total: int | None = None):
        self.header, self.where, self.total = header, where, total

    def rows(self, columns: Sequence[str]) -> Iterator[TableRow]:
        """The rows with the cells of these columns of the header; they can be read once.

        Raises:
            UserError: where nothing can be read further.
        """
        raise NotImplementedError

    def require_columns(self, settings: Mapping[str, str]) -> None:
        """Checks that the header has each of some columns once.

        Args:
            settings: by column, the advice that chooses another one, e.g. `set data.sequence_column`.

        Raises:
            UserError: for each column that is not there, or there twice.
        """
        if not self.header:
            raise UserError(
                Mistake(self.where, "0 columns", "is empty", "give a table with names of columns")
            )
        mistakes = []
        for name, setting in settings.items():
            if (count := self.header.count(name)) != 1:
                rule = f"names two columns {name!r}" if count else f"has no column {name!r}"
                fix = f"rename a column or {setting}"
                mistakes.append(Mistake(self.where, ",".join(self.header), rule, fix))
        raise_if_any(mistakes)

    def require_text(self, column: str) -> None:
        """Checks that a column holds text, where the file says what it holds.

        Raises:
            UserError: where it holds something else.
        """

    def has_integers(self, column: str) -> bool:
        """Whether a column holds integers, as far as the file says it."""
        return False


def text_of(value: Any) -> str:
    """A cell as text, without spaces around it; one that is missing has none."""
    return "" if not isinstance(value, str) and is_missing(value) else str(value).strip()
