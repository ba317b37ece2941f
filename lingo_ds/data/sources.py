"""Reading labelled sequences from files, every mistake named by file and line."""

import csv
import io
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lingo_ds.errors import Mistake, UserError
from lingo_ds.untrusted import read_regular

SPLITS = ("train", "dev", "test")
IUPAC = "ACGTUNRYSWKMBDHV"
MOST_MISTAKES = 20
"""Mistakes reported per file; the rest is counted."""

_ILLEGAL = re.compile(f"[^{IUPAC}{IUPAC.lower()}]")
csv.field_size_limit(1 << 31)  # a chromosome may stand in one field


@dataclass
class Split:
    """One split's rows, in file order.

    Attributes:
        path: the file.
        sequences: upper-case DNA.
        labels: classes, counted from 0.
        lines: line of each row in the file, counted from 1.
        fields: cells by column that a prompt reads, row by row; empty where it reads none.
    """

    path: Path
    sequences: list[str] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    lines: list[int] = field(default_factory=list)
    fields: list[dict[str, str]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.sequences)


def read_gue(
    folder: Path, *, sequence_column: str, label_column: str, columns: Sequence[str] = ()
) -> dict[str, Split]:
    """Reads `train.csv`, `dev.csv` and `test.csv` of a folder in GUE's layout; `columns` are a prompt's.

    Raises:
        UserError: with all mistakes of all files.
    """
    if not os.path.isdir(folder):  # False, where pathlib raises, for what can be no path
        raise UserError(
            Mistake("data.path", folder, "is not a folder", "give the folder of train.csv, dev.csv, test.csv")
        )
    mistakes: list[Mistake] = []
    splits = {}
    for name in SPLITS:
        try:
            splits[name] = read_csv(
                folder / f"{name}.csv",
                sequence_column=sequence_column,
                label_column=label_column,
                columns=columns,
            )
        except UserError as error:
            mistakes += error.mistakes
    if not mistakes:
        mistakes = _check_labels(splits)
    if mistakes:
        raise UserError(mistakes)
    return splits


def read_csv(path: Path, *, sequence_column: str, label_column: str, columns: Sequence[str] = ()) -> Split:
    """Reads one file of labelled sequences: UTF-8, a header, one row per sequence. Lower case is raised.

    Raises:
        UserError: with up to `MOST_MISTAKES` mistakes, each as file:line.
    """
    reader = csv.reader(io.StringIO(_read_text(path), newline=""), strict=True)
    split, mistakes, begin = Split(path), [], 1
    try:
        header = [name.strip() for name in next(reader, [])]
        settings = {sequence_column: "sequence_column", label_column: "label_column"}
        settings = settings | {column: "prefix" for column in columns if column not in settings}
        twice = [name for name in settings if header.count(name) > 1]
        if twice:
            raise UserError(Mistake(f"{path}:1", twice[0], "names two columns", "rename one of them"))
        missing = {column: setting for column, setting in settings.items() if column not in header}
        if missing:
            raise UserError(
                [
                    Mistake(f"{path}:1", ",".join(header), f"has no column {column!r}",
                            f"rename a column or set data.{setting}")
                    for column, setting in missing.items()
                ]
            )  # fmt: skip
        places = header.index(sequence_column), header.index(label_column)
        begin = reader.line_num + 1
        for row in reader:
            if len(row) > 1 or "".join(row).strip():
                found = _add_row(split, row, begin, len(header), *places)
                if columns and not found:
                    split.fields.append({name: row[header.index(name)].strip() for name in columns})
                mistakes += found
            begin = reader.line_num + 1
    except csv.Error as error:
        mistakes.append(Mistake(f"{path}:{begin}", "row", str(error), "quote the field properly"))
    if not mistakes and not len(split):
        mistakes.append(Mistake(str(path), "0 rows", "holds no examples", "add rows below the header"))
    raise_any(mistakes, path)
    return split


