"""The CPU's memory for large blocks: freed ones go back to the system, new ones come in large pages."""

import ctypes
import mmap

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
    """Asks for pages of 2 MiB, not 4 KiB, under a new tensor on the CPU that is mapped by itself."""
    if tensor.nbytes < ALWAYS_MAPPED or not hasattr(mmap, "MADV_HUGEPAGE"):
        return
    start = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    size = tensor.data_ptr() + tensor.nbytes - start
    advise = ctypes.CDLL(None).madvise  # a kernel without such pages refuses, and nothing is lost
    advise(ctypes.c_void_p(start), ctypes.c_size_t(size), mmap.MADV_HUGEPAGE)
