"""The CPU's memory: how much there is; large blocks go back once freed, and come in large pages."""

import ctypes
import mmap
from collections.abc import Iterable

import torch
from torch import Tensor

MAPPED = 1 << 20
"""Bytes of a block that is mapped by itself once freed blocks are to go back."""

ALWAYS_MAPPED = 32 << 20
"""Bytes of a block that glibc maps by itself whatever was freed before."""

_M_MMAP_THRESHOLD = -3  # malloc.h


def return_freed_blocks() -> None:
    """From here on every large block that is freed goes back to the system; only glibc needs to be told.

    It maps large blocks by themselves, but each one that is freed raises the size from which it does, up to
    32 MiB. Activations and parts of weights then lie in the heap, where what is freed leaves holes between
    what is kept. Mapping costs page faults: noticeable in a small model, lost in a large one.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, MAPPED)


def use_large_pages(tensor: Tensor) -> None:
    """Asks for pages of 2 MiB, not 4 KiB, under a new tensor that the CPU maps by itself, and no other."""
    on_cpu = tensor.device.type == "cpu" and hasattr(mmap, "MADV_HUGEPAGE")
    if not on_cpu or tensor.nbytes < ALWAYS_MAPPED:
        return
    start = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    size = tensor.data_ptr() + tensor.nbytes - start
    advise = ctypes.CDLL(None).madvise  # a kernel without such pages refuses, and nothing is lost
    advise(ctypes.c_void_p(start), ctypes.c_size_t(size), mmap.MADV_HUGEPAGE)


class Arena:
    """Memory for tensors that stay, taken one after the other; on the CPU in large pages.

    Touching memory for the first time costs a fault per page; in pages of 4 KiB that takes longer than to
    read as much from a fast disk.
    """

    def __init__(self, sizes: Iterable[int], dtype: torch.dtype, device: torch.device):
        """Room for tensors of so many entries each."""
        self._memory = torch.empty(sum(sizes), dtype=dtype, device=device)
        self._taken = 0
        use_large_pages(self._memory)

    def take(self, size: int) -> Tensor:
        """(size,), not filled yet."""
        start, self._taken = self._taken, self._taken + size
        assert self._taken <= len(self._memory), "no room was asked for"
        return self._memory[start : self._taken]
