"""FASTA: the class in each header, or one file per class; and folders of files, one sequence a file."""

from collections.abc import Iterator, Sequence

from lingo_ds.data.examples import Example
from lingo_ds.data.readers.fasta import fasta_entries
from lingo_ds.data.readers.lines import lines_of
from lingo_ds.data.sources.base import Found, Part, TaskFilter, files_in, fingerprint_of, read_parts
from lingo_ds.utils.errors import Mistake, UserError


class FastaSource:
    """FASTA files; a part with a label is one class, else headers are `name|label` or `name|label|task`."""

    label_columns: tuple[str, ...] = ()

    def __init__(self, parts: Sequence[Part], *, only_task: str | None):
        """Takes the files; with `only_task`, entries of other tasks are passed over."""
        self._parts, self._only_task = parts, only_task

    def fingerprint(self) -> str:
        return fingerprint_of(self._parts)

    def examples(self) -> Iterator[Found]:
        return read_parts(self._parts, self._read)

    def _read(self, part: Part) -> Iterator[Example | Mistake]:
        tasks = TaskFilter(self._only_task)
        for entry in fasta_entries(lines_of(part.path), part.path):
            where = f"{part.path}:{entry.line}"
            if entry.mistake:
                yield entry.mistake
            elif part.label is not None:
                yield Example(entry.sequence, (part.label,), where)
            else:
                _, *rest = (word.strip() for word in entry.header.split("|"))
                if len(rest) not in (1, 2):
                    fix = "write >name|label or >name|label|task, or one file per class"
                    yield Mistake(where, entry.header, "the header holds no label", fix)
                elif tasks.reads(rest[1] if rest[1:] else None):
                    fields = {"task": rest[1]} if rest[1:] else {}
                    yield Example(entry.sequence, (rest[0],), where, fields=fields)
        yield from tasks.mistakes(str(part.path))


class ClassFolders:
    """Folders of text files, each file one sequence (over any number of lines), each folder one class."""

    label_columns: tuple[str, ...] = ()

    def __init__(self, parts: Sequence[Part]):
        self._parts = parts

    def fingerprint(self) -> str:
        return fingerprint_of(self._parts)

    def examples(self) -> Iterator[Found]:
        return read_parts(self._parts, self._read)

    def _read(self, part: Part) -> Iterator[Example | Mistake]:
        for path in files_in(part.path):
            try:
                sequence = "".join(line.strip() for line in lines_of(path))
            except UserError as error:
                yield from error.mistakes
            else:
                yield Example(sequence, (part.label,), str(path))
