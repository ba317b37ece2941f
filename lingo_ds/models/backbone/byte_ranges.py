"""Reads ranges of weights from safetensors files by plain reads, straight to where they are kept.

The reader is the package's own because safetensors' is a memory map: the system reads ahead of a plain read,
and reads a map's pages only when the copy has come to them.
"""

import json
import os
from collections.abc import Iterable
from io import FileIO
from pathlib import Path

import torch
from torch import Tensor

from lingo_ds.utils.errors import Mistake, UserError, reason_of
from lingo_ds.utils.host import host_bytes
from lingo_ds.utils.safe_read import LFS_POINTER

SAFETENSORS_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}
"""Dtypes that weights may have in a file, by their names there."""

PIECE_BYTES = 1 << 20
"""Bytes that are read at a time to be cast or moved while they are in the processor's cache."""

HALVES = {torch.float16, torch.bfloat16}
"""Dtypes between which torch casts entry by entry; by way of fp32 it takes a third of the time."""


class RangeReader:
    """Reads from safetensors files whose headers are known to be sound.

    Where the host can't hold all of the files beside the weights, what was read leaves the system's cache at
    once: the system would have to make room again and again, and would find no large pages.
    """

    def __init__(self, paths: Iterable[Path]):
        # buffers are allocated once: new ones would have to be mapped each time
        self._piece, self._wide = torch.empty(PIECE_BYTES, dtype=torch.uint8), torch.empty(PIECE_BYTES // 2)
        self._places: dict[Path, dict[str, tuple[int, torch.dtype]]] = {}
        self._drop_cache = 2 * sum(path.stat().st_size for path in paths) > host_bytes()

    def read(self, path: Path, key: str, out: Tensor, start: int = 0) -> None:
        """Fills `out`, flat, of any dtype and on any device, with a weight's entries from `start` on.

        Raises:
            UserError: where the file has become shorter.
        """
        begin, dtype = self._places_in(path)[key]
        begin, size = begin + start * dtype.itemsize, len(out) * dtype.itemsize
        with path.open("rb", buffering=0) as file:
            _advise(file.fileno(), begin, size, "SEQUENTIAL")  # twice as much is read ahead
            file.seek(begin)
            if out.dtype == dtype and out.device.type == "cpu":
                _fill(out, file)
            else:
                for part in out.split(PIECE_BYTES // dtype.itemsize):
                    self._convert(_fill(self._piece.view(dtype)[: len(part)], file), part)
            if self._drop_cache and out.device.type == "cpu":
                _advise(file.fileno(), begin, size, "DONTNEED")

    def _convert(self, stored: Tensor, out: Tensor) -> None:
        if {stored.dtype, out.dtype} == HALVES:
            stored = self._wide[: len(stored)].copy_(stored)
        out.copy_(stored)

    def _places_in(self, path: Path) -> dict[str, tuple[int, torch.dtype]]:
        """The byte of the file at which each weight begins, and its dtype."""
        if path not in self._places:
            with path.open("rb") as file:
                size = int.from_bytes(file.read(8), "little")
                header = json.loads(file.read(size))
            header.pop("__metadata__", None)
            self._places[path] = {
                key: (8 + size + at["data_offsets"][0], SAFETENSORS_DTYPES[at["dtype"]])
                for key, at in header.items()
                if at["dtype"] in SAFETENSORS_DTYPES
            }
        return self._places[path]


def why_unreadable(path: Path, error: Exception) -> str:
    """Why a safetensors file cannot be read, of which its library only says `error`."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(len(LFS_POINTER))
            file.seek(8)
            length = int.from_bytes(start[:8], "little")
            header = file.read(length) if length < size else b""
        if start == LFS_POINTER:
            return "cannot be read: it is a git-lfs pointer, whose file `git lfs pull` fetches"
        ends = [at["data_offsets"][1] for key, at in json.loads(header).items() if key != "__metadata__"]
        if (whole := 8 + length + max(ends)) > size:
            return f"cannot be read: it is cut off after {size:,} of {whole:,} bytes"
    except (OSError, ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
        pass  # then it is no safetensors file, as its library says
    return f"cannot be read ({reason_of(error)})"


def _advise(file: int, begin: int, size: int, what: str) -> None:
    """Tells the system, where it listens, how a part of a file will be used."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(file, begin, size, getattr(os, f"POSIX_FADV_{what}"))


def _fill(out: Tensor, file: FileIO) -> Tensor:
    """Fills `out` with the file's next bytes and returns it.

    Raises:
        UserError: where there are not enough.
    """
    left = out.view(torch.uint8).numpy().data
    while left:
        count = file.readinto(left)
        if not count:
            rule = "became shorter while it was read"
            raise UserError(Mistake(str(file.name), "file", rule, "leave the backbone's files alone"))
        left = left[count:]
    return out
