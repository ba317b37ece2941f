"""From `data.path` to a source, by what files hold and the names of folders."""

from collections.abc import Callable
from functools import partial
from os.path import exists, isdir  # False, where pathlib raises, for what can be no path
from pathlib import Path
from typing import NamedTuple

from lingo_ds.config.data_config import DataConfig
from lingo_ds.data.readers.bed import BED_SUFFIXES, WindowRule
from lingo_ds.data.readers.fasta import FASTA
from lingo_ds.data.readers.formats import format_of, unread_mistake
from lingo_ds.data.readers.genome import Genome
from lingo_ds.data.readers.lines import stem_of, suffix_of
from lingo_ds.data.readers.tables import TABLE_SUFFIXES
from lingo_ds.data.sources.base import SPLIT_NAMES, Part, Source, entries_of, files_in
from lingo_ds.data.sources.bed import BedSource, Chromosomes
from lingo_ds.data.sources.deepsea import DeepSea
from lingo_ds.data.sources.fasta import ClassFolders, FastaSource
from lingo_ds.data.sources.hub import HubDataset
from lingo_ds.data.sources.tables import Columns, TableSource
from lingo_ds.utils.errors import Mistake, UserError

SOURCE_SUFFIXES = {
    "table": TABLE_SUFFIXES,
    "fasta": FASTA,
    "bed": BED_SUFFIXES,
    "deepsea": (".mat", ".npz"),
}
SAVED_DATASET = ("dataset_dict.json", "dataset_info.json")
OTHER_DATA = {".txt", ".json", ".xlsx", ".xls", ".zip", ".bz2", ".xz", ".zst", ".vcf", ".npy", ".h5", ".pkl"}
"""Endings of files that may be data, but are not read."""

KNOWN_FORMATS_FIX = "give a file or folder that docs/data.md knows, or set data.format"


def open_source(config: DataConfig, path: Path, *, kind: str, cache: Path) -> Source:
    """The source at a path; files are found and their heads read, but no example.

    Args:
        config: how to read it.
        path: file or folder; `config.path` where nothing is embedded.
        kind: `task.kind`.
        cache: for the index of a genome.

    Raises:
        UserError: where no known format is there, or a setting has no meaning for it.
    """
    format = config.format if config.format != "auto" else _format_at(path)
    for name in config.unread_by(format):
        rule = f"has no meaning for data.path, which is read as {format}"
        raise UserError(Mistake(f"data.{name}", getattr(config, name), rule, "remove it, or set data.format"))
    return _OPEN[format](_Asked(config, path, kind, cache))


class _Asked(NamedTuple):
    """The arguments of `open_source`."""

    config: DataConfig
    path: Path
    kind: str
    cache: Path


def _table(asked: _Asked) -> Source:
    return TableSource(_files(asked.path, "table"), _columns(asked))


def _columns(asked: _Asked) -> Columns:
    config = asked.config
    return Columns(
        config.sequence_column,
        None if asked.kind == "multilabel" and config.label_column is None else config.label_columns,
        config.pair_column,
        config.only_task,
        config.prompt_columns,
    )


def _fasta(asked: _Asked) -> Source:
    return FastaSource(_files(asked.path, "fasta"), only_task=asked.config.only_task)


def _class_folders(asked: _Asked) -> Source:
    return ClassFolders(_by_class(asked.path, isdir))


def _bed(asked: _Asked) -> Source:
    config, intervals = asked.config, asked.config.intervals
    if intervals is None:
        rule = "is needed to read intervals"
        raise UserError(Mistake("data.intervals.genome", "nothing", rule, "name the reference FASTA"))
    genome = partial(Genome, Path(intervals.genome), cache=asked.cache, setting="data.intervals.genome")
    return BedSource(
        _files(asked.path, "bed"),
        genome(),
        genome(read_ahead=0),
        windows=WindowRule(intervals.window, intervals.flank, intervals.center),
        labels=config.label_columns,
        chromosomes=Chromosomes(intervals.dev_chromosomes, intervals.test_chromosomes),
        negatives=intervals.negatives,
        seed=intervals.seed,
    )


def _deepsea(asked: _Asked) -> Source:
    return DeepSea(_files(asked.path, "deepsea"), order=asked.config.one_hot_order)


def _dataset(asked: _Asked) -> Source:
    config = asked.config
    return HubDataset(str(asked.path), _columns(asked), subset=config.subset, revision=config.revision)


_OPEN: dict[str, Callable[[_Asked], Source]] = {
    "table": _table,
    "fasta": _fasta,
    "class_folders": _class_folders,
    "bed": _bed,
    "deepsea": _deepsea,
    "dataset": _dataset,
}


def _format_at(path: Path) -> str:
    """The format of what is at a path.

    Raises:
        UserError: where it is unknown.
    """
    return _format_in_folder(path) if isdir(path) else _format_of_file(path)


