"""The package's own kernels for x86 CPUs, in C++: compiled at their first use and kept in the cache."""

import ctypes
import hashlib
import logging
import os
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lingo_ds.utils.files import atomic_write, default_cache

logger = logging.getLogger(__name__)

KERNEL_SOURCES = Path(__file__).with_name("kernels")
FLAGS = (
    "-O3",
    "-march=native",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-std=c++17",
    "-shared",
    "-fPIC",
    "-pthread",
)
COMPILE_SECONDS = 120
"""Seconds after which a compiler counts as hung; it needs two."""


@cache
def library() -> ctypes.CDLL | None:
    """The compiled kernels; None where this machine has none, which is logged once."""
    processor = processor_features()
    if "avx2" not in processor or "fma" not in processor:
        return None
    instead = "attention, norms and gates on this CPU are torch's, half as fast as the package's own kernels"
    return load_compiled(KERNEL_SOURCES, FLAGS, made_for=processor, instead=instead)


def load_compiled(
    folder: Path, flags: Sequence[str], *, made_for: Sequence[str], instead: str
) -> ctypes.CDLL | None:
    """The library of a folder's C++ files, from the cache or compiled; None where it cannot be.

    Args:
        folder: holds the sources.
        flags: what the compiler is told.
        made_for: what the library depends on beside sources and flags.
        instead: what happens without it, for the warning.
    """
    compiler = shlex.split(os.environ.get("CXX", "")) or [shutil.which("c++") or shutil.which("g++") or "c++"]
    parts = [*(path.read_text() for path in sorted(folder.iterdir())), *compiler, *flags, *made_for]
    name = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
    path = default_cache() / "kernels" / f"{name}.so"
    command = [*compiler, *map(str, sorted(folder.glob("*.cpp"))), *flags, "-o"]
    try:
        if not path.exists():
            atomic_write(path, lambda temporary: _compile([*command, str(temporary)]))
        return ctypes.CDLL(str(path))
    except (OSError, subprocess.SubprocessError) as error:
        reason = getattr(error, "stderr", None) or str(error)
        logger.warning("%s, which could not be compiled: %s", instead, reason.strip().splitlines()[0])
        return None


def run(kernel: str, *arguments: Tensor | float) -> None:
    """Runs a kernel with as many threads as torch has; a tensor is passed as the address of its entries."""
    find_kernel(kernel)(*map(_as_c, (*arguments, torch.get_num_threads())))


def find_kernel(name: str) -> Any:
    """A compiled kernel as a function of C values, to be called only where there is a `library`."""
    kernels = library()
    assert kernels is not None, "no kernels on this machine"
    return getattr(kernels, name)


def _as_c(value: Tensor | float) -> Any:
    if isinstance(value, Tensor):
        return ctypes.c_void_p(value.data_ptr())
    return ctypes.c_float(value) if isinstance(value, float) else ctypes.c_int64(value)


def _compile(command: Sequence[str]) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=COMPILE_SECONDS)


def has_bf16(features: Sequence[str]) -> bool:
    """Whether a processor of these features multiplies bf16 by instructions of its own."""
    return "avx512_bf16" in features or "amx_bf16" in features


def processor_features() -> list[str]:
    """Features of an x86 processor, as Linux names them: a kernel compiled for one may not run on another.

    Empty for other processors, which have no line of that name.
    """
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((sorted(line.split(":")[1].split()) for line in lines if line.startswith("flags")), [])
