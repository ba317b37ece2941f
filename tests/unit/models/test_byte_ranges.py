"""Plain reads of ranges of weights, and what they leave in the system's cache."""

import ctypes
import mmap
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lingo_ds.models.backbone import byte_ranges
from lingo_ds.models.backbone.byte_ranges import SAFETENSORS_DTYPES, RangeReader
from lingo_ds.models.ops.host_memory import Arena
from lingo_ds.utils.errors import UserError

CPU = torch.device("cpu")
ENTRIES = 100_003


@pytest.fixture
def weights() -> dict[str, torch.Tensor]:
    """One weight of every dtype, of odd sizes, so that they begin anywhere in the file."""
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(ENTRIES + 2 * place, generator=generator).to(dtype)
        for place, (name, dtype) in enumerate(SAFETENSORS_DTYPES.items())
    }


@pytest.fixture
def file(tmp_path, weights) -> Path:
    """On the disk and out of the cache, as one that is read for the first time."""
    path = tmp_path / "weights.safetensors"
    save_file(weights, path)
    with path.open("rb") as written:
        os.fsync(written.fileno())
        os.posix_fadvise(written.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return path


@pytest.mark.parametrize("dtype", SAFETENSORS_DTYPES.values(), ids=str)
@pytest.mark.parametrize("bounds", [(0, ENTRIES), (0, 1), (777, 50_001), (ENTRIES - 1, ENTRIES), (5, 5)])
def test_a_range_is_that_of_the_weight(file, weights, dtype, bounds, monkeypatch):
    monkeypatch.setattr(byte_ranges, "PIECE_BYTES", 4096)  # several pieces, the last of them ragged
    reader, (start, stop) = RangeReader([file]), bounds
    for name, weight in weights.items():
        out = torch.full((stop - start,), torch.nan, dtype=dtype)
        reader.read(file, name, out, start)
        assert torch.equal(out, weight[start:stop].to(dtype)), name


def test_a_file_that_becomes_shorter_is_said(file, weights):
    reader, out = RangeReader([file]), torch.empty(ENTRIES, dtype=torch.float64)
    reader.read(file, "F64", out)
    os.truncate(file, file.stat().st_size // 4)
    with pytest.raises(UserError, match=r"weights\.safetensors: 'file': became shorter while it was read"):
        for name in weights:
            reader.read(file, name, out)


@pytest.mark.parametrize(("memory", "left"), [(1 << 50, 1.0), (1000, 0.1)])
def test_files_leave_the_cache_where_memory_cannot_hold_both(file, weights, memory, left, monkeypatch):
    monkeypatch.setattr(byte_ranges, "host_bytes", lambda: memory)
    reader = RangeReader([file])
    assert cached_share(file) < 0.1
    file.read_bytes()
    assert cached_share(file) == 1
    for name, weight in weights.items():
        reader.read(file, name, torch.empty_like(weight))
    share = cached_share(file)
    assert share == 1 if left == 1 else share < left


def cached_share(path: Path) -> float:
    """Of a file's pages, those that the system has in memory (`mincore`)."""
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as pages:
        count = -(-len(pages) // mmap.PAGESIZE)
        found, start = (ctypes.c_ubyte * count)(), ctypes.c_char.from_buffer(pages)
        status = ctypes.CDLL(None).mincore(
            ctypes.c_void_p(ctypes.addressof(start)), ctypes.c_size_t(len(pages)), found
        )
        del start
        assert status == 0
        return sum(one & 1 for one in found) / count


def test_a_block_gives_each_tensor_its_own_entries():
    block = Arena([3, 0, 5], torch.bfloat16, CPU)
    parts = [block.take(3), block.take(0), block.take(5)]
    for value, part in enumerate(parts):
        part.fill_(value)
    assert [part.tolist() for part in parts] == [[0] * 3, [], [2] * 5]
    assert len({part.untyped_storage().data_ptr() for part in parts}) == 1
    with pytest.raises(AssertionError):
        block.take(1)
