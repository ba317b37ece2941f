"""One-hot arrays with many labels, as DeepSEA (doi 10.1038/nmeth.3547) distributes them: .mat and .npz."""

import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np

from lingo_ds.data.examples import Example
from lingo_ds.data.readers.lines import opened, suffix_of
from lingo_ds.data.sources.base import Found, Part, fingerprint_of, read_parts
from lingo_ds.utils.errors import Mistake, UserError, reason_of

EXAMPLES_PER_READ = 1000
"""Examples read at a time."""

Read = Callable[[int, int], np.ndarray]


class Array(NamedTuple):
    """An array in a file; `read(begin, end)` gives its examples on the first axis and is called in order."""

    name: str
    shape: tuple[int, ...]
    read: Read


class DeepSea:
    """Arrays of sequences (examples, 4, length) or (examples, length, 4) and labels (examples, labels).

    In a .mat of version 7.3 (HDF5) the axes are in reverse, and are read so.
    """

    label_columns: tuple[str, ...] = ()

    def __init__(self, parts: Sequence[Part], *, order: str | None):
        """Takes the files and the bases of the four channels; None: AGCT in a .mat, ACGT in a .npz."""
        self._parts, self._order = parts, order

    def fingerprint(self) -> str:
        return fingerprint_of(self._parts)

    def examples(self) -> Iterator[Found]:
        return read_parts(self._parts, self._read)

    def _read(self, part: Part) -> Iterator[Example | Mistake]:
        path = part.path
        order = self._order or ("AGCT" if suffix_of(path) == ".mat" else "ACGT")
        try:
            with _arrays_in(path) as arrays:
                yield from _examples(path, *_sequences_and_labels(path, arrays), order)
        except UserError:
            raise
        except Exception as error:  # three libraries may raise anything on files of strangers
            rule = f"has no arrays that can be read ({reason_of(error)})"
            raise UserError(Mistake(str(path), "file", rule, "write it again")) from None


def _examples(path: Path, sequences: Array, labels: Array, order: str) -> Iterator[Example | Mistake]:
    letters = np.frombuffer(order.encode() + b"N", dtype=np.uint8)
    for begin in range(0, sequences.shape[0], EXAMPLES_PER_READ):
        end = min(begin + EXAMPLES_PER_READ, sequences.shape[0])
        hot, cells = sequences.read(begin, end), labels.read(begin, end).tolist()
        hot = hot if hot.shape[1] == 4 else hot.transpose(0, 2, 1)
        total = hot.sum(1)
        odd = ((hot != 0) & (hot != 1)).any((1, 2)) | (total > 1).any(1)
        codes = np.where(total == 0, 4, hot.argmax(1))
        for k, text in enumerate(letters[codes]):
            where = f"{path}, row {begin + k}"
            if odd[k]:
                fix = "let each position have one 1, or none for N"
                yield Mistake(where, sequences.name, "is not one-hot", fix)
            else:
                yield Example(text.tobytes().decode(), tuple(cells[k]), where)


def _sequences_and_labels(path: Path, arrays: list[Array]) -> tuple[Array, Array]:
    """The array with three axes, one of them of length 4, and that with two axes and as many examples."""
    hot = [one for one in arrays if len(one.shape) == 3 and 4 in one.shape[1:]]
    flat = [one for one in arrays if len(one.shape) == 2 and hot and one.shape[0] == hot[0].shape[0]]
    if len(hot) != 1 or len(flat) != 1:
        shapes = ", ".join(f"{one.name} {one.shape}" for one in arrays)
        rule = "has not one array (examples, 4, length) and one (examples, labels)"
        raise UserError(
            Mistake(
                str(path), shapes, rule, "keep these two arrays; one label a row has the shape (examples, 1)"
            )
        )
    return hot[0], flat[0]


@contextmanager
def _arrays_in(path: Path) -> Iterator[list[Array]]:
    with ExitStack() as held:
        raw = held.enter_context(opened(path))
        if suffix_of(path) == ".npz":
            zipped = held.enter_context(zipfile.ZipFile(raw))
            yield [_zipped(zipped, name, held) for name in zipped.namelist()]
        elif h5py.is_hdf5(path):
            file = held.enter_context(h5py.File(path, "r"))
            yield [_hdf5(name, file[name]) for name in file if _is_own_array(file, name)]
        else:  # version 5, as DeepSEA's valid.mat and test.mat are: small, read whole
            from scipy.io import loadmat  # slow to import, and only here in use

            found = loadmat(raw)
            yield [_in_memory(name, one) for name, one in found.items() if isinstance(one, np.ndarray)]


def _in_memory(name: str, array: np.ndarray) -> Array:
    return Array(name, array.shape, lambda begin, end: array[begin:end])


def _is_own_array(file: h5py.File, name: str) -> bool:
    """Whether an array lies in the file itself: HDF5 can also name one in any other file."""
    if not isinstance(file.get(name, getlink=True), h5py.HardLink):
        return False
    one = file[name]
    return isinstance(one, h5py.Dataset) and not one.external and not one.is_virtual


def _hdf5(name: str, array: h5py.Dataset) -> Array:
    def read(begin: int, end: int) -> np.ndarray:
        return array[..., begin:end].T

    return Array(name, array.shape[::-1], read)


def _zipped(zipped: zipfile.ZipFile, name: str, held: ExitStack) -> Array:
    """An array of a .npz as a stream, so that it need not fit into memory."""
    file = held.enter_context(zipped.open(name))
    version = np.lib.format.read_magic(file)
    header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, column_major, dtype = header(file)
    if column_major or dtype.hasobject:
        raise ValueError(f"{name} is not a plain array in row-major order")
    row = dtype.itemsize * int(np.prod(shape[1:]))

    def read(begin: int, end: int) -> np.ndarray:
        content = file.read(row * (end - begin))
        return np.frombuffer(content, dtype=dtype).reshape(end - begin, *shape[1:])

    return Array(name.removesuffix(".npy"), shape, read)
