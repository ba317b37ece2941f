"""The mistakes of files: one that many rows of a file share is reported once, with the rows counted."""

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from lingo_ds.utils.errors import Mistake, UserError

MAX_KINDS_PER_FILE = 20
"""Kinds of mistakes that are reported of one file; the rest is counted."""

MAX_PLACES = 3
"""Places of one kind of mistake that are named."""

_PLACE = re.compile(r"(?P<file>.*?)(:(?P<line>\d+)|, row (?P<row>\d+))", re.DOTALL)


def file_of(where: str) -> str:
    """The file of a place like `train.csv:17` or `train.parquet, row 16`."""
    found = _PLACE.fullmatch(where)
    return found["file"] if found else where


class _Kind(NamedTuple):
    """What mistakes have in common that are reported as one: file or folder, and rule without its numbers."""

    file: str
    rule: str


class _Seen:
    """The first mistake of a kind, the first places, and how often it came."""

    def __init__(self, first: Mistake):
        self.first, self.places, self.count = first, [first.where], 1

    def add(self, where: str) -> None:
        self.count += 1
        if len(self.places) < MAX_PLACES:
            self.places.append(where)

    def as_one(self) -> Mistake:
        if self.count == 1:
            return self.first
        more = ", .." if self.count > len(self.places) else ""
        places = f"{self.count:,} {_unit(self.places[0])}: {', '.join(map(_short, self.places))}{more}"
        return self.first._replace(rule=f"{self.first.rule} ({places})")


class MistakeLog:
    """Collects the mistakes of files; its size does not grow with the number of rows."""

    def __init__(self, mistakes: Iterable[Mistake] = ()):
        self._kinds: dict[_Kind, _Seen] = {}
        self._unreported: dict[str, int] = {}
        self._per_file: dict[str, int] = {}
        for mistake in mistakes:
            self.add(mistake)

    def __bool__(self) -> bool:
        return bool(self._kinds)

    def add(self, mistake: Mistake) -> None:
        """Takes one more."""
        kind = _kind_of(mistake)
        if seen := self._kinds.get(kind):
            seen.add(mistake.where)
        elif self._per_file.get(kind.file, 0) < MAX_KINDS_PER_FILE:
            self._per_file[kind.file] = self._per_file.get(kind.file, 0) + 1
            self._kinds[kind] = _Seen(mistake)
        else:
            self._unreported[kind.file] = self._unreported.get(kind.file, 0) + 1

    @contextmanager
    def of_what_ends_early(self) -> Iterator[None]:
        """Takes the mistakes of an error inside, after which nothing can be read."""
        try:
            yield
        except UserError as error:
            for mistake in error.mistakes:
                self.add(mistake)

    def raise_if_any(self) -> None:
        """Raises all of them as one error.

        Raises:
            UserError: where there are any.
        """
        found = [seen.as_one() for seen in self._kinds.values()]
        for file, count in self._unreported.items():
            found.append(Mistake(file, f"{count:,} more", "have mistakes too", "fix the errors above first"))
        if found:
            raise UserError(found)


def raise_if_any(mistakes: Iterable[Mistake]) -> None:
    """Raises mistakes of files, those of one kind as one.

    Raises:
        UserError: where there are mistakes.
    """
    MistakeLog(mistakes).raise_if_any()


def _kind_of(mistake: Mistake) -> _Kind:
    file = file_of(mistake.where)
    if file == mistake.where and "/" in file:  # a file that is one example among others of its folder
        file = str(Path(file).parent)
    return _Kind(file, re.sub(r"\d+", "0", mistake.rule))


def _unit(where: str) -> str:
    found = _PLACE.fullmatch(where)
    return "files" if found is None else "lines" if found["line"] else "rows"


def _short(where: str) -> str:
    found = _PLACE.fullmatch(where)
    return Path(where).name if found is None else found["line"] or found["row"]
