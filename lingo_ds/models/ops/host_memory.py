"""The CPU's memory: large blocks that go back to the system once freed, and that come in large pages."""

import ctypes
import mmap
from collections.abc import Iterable

import torch
from torch import Tensor

MAPPED_BYTES = 1 << 20
"""Bytes from which a block is mapped by itself, after `return_freed_blocks`."""

ALWAYS_MAPPED_BYTES = 32 << 20
"""Bytes from which glibc maps a block by itself, whatever was freed before."""

_M_MMAP_THRESHOLD = -3  # malloc.h


def return_freed_blocks() -> None:
    """Makes every large block go back to the system once it is freed, in this whole process.

    Only glibc needs this. It maps large blocks by themselves, but each one that is freed raises the size from
    which it does, up to 32 MiB. Activations and parts of weights then lie in the heap, where freed memory
    leaves holes between kept memory. Mapping costs page faults: noticeable in a small model, lost in a large
    one.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, MAPPED_BYTES)


def use_large_pages(tensor: Tensor) -> None:
    """Asks for pages of 2 MiB, not 4 KiB, under a new tensor that is mapped by itself on the CPU."""
    on_cpu = tensor.device.type == "cpu" and hasattr(mmap, "MADV_HUGEPAGE")
    if not on_cpu or tensor.nbytes < ALWAYS_MAPPED_BYTES:
        return
    start = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    size = tensor.data_ptr() + tensor.nbytes - start
    advise = ctypes.CDLL(None).madvise  # a system without such pages refuses, which does no harm
    advise(ctypes.c_void_p(start), ctypes.c_size_t(size), mmap.MADV_HUGEPAGE)


class Arena:
    """Memory for tensors that stay, handed out one after the other; on the CPU in large pages.

    Touching memory for the first time costs a fault per page; in pages of 4 KiB that takes longer than to
    read as much from a fast disk.
    """

    def __init__(self, sizes: Iterable[int], dtype: torch.dtype, device: torch.device):
        """Allocates room for tensors of these numbers of entries."""
        self._memory = torch.empty(sum(sizes), dtype=dtype, device=device)
        self._taken = 0
        use_large_pages(self._memory)

    def take(self, size: int) -> Tensor:
        """A tensor (size,) that is not filled yet."""
        start, self._taken = self._taken, self._taken + size
        assert self._taken <= len(self._memory), "more than was asked for"
        return self._memory[start : self._taken]
