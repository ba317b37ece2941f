"""Sources of labelled sequences: their protocol, the parts of a data set, and its fingerprint."""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar

from lingo_ds.data.examples import Example
from lingo_ds.utils.errors import Mistake, UserError, reason_of

SPLIT_NAMES = {
    "train": "train", "training": "train",
    "dev": "dev", "valid": "dev", "validation": "dev", "val": "dev", "eval": "dev",
    "test": "test", "testing": "test",
}  # fmt: skip
"""Names of splits in files, folders and columns, and the split that each means."""

MAX_HASHED_BYTES = 1 << 28
"""Bytes of a file at most whose whole content is in the fingerprint; of a larger one samples are."""

SAMPLES, SAMPLE = 64, 1 << 16
"""Samples of a larger file, and bytes of each."""

Examined = TypeVar("Examined")
Found = tuple[str, Example | Mistake]
"""A split's name, and an example of it or the mistake in one."""


class Part(NamedTuple):
    """A file or folder of examples of one split; `label` is their class where the place says it."""

    split: str
    path: Path
    label: str | None = None


class Source(Protocol):
    """Labelled sequences as they are stored somewhere.

    Attributes:
        label_columns: names of the columns that hold the labels; empty where they have none.
    """

    label_columns: tuple[str, ...]

    def fingerprint(self) -> str:
        """A text that changes with what the examples are made from."""

    def examples(self) -> Iterator[Found]:
        """All examples as a stream; sequences and cells are as stored, nothing in them is checked.

        Raises:
            UserError: where nothing can be read further.
        """


def read_parts(
    parts: Iterable[Part], read: Callable[[Part], Iterator[Examined | Mistake]]
) -> Iterator[tuple[str, Examined | Mistake]]:
    """The examples of all parts; an error that ends a part early becomes mistakes among its examples."""
    for part in parts:
        split, item = part.split, None
        try:
            for item in read(part):
                yield split, item
            if item is None:
                fix = "add some, or remove it"
                yield split, Mistake(str(part.path), "0 rows", "holds no examples", fix)
        except UserError as error:
            for mistake in error.mistakes:
                yield split, mistake


class TaskFilter:
    """The rows of a file that `data.only_task` leaves."""

    def __init__(self, only_task: str | None):
        """Takes the task; None: all rows are read."""
        self._only_task, self._others, self._any_read = only_task, set[str](), False

    def reads(self, task: str | None) -> bool:
        """Whether a row is read; `task` is its task, None where it has none."""
        if self._only_task is None or task == self._only_task:
            self._any_read = True
            return True
        self._others |= set() if task is None else {task}
        return False

    def mistakes(self, where: str) -> Iterator[Mistake]:
        """The mistake of a task that no row of the file `where` belongs to, once all were seen."""
        if self._others and not self._any_read:
            some = sorted(self._others)
            fix = f"name one of {', '.join(some[:10])}" + (", .." if len(some) > 10 else "")
            rule = f"is the task of no row of {where}"
            yield Mistake("data.only_task", self._only_task, rule, fix)


def in_own_split(found: Iterable[Found]) -> Iterator[Found]:
    """Examples with the split that they name themselves, else that of their file."""
    for split, item in found:
        yield (split if isinstance(item, Mistake) else item.split or split), item


def fingerprint_of(parts: Iterable[Part]) -> str:
    """Hex digits that change with a part's split, label or content, and not with its place.

    Files in a folder are identified by name, size and time, since there may be a million of them.
    """
    digest = hashlib.sha256()
    for split, path, label in parts:
        digest.update(repr((split, label)).encode())
        digest.update(_folder_digest(path) if path.is_dir() else file_digest(path))
    return digest.hexdigest()


def file_digest(path: Path) -> bytes:
    """32 bytes that change with a file; the same for all files that cannot be read.

    Up to `MAX_HASHED_BYTES` bytes it is of the content. Of a larger file (a genome is not read for minutes at
    each start) it is of its size, its time of change, and samples from beginning to end: a copy that keeps
    the time (cp -p, rsync -t) is the same file.
    """
    digest = hashlib.sha256()
    try:
        if not path.is_file():
            return digest.digest()
        facts = path.stat()
        with path.open("rb") as file:
            if facts.st_size <= MAX_HASHED_BYTES:
                return hashlib.file_digest(file, "sha256").digest()
            digest.update(repr((facts.st_size, facts.st_mtime_ns)).encode())
            for sample in range(SAMPLES):
                file.seek((facts.st_size - SAMPLE) * sample // (SAMPLES - 1))
                digest.update(file.read(SAMPLE))
    except (OSError, ValueError):
        return digest.digest()
    return digest.digest()


def _folder_digest(folder: Path) -> bytes:
    digest = hashlib.sha256()
    for path in files_in(folder):
        facts = path.stat()
        digest.update(repr((path.name, facts.st_size, facts.st_mtime_ns)).encode())
    return digest.digest()


def files_in(folder: Path) -> list[Path]:
    """The visible files of a folder by name.

    Raises:
        UserError: where it cannot be listed.
    """
    return [path for path in entries_of(folder) if path.is_file() and path.name[0] != "."]


def entries_of(folder: Path) -> list[Path]:
    """All entries of a folder by name.

    Raises:
        UserError: where it cannot be listed.
    """
    try:
        return sorted(folder.iterdir())
    except (OSError, ValueError) as error:
        rule = f"cannot be listed ({reason_of(error)})"
        raise UserError(Mistake(str(folder), "folder", rule, "give a folder of files")) from None
