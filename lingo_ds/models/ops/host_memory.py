"""The CPU's memory: blocks that leave no holes once freed, that come in large pages, or that a GPU reads."""

import ctypes
import mmap
import weakref
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from lingo_ds.models.ops.compiled import load_compiled
from lingo_ds.utils.errors import Mistake, UserError
from lingo_ds.utils.units import as_bytes

MAPPED_BYTES = 1 << 20
"""Bytes from which a block is mapped by itself, after `return_freed_blocks`."""

WORTH_MAPPING = 48 << 20
"""Bytes of a decoder layer from which `return_freed_blocks` pays: below it page faults cost too much time."""

ALWAYS_MAPPED_BYTES = 32 << 20
"""Bytes from which glibc maps a block by itself, whatever was freed before."""

POOL_SOURCES = Path(__file__).with_name("allocator")
POOL_FLAGS = ("-O2", "-std=c++20", "-shared", "-fPIC")
"""Of the compiler; torch's headers need C++20 from 2.13 on."""

_M_MMAP_THRESHOLD = -3  # malloc.h


def keep_no_holes(layer_bytes: int) -> None:
    """Makes activations on the CPU take no more memory than is in use at one time, in this whole process.

    glibc keeps freed blocks below 32 MiB in its heap, where packs of varying size leave holes between them:
    the process grows for over a hundred steps. torch's blocks come from a pool that has none, or, where that
    cannot be compiled and layers are large, are mapped by themselves.

    Args:
        layer_bytes: bytes of a decoder layer of the backbone.
    """
    if block_pool() is None and layer_bytes >= WORTH_MAPPING:
        return_freed_blocks()


@cache
def block_pool() -> ctypes.CDLL | None:
    """The pool of large blocks that torch's CPU tensors come from since the first call; None: there is none.

    Where it cannot be compiled, that is logged once.
    """
    if not hasattr(mmap, "MADV_HUGEPAGE"):  # Linux alone can resize a mapping
        return None
    include, libraries = (Path(torch.__file__).with_name(name) for name in ("include", "lib"))
    flags = [*POOL_FLAGS, f"-I{include}", f"-L{libraries}", "-lc10", f"-Wl,-rpath,{libraries}"]
    instead = "activations lie in glibc's heap, which may grow beyond the plan without the package's own pool"
    pool = load_compiled(POOL_SOURCES, flags, made_for=[torch.__version__], instead=instead)
    if pool is not None:
        pool.mapped_bytes.restype = ctypes.c_int64
        pool.install_block_pool()
    return pool


def return_freed_blocks() -> None:
    """Makes every large block go back to the system once it is freed, in this whole process.

    Only glibc needs this. It maps large blocks by themselves, but each one that is freed raises the size from
    which it does, up to 32 MiB. Each new block then costs page faults: see `WORTH_MAPPING`.
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


def page_locked(entries: int, dtype: torch.dtype) -> Tensor:
    """A tensor (entries,), not filled yet, that a GPU copies from by itself while the host goes on.

    torch's own allocator of such memory takes the next power of two of bytes, up to twice as many.

    Raises:
        UserError: where the system does not lock that much.
    """
    size = max(1, entries) * dtype.itemsize
    room = mmap.mmap(-1, size)
    memory = torch.frombuffer(room, dtype=dtype)
    use_large_pages(memory)
    runtime = torch.cuda.cudart()
    if error := int(runtime.cudaHostRegister(memory.data_ptr(), size, 0)):
        rule = f"cannot be page-locked on this host (CUDA error {error})"
        fix = "set pin_memory to false in a profile of your own, or use more hosts"
        raise UserError(Mistake("offload_param.pin_memory", as_bytes(size), rule, fix))
    unlock = weakref.finalize(room, runtime.cudaHostUnregister, memory.data_ptr())
    unlock.atexit = False  # CUDA may be gone by then, and the lock ends with the process
    return memory[:entries]


class Arena:
    """Memory for tensors that stay, handed out one after the other; on the CPU in large pages.

    Touching memory for the first time costs a fault per page; in pages of 4 KiB that takes longer than to
    read as much from a fast disk.
    """

    def __init__(
        self, sizes: Iterable[int], dtype: torch.dtype, device: torch.device, *, locked: bool = False
    ):
        """Allocates room for tensors of these numbers of entries; `locked`: see `page_locked`."""
        count = sum(sizes)
        self._memory = page_locked(count, dtype) if locked else torch.empty(count, dtype=dtype, device=device)
        self._taken = 0
        use_large_pages(self._memory)

    def take(self, size: int) -> Tensor:
        """A tensor (size,) that is not filled yet."""
        start, self._taken = self._taken, self._taken + size
        assert self._taken <= len(self._memory), "more than was asked for"
        return self._memory[start : self._taken]