def raise_any(mistakes: list[Mistake], path: Path) -> None:
    """Raises what was found in a file, the first `MOST_MISTAKES` of it.

    Raises:
        UserError: where there are mistakes.
    """
    if len(mistakes) > MOST_MISTAKES:
        more = len(mistakes) - MOST_MISTAKES
        rest = Mistake(str(path), f"{more} more rows", "have mistakes too", "mend those above first")
        mistakes = [*mistakes[:MOST_MISTAKES], rest]
    if mistakes:
        raise UserError(mistakes)


def _read_text(path: Path) -> str:
    try:
        raw = read_regular(path)
    except OSError as error:
        raise UserError(
            Mistake(str(path), "file", error.strerror or "cannot be read", "put it there")
        ) from None
    if (zero := raw.find(b"\0")) >= 0:
        where = f"{path}:{raw.count(10, 0, zero) + 1}"
        raise UserError(Mistake(where, "NUL byte", "is not text", "save the file as plain UTF-8 CSV"))
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        where = f"{path}:{raw.count(10, 0, error.start) + 1}"
        value = f"byte 0x{raw[error.start]:02x}"
        raise UserError(Mistake(where, value, "is not UTF-8", "save the file as UTF-8")) from None


def _add_row(
    split: Split, row: list[str], line: int, width: int, sequence_at: int, label_at: int
) -> list[Mistake]:
    """Adds a good row to the split; returns what is wrong with a bad one."""
    where = f"{split.path}:{line}"
    if len(row) != width:
        return [Mistake(where, f"{len(row)} fields", f"the header has {width}", "complete the row")]
    sequence, label = row[sequence_at].strip(), row[label_at].strip()
    wrong = sequence_mistake(sequence, where)
    mistakes = [wrong] if wrong else []
    if not re.fullmatch(r"\d{1,9}", label):
        mistakes.append(
            Mistake(where, label, "label is not an integer from 0", "number the classes 0, 1, 2, ..")
        )
    if not mistakes:
        split.sequences.append(sequence.upper())
        split.labels.append(int(label))
        split.lines.append(line)
    return mistakes


def sequence_mistake(sequence: str, where: str) -> Mistake | None:
    """What is wrong with a sequence that stands at `where`: nothing there, or a letter that is no base."""
    if not sequence:
        return Mistake(where, sequence, "sequence is empty", "remove the row or fill it")
    illegal = _ILLEGAL.search(sequence)
    if illegal is None:
        return None
    rule = f"position {illegal.start() + 1} is no IUPAC nucleotide ({IUPAC})"
    return Mistake(where, illegal.group(), rule, "correct the letter, or write N")


def _check_labels(splits: dict[str, Split]) -> list[Mistake]:
    train = splits["train"]
    classes = sorted(set(train.labels))
    gap = next((c for c in range(classes[-1]) if c not in set(classes)), None)
    if gap is not None:
        line = train.lines[train.labels.index(classes[-1])]
        return [
            Mistake(
                f"{train.path}:{line}", classes[-1],
                f"labels must run from 0 without a gap, and no row has {gap}",
                f"number the {len(classes)} classes 0 .. {len(classes) - 1}",
            )
        ]  # fmt: skip
    if len(classes) == 1:
        return [
            Mistake(str(train.path), classes[0], "is the only label", "a task needs at least two classes")
        ]
    mistakes = []
    for split in (splits["dev"], splits["test"]):
        unknown = next((i for i, label in enumerate(split.labels) if label > classes[-1]), None)
        if unknown is not None:
            mistakes.append(
                Mistake(
                    f"{split.path}:{split.lines[unknown]}", split.labels[unknown],
                    "label does not occur in train.csv",
                    "add training rows of this class, or remove the row",
                )
            )  # fmt: skip
    return mistakes


def count_duplicates(splits: dict[str, Split]) -> dict[str, int]:
    """Rows whose sequence occurs twice: inside train, and in dev or test as well as in an earlier split."""
    train, dev, test = (splits[name].sequences for name in SPLITS)
    in_train, in_dev = set(train), set(dev)
    return {
        "train": len(train) - len(in_train),
        "dev_in_train": sum(sequence in in_train for sequence in dev),
        "test_in_train": sum(sequence in in_train for sequence in test),
        "test_in_dev": sum(sequence in in_dev for sequence in test),
    }
