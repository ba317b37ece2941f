"""Any stretch of a file's unpacked bytes by its place, plain or packed with bgzip.

Read here and not by a library, since those take a file for packed by its name, and an index for right.
"""

import os
import zlib
from bisect import bisect_right
from functools import lru_cache
from io import BufferedReader
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np

from lingo_ds.data.readers.content import packing_of
from lingo_ds.utils.errors import Mistake, UserError

BLOCK_HEADER = 18
"""Bytes of a block's header; the last two are the block's length less one (SAM specification, 4.1)."""

UNPACKED_AT_ONCE = 64
"""Blocks of at most 64 KiB that are kept unpacked."""


class Blocks(NamedTuple):
    """Where the blocks of a file packed with bgzip begin, the empty one at its end included.

    Attributes:
        packed, unpacked: (n,) uint64, bytes of the packed and of the unpacked file before each block.
    """

    packed: np.ndarray
    unpacked: np.ndarray

    @classmethod
    def of_file(cls, file: BufferedReader, path: Path) -> Self:
        """The blocks of an open file, from the headers of all of them.

        Raises:
            UserError: where a block is damaged.
        """
        number, size = file.fileno(), os.fstat(file.fileno()).st_size
        packed, unpacked, place, before = [], [], 0, 0
        while place < size:
            header = os.pread(number, BLOCK_HEADER, place)
            length = int.from_bytes(header[16:], "little") + 1
            if packing_of(header) != "bgzip" or place + length > size:
                rule = "is the place of a damaged block of bgzip"
                raise UserError(Mistake(str(path), f"byte {place:,}", rule, "copy the file again"))
            packed.append(place)
            unpacked.append(before)
            place += length
            before += int.from_bytes(os.pread(number, 4, place - 4), "little")
        return cls(np.array(packed, np.uint64), np.array(unpacked, np.uint64))

    @classmethod
    def load(cls, path: Path) -> Self:
        """The blocks that `save` wrote."""
        return cls(*np.load(path))

    def save(self, path: Path) -> None:
        np.save(path, np.stack(self))

    def fit(self, gzi: bytes) -> bool:
        """Whether a `.gzi` has these blocks: their number, and both places of each, without the first one.

        Programs differ on whether the empty block counts.
        """
        places = np.stack(self, 1)[1:]
        return any(gzi == np.uint64(len(some)).tobytes() + some.tobytes() for some in (places, places[:-1]))


class UnpackedBytes:
    """A file that is read by the places of its unpacked bytes, from several threads if need be."""

    def __init__(self, file: BufferedReader, blocks: Blocks | None):
        """Takes an open file, and its blocks where it is packed."""
        self._file, self._blocks = file, blocks
        if blocks:
            self._starts: list[int] = blocks.unpacked.tolist()
            self._places: list[int] = [*blocks.packed.tolist(), os.fstat(file.fileno()).st_size]
            self._block = lru_cache(UNPACKED_AT_ONCE)(self._unpack)

    def read(self, begin: int, end: int) -> bytes:
        """The bytes [begin, end), fewer where the file ends before.

        Raises:
            OSError, zlib.error: where they cannot be read.
        """
        if self._blocks is None:
            return os.pread(self._file.fileno(), max(end - begin, 0), begin)
        first, pieces = bisect_right(self._starts, begin) - 1, []
        for k in range(first, len(self._starts)):
            if self._starts[k] >= end:
                break
            pieces.append(self._block(k))
        skip = begin - self._starts[first]
        return b"".join(pieces)[skip : skip + max(end - begin, 0)]

    def _unpack(self, k: int) -> bytes:
        begin, end = self._places[k : k + 2]
        return zlib.decompress(os.pread(self._file.fileno(), end - begin, begin), wbits=31)