def _format_in_folder(folder: Path) -> str:
    if any((folder / name).is_file() for name in SAVED_DATASET):
        return "dataset"
    for format in SOURCE_SUFFIXES:
        if _by_split(folder, format):
            return format
    if _by_class(folder, _is_fasta):
        return "fasta"
    classes = _by_class(folder, isdir)
    if classes and all(suffix_of(file) == ".txt" for part in classes for file in files_in(part.path)[:1]):
        return "class_folders"
    rule = "holds no train file of a known kind, and no folders of .txt files or FASTA files of classes"
    raise UserError(Mistake("data.path", folder, rule, KNOWN_FORMATS_FIX))


def _format_of_file(path: Path) -> str:
    if (format := _told_format(path)) in SOURCE_SUFFIXES:
        return format
    if not exists(path):
        rule = "is not there (a data set on the hub needs data.format=dataset)"
    elif format == "vcf":
        rule = "is a VCF, whose variants can be predicted but have no labels to train on"
    elif (foreign := unread_mistake(path, where="data.path")).value == path.name:
        raise UserError(foreign)
    else:
        known = ", ".join(ending for endings in SOURCE_SUFFIXES.values() for ending in endings)
        rule = f"is no folder, and the ending is none of {known}"
    raise UserError(Mistake("data.path", path, rule, KNOWN_FORMATS_FIX))


def _files(path: Path, format: str) -> list[Part]:
    """The files of a data set: one, one per split, or of FASTA one per class.

    Raises:
        UserError: where there is none.
    """
    if not isdir(path):
        if format == "deepsea" and suffix_of(path) not in SOURCE_SUFFIXES[format]:
            rule = f"the ending is none of {', '.join(SOURCE_SUFFIXES[format])}"
            raise UserError(Mistake("data.path", path, rule, "rename or convert the file"))
        return [Part("train", path)]
    parts = _by_split(path, format)
    if not parts and format == "fasta":
        parts = _by_class(path, _is_fasta)
    if not any(part.split == "train" for part in parts):
        endings = ", ".join(SOURCE_SUFFIXES[format])
        rule = f"holds no file train.* with one of the endings {endings}"
        raise UserError(Mistake("data.path", path, rule, "rename the file of training examples"))
    _require_no_other(path, {part.split for part in parts}, format)
    return parts


def _require_no_other(folder: Path, read: set[str], format: str) -> None:
    """Checks that no file is meant for a split which is not read, and would be drawn from train instead.

    Raises:
        UserError: naming the first such file.
    """
    known = {ending for endings in SOURCE_SUFFIXES.values() for ending in endings} | OTHER_DATA
    for path in entries_of(folder):
        split = SPLIT_NAMES.get(path.name.split(".")[0].lower())
        if split and split not in read and known & {ending.lower() for ending in path.suffixes}:
            rule = f"is not read as {split}, since train is read as {format}"
            raise UserError(Mistake("data.path", path, rule, "convert it as train is, or move it away"))


def _by_split(folder: Path, format: str) -> list[Part]:
    """Files called train, dev, test, in this order.

    Raises:
        UserError: where two files claim one split.
    """
    parts: dict[str, Part] = {}
    for path in entries_of(folder):
        split = SPLIT_NAMES.get(stem_of(path).lower())
        if split and not isdir(path) and _told_format(path) == format:
            if split in parts:
                rule = f"is the {split} split, and so is {parts[split].path.name}"
                raise UserError(Mistake("data.path", path, rule, "keep one of them"))
            parts[split] = Part(split, path)
    return [parts[split] for split in ("train", "dev", "test") if split in parts]


def _by_class(folder: Path, is_class: Callable[[Path], bool]) -> list[Part]:
    """Files or folders named by their class, below folders train, dev and test or without such folders."""
    splits = {}
    for path in entries_of(folder):
        if (split := SPLIT_NAMES.get(path.name.lower())) and isdir(path):
            splits[split] = path
    splits = {name: splits[name] for name in ("train", "dev", "test") if name in splits}
    return [
        Part(split, path, path.name if isdir(path) else stem_of(path))
        for split, home in (splits or {"train": folder}).items()
        for path in entries_of(home)
        if path.name[0] != "." and is_class(path)
    ]


def _is_fasta(path: Path) -> bool:
    return suffix_of(path) in FASTA and not isdir(path)


def _told_format(path: Path) -> str | None:
    """The format that a file's first bytes or its ending say; its ending, where it cannot be read."""
    named = next((name for name, endings in SOURCE_SUFFIXES.items() if suffix_of(path) in endings), None)
    if named == "deepsea":
        return named
    try:
        return format_of(path) or named
    except UserError:  # that is said when it is read for its examples
        return named
